//! What was told of a ModelDeployment.

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde::Serialize;
use stowage_crds::ModelDeployment;

use crate::kubectl::cluster::{Cluster, ClusterError};

/// How many of the last Events are shown.
const SHOWN: usize = 10;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    pub at: Option<Timestamp>,
    pub warning: bool,
    pub reason: String,
    pub message: String,
}

/// The last Events about the ModelDeployment, the newest last.
pub async fn read(cluster: &Cluster, deployment: &ModelDeployment) -> Result<Vec<Told>, ClusterError> {
    let api: Api<Event> = Api::namespaced(cluster.client.clone(), &deployment.namespace().unwrap_or_default());
    let about = format!("regarding.name={},regarding.kind=ModelDeployment", deployment.name_any());
    let listed = api.list(&ListParams::default().fields(&about)).await;
    let events = listed.map_err(|error| ClusterError::of::<Event>("list Events", error))?.items;
    let of_this_one = |event: &Event| event.regarding.as_ref().and_then(|about| about.uid.as_deref()) == deployment.metadata.uid.as_deref();
    let mut told: Vec<Told> = events.into_iter().filter(of_this_one).map(told).collect();
    told.sort();
    Ok(told.split_off(told.len().saturating_sub(SHOWN)))
}

fn told(event: Event) -> Told {
    let series = event.series.as_ref().map(|series| series.last_observed_time.0);
    let times = [series, event.event_time.map(|time| time.0), event.deprecated_last_timestamp.map(|time| time.0)];
    Told {
        at: times.into_iter().flatten().next(),
        warning: event.type_.as_deref() == Some("Warning"),
        reason: event.reason.unwrap_or_default(),
        message: event.note.unwrap_or_default(),
    }
}
