//! The cluster, as the caller's kubeconfig leads to it, and what it says no to in words.

use std::fmt::Debug;
use std::path::PathBuf;

use clap::Args;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use stowage_crds::{ModelDeployment, names};

/// The same as kubectl's own.
#[derive(Args, Clone, Debug)]
pub struct ConnectionArgs {
    /// Of the ModelDeployment. Omitted: the context's.
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Of the kubeconfig. Omitted: its current one.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// Omitted: $KUBECONFIG, ~/.kube/config, or the Pod's service account.
    #[arg(long, global = true, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// Where the agents, their Leases and the workers' Pods are.
    #[arg(long, global = true, env = "STOWAGE_SYSTEM_NAMESPACE", value_name = "NAMESPACE", default_value = names::SYSTEM_NAMESPACE)]
    pub system_namespace: String,
}

/// Why the cluster gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("finding the cluster by {from}: {source}")]
    Kubeconfig { from: String, source: Box<KubeconfigError> },
    #[error("connecting to the cluster: {0}")]
    Connect(#[source] Box<kube::Error>),
    #[error("the cluster has no kind {kind} of {group}: Stowage is not installed there (`kubectl get crds` lists the kinds that are)")]
    NotInstalled { kind: String, group: String },
    #[error("this account may not {what}: {message}")]
    Forbidden { what: String, message: String },
    #[error("the API server does not know who this is: {message}")]
    Unauthorized { message: String },
    #[error("{what}: {source}")]
    Api { what: String, source: Box<kube::Error> },
    #[error("there is no ModelDeployment {name} in namespace {namespace}; {there}")]
    NoDeployment { name: String, namespace: String, there: String },
    #[error("`{given}` names no ModelDeployment: write mdl/NAME")]
    NotADeployment { given: String },
}

impl ClusterError {
    /// `what` is what was tried, such as `list Nodes`.
    pub fn of<K: Resource<DynamicType = ()>>(what: &str, error: kube::Error) -> ClusterError {
        let kube::Error::Api(status) = &error else { return ClusterError::Api { what: what.to_owned(), source: Box::new(error) } };
        match (status.code, status.reason.as_str()) {
            (401, _) => ClusterError::Unauthorized { message: status.message.clone() },
            (403, _) => ClusterError::Forbidden { what: what.to_owned(), message: status.message.clone() },
            // Of an object that is missing the API server says so with a reason; of a kind that is missing, that there is no such page.
            (404, reason) if reason != "NotFound" => {
                ClusterError::NotInstalled { kind: K::kind(&()).into_owned(), group: K::group(&()).into_owned() }
            }
            _ => ClusterError::Api { what: what.to_owned(), source: Box::new(error) },
        }
    }

    pub fn is_forbidden(&self) -> bool {
        matches!(self, ClusterError::Forbidden { .. })
    }
}

/// A cluster as the caller may see it.
pub struct Cluster {
    pub client: Client,
    /// Of the ModelDeployments that are meant.
    pub namespace: String,
    pub system_namespace: String,
}

impl Cluster {
    pub async fn connect(args: &ConnectionArgs) -> Result<Cluster, ClusterError> {
        // A second call finds the provider there, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = config(args).await?;
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| ClusterError::Connect(Box::new(error)))?;
        Ok(Cluster { client, namespace, system_namespace: args.system_namespace.clone() })
    }

    /// The ModelDeployment that `mdl/NAME` names.
    pub async fn deployment(&self, given: &str) -> Result<ModelDeployment, ClusterError> {
        let name = deployment_name(given).ok_or_else(|| ClusterError::NotADeployment { given: given.to_owned() })?;
        let api: Api<ModelDeployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let found =
            api.get_opt(name).await.map_err(|error| ClusterError::of::<ModelDeployment>(&format!("read ModelDeployment {name}"), error))?;
        if let Some(found) = found {
            return Ok(found);
        }
        // An object and a kind that are missing look the same to `get_opt`; listing tells them apart.
        let there = all(&api, "list ModelDeployments").await?;
        let names: Vec<String> = there.into_iter().filter_map(|deployment: ModelDeployment| deployment.metadata.name).collect();
        let there = if names.is_empty() { "there is none at all".to_owned() } else { format!("there are {}", names.join(", ")) };
        Err(ClusterError::NoDeployment { name: name.to_owned(), namespace: self.namespace.clone(), there })
    }
}

/// All objects there are; `what` says so where it may not be.
pub async fn all<K>(api: &Api<K>, what: &str) -> Result<Vec<K>, ClusterError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    Ok(api.list(&ListParams::default()).await.map_err(|error| ClusterError::of::<K>(what, error))?.items)
}

async fn config(args: &ConnectionArgs) -> Result<Config, ClusterError> {
    let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    let failed = |from: &str| {
        let from = from.to_owned();
        move |source| ClusterError::Kubeconfig { from, source: Box::new(source) }
    };
    if let Some(path) = &args.kubeconfig {
        let from = path.display().to_string();
        let kubeconfig = Kubeconfig::read_from(path).map_err(failed(&from))?;
        return Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(failed(&from));
    }
    match Config::from_kubeconfig(&options).await {
        Ok(config) => Ok(config),
        Err(error) => Config::incluster().map_err(|_| failed("$KUBECONFIG or ~/.kube/config")(error)),
    }
}

/// `mdl/NAME`, with any of the names that kubectl has for the kind.
pub fn deployment_name(given: &str) -> Option<&str> {
    let (kind, name) = given.split_once('/')?;
    let kinds = ["mdl", "modeldeployment", "modeldeployments", "modeldeployment.stowage.dev", "modeldeployments.stowage.dev"];
    (kinds.contains(&kind.to_lowercase().as_str()) && !name.is_empty() && !name.contains('/')).then_some(name)
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use stowage_crds::ModelNode;

    use super::*;

    fn told(code: u16, reason: &str) -> String {
        let status = Status { code, reason: reason.into(), message: "no".into(), ..Status::default() };
        ClusterError::of::<ModelNode>("list ModelNodes", kube::Error::Api(Box::new(status))).to_string()
    }

    #[test]
    fn a_deployment_is_named_as_kubectl_names_it() {
        for given in ["mdl/a", "modeldeployment/a", "ModelDeployments/a", "modeldeployments.stowage.dev/a"] {
            assert_eq!(deployment_name(given), Some("a"), "{given}");
        }
        for given in ["a", "pod/a", "mdl/", "mdl/a/b", "./mdl/a.yaml"] {
            assert_eq!(deployment_name(given), None, "{given}");
        }
    }

    #[test]
    fn what_the_api_server_refuses_is_said_with_what_was_tried() {
        assert_eq!(told(403, "Forbidden"), "this account may not list ModelNodes: no");
        assert!(
            told(404, "Failed to parse error data")
                .starts_with("the cluster has no kind ModelNode of stowage.dev: Stowage is not installed")
        );
        assert!(told(404, "NotFound").starts_with("list ModelNodes: "));
        assert!(told(401, "Unauthorized").contains("does not know who this is"));
    }
}
