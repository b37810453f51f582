//! What all workers' Pods have in common, as whoever installs Stowage says; the chart writes it.

use k8s_openapi::api::core::v1::{EnvVar, LocalObjectReference, ResourceRequirements, Toleration, Volume, VolumeMount};
use serde::Deserialize;

use std::collections::BTreeMap;

/// In JSON, on the operator's command line.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// The agent's, by which workers run too.
    pub image: String,
    #[serde(default)]
    pub image_pull_policy: Option<String>,
    #[serde(default)]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Of the system namespace. Workers have no token of it; it owns their Pods, which so go when it does, as when the chart is uninstalled.
    pub service_account: String,
    /// Who workers are, which is who the agents are: to them belong the models and the socket.
    pub user: i64,
    pub group: i64,
    /// The agents' socket in a worker.
    pub socket: String,
    /// Port of the HTTP API at each Pod's address.
    pub port: u16,
    /// The folders with the models and with the socket. They are mounted to be read alone, whatever is said here.
    pub volumes: Vec<Volume>,
    pub volume_mounts: Vec<VolumeMount>,
    /// CPU. What memory a Pod may have is in its plan.
    #[serde(default)]
    pub resources: ResourceRequirements,
    #[serde(default)]
    pub env: Vec<EnvVar>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
    #[serde(default)]
    pub priority_class_name: Option<String>,
    /// Of Pods whose plan has layers on GPUs.
    #[serde(default)]
    pub gpu_runtime_class_name: Option<String>,
}

impl std::str::FromStr for Settings {
    type Err = String;

    fn from_str(json: &str) -> Result<Settings, String> {
        serde_json::from_str(json).map_err(|error| format!("what is said of workers' Pods can't be read: {error}"))
    }
}
