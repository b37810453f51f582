//! The heartbeat: a Lease in the system namespace, renewed as long as this agent lives. The operator makes the node's ModelNode when it appears.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use stowage_crds::names;
use tokio_util::sync::CancellationToken;

const RENEW_EVERY: Duration = Duration::from_secs(10);
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Renews the Lease of `node` until `stop`. It is left to run out then: workers may serve on, and a successor renews it.
pub async fn keep(client: Client, namespace: String, node: String, stop: CancellationToken) {
    let leases: Api<Lease> = Api::namespaced(client, &namespace);
    let mut failing = false;
    while !stop.is_cancelled() {
        let pause = match renew(&leases, &node).await {
            Ok(()) => {
                failing = false;
                RENEW_EVERY
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, node, namespace, "renewing the node's Lease failed; trying again until it succeeds");
                }
                RETRY_AFTER
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn renew(leases: &Api<Lease>, node: &str) -> Result<(), kube::Error> {
    let (name, parameters) = (names::node_lease(node), PatchParams::apply(names::AGENT_MANAGER).force());
    let lease = Patch::Apply(lease(node, Timestamp::now()));
    let renewal = leases.patch(&name, &parameters, &lease);
    // A connection that hangs must not keep the heart from beating.
    match tokio::time::timeout(RENEW_EVERY, renewal).await {
        Ok(renewed) => renewed.map(drop),
        Err(_) => Err(kube::Error::Service(format!("no answer within {} s", RENEW_EVERY.as_secs()).into())),
    }
}

fn lease(node: &str, now: Timestamp) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(names::node_lease(node)),
            labels: Some([(names::NODE_LEASE_LABEL.to_owned(), node.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(names::NODE_LEASE_SECONDS),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}
