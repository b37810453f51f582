//! The way to a replica: the address that the caller gives, or through the API server into the Pod that serves it, as `kubectl port-forward` goes.
//!
//! A ModelDeployment's Service has no Pods of its own namespace behind it, so the API server's proxy for Services does not lead there.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use stowage_crds::ModelDeployment;
use stowage_crds::model_deployment::{PlacementState, PlacementStatus};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::Error;
use super::cluster::{Cluster, ClusterError};

/// Why there is no way.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("no replica of {name} serves: {why}")]
    NoReplica { name: String, why: String },
    #[error("replica {replica} serves at `{endpoint}`, which is no address")]
    BadEndpoint { replica: String, endpoint: String },
    #[error(
        "replica {replica} serves at {endpoint}, and no Pod in namespace {namespace} has that address; if it can be reached from here: --address http://{endpoint}"
    )]
    NoPod { replica: String, endpoint: SocketAddr, namespace: String },
    #[error("opening a port on this machine to forward: {0}")]
    Listen(#[from] std::io::Error),
}

/// A way that is open as long as this lives.
pub struct Way {
    pub url: String,
    forwarding: Option<JoinHandle<()>>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.forwarding.iter().for_each(JoinHandle::abort);
    }
}

impl Way {
    /// To the address that was given.
    pub fn direct(address: &str) -> Way {
        let address = address.trim_end_matches('/');
        let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        Way { url, forwarding: None }
    }

    /// To a replica of the ModelDeployment that serves.
    pub async fn to(cluster: &Cluster, deployment: &ModelDeployment) -> Result<Way, Error> {
        let placement = serving(deployment)?;
        let PlacementStatus { replica, endpoint, .. } = placement;
        let bad = || ForwardError::BadEndpoint { replica: replica.clone(), endpoint: endpoint.clone() };
        let endpoint: SocketAddr = endpoint.parse().map_err(|_| bad())?;
        let (namespace, pod) = match placement.pod_ref.split_once('/') {
            Some((namespace, pod)) => (namespace, pod.to_owned()),
            None => (cluster.system_namespace.as_str(), shared_pod(cluster, replica, endpoint).await?),
        };
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        // Tried at once, so that what is refused is said by name.
        let what = format!("forward ports of Pod {pod} in namespace {namespace}");
        drop(api.portforward(&pod, &[endpoint.port()]).await.map_err(|error| ClusterError::of::<Pod>(&what, error))?);
        Ok(forwarded(api, pod, endpoint.port()).await?)
    }
}

/// The Pod of its agent, which a replica shares that has none of its own: it has the replica's address.
async fn shared_pod(cluster: &Cluster, replica: &str, endpoint: SocketAddr) -> Result<String, Error> {
    let namespace = &cluster.system_namespace;
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let at_it = ListParams::default().fields(&format!("status.podIP={}", endpoint.ip()));
    let what = format!("list Pods in namespace {namespace}, which leads to the replica");
    let pods = api.list(&at_it).await.map_err(|error| ClusterError::of::<Pod>(&what, error))?;
    let no_pod = || ForwardError::NoPod { replica: replica.to_owned(), endpoint, namespace: namespace.clone() };
    Ok(pods.items.first().ok_or_else(no_pod)?.name_any())
}

fn serving(deployment: &ModelDeployment) -> Result<&PlacementStatus, ForwardError> {
    let placements = deployment.status.iter().flat_map(|status| &status.placements);
    let serving = |placement: &&PlacementStatus| placement.state == PlacementState::Ready && !placement.endpoint.is_empty();
    placements.into_iter().find(serving).ok_or_else(|| {
        let summary = deployment.status.as_ref().and_then(|status| status.summary.as_ref());
        let why = summary.map(|summary| summary.reason.clone()).filter(|reason| !reason.is_empty());
        let name = deployment.name_any();
        ForwardError::NoReplica { why: why.unwrap_or_else(|| "the operator has not placed it yet".to_owned()), name }
    })
}

/// A port of this machine, on the loopback address, behind which is the Pod's.
async fn forwarded(api: Api<Pod>, pod: String, port: u16) -> Result<Way, ForwardError> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let forwarding = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(forward(api.clone(), pod.clone(), port, connection));
        }
    });
    Ok(Way { url, forwarding: Some(forwarding) })
}

/// Whoever asks sees a connection that ends, and says so.
async fn forward(api: Api<Pod>, pod: String, port: u16, mut connection: TcpStream) {
    let Ok(mut forwarder) = api.portforward(&pod, &[port]).await else { return };
    let Some(mut stream) = forwarder.take_stream(port) else { return };
    // A client that is gone, or a Pod that is, ends both directions.
    let _ = tokio::io::copy_bidirectional(&mut connection, &mut stream).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubectl::testing::deployment;

    #[test]
    fn an_address_may_be_given_with_or_without_its_scheme() {
        assert_eq!(Way::direct("127.0.0.1:11434").url, "http://127.0.0.1:11434");
        assert_eq!(Way::direct("https://models.example/").url, "https://models.example");
    }

    #[test]
    fn a_model_that_does_not_serve_says_why() {
        let error = serving(&deployment(512)).unwrap_err();
        assert_eq!(error.to_string(), "no replica of smollm2 serves: the operator has not placed it yet");
    }
}
