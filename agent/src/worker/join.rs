//! How a worker in a Pod comes to its order: it knows its assignment's uid, and asks its node's agent for the rest, however long that is away.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;

use super::lifeline::{self, Lifeline};
use super::link::RECONNECT;
use super::protocol::{Connection, FromAgent, FromWorker, Join, VERSION};
use super::record::{self, Order};
use super::run::WorkerError;

/// After an agent has closed the connection without an order: it does not know the assignment, or not yet.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What the Pod of a worker says of it.
#[derive(Clone, Debug, clap::Args)]
pub struct PodArguments {
    /// The assignment that the worker's Pod was made for.
    #[arg(long, env = "STOWAGE_ASSIGNMENT_UID", value_name = "UID")]
    pub assignment: Option<String>,
    /// Of the Pod.
    #[arg(long, env = "STOWAGE_POD_UID", value_name = "UID", default_value = "")]
    pub pod_uid: String,
    /// Of the Pod, at which its worker is reached.
    #[arg(long, env = "STOWAGE_POD_ADDRESS", value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub pod_address: IpAddr,
    /// Where the worker listens; 0: any.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub port: u16,
}

/// Asks until an agent has given the order, and takes hold of the lifeline, which is to be kept.
pub(super) async fn join(socket: &Path, uid: &str, pod: &PodArguments) -> Result<(Order, Lifeline), WorkerError> {
    let order = loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => match ask(Connection::new(stream), uid).await {
                Some(order) => break order,
                None => tokio::time::sleep(ASK_AGAIN).await,
            },
            Err(error) => {
                tracing::debug!(%error, "no agent listens");
                tokio::time::sleep(RECONNECT).await;
            }
        }
    };
    let path: PathBuf = record::lifeline(socket.parent().unwrap_or(Path::new("/")), uid);
    let held = lifeline::hold(&path).await.map_err(|source| WorkerError::Lifeline { path, source })?;
    Ok((Order { bind: bind(pod.pod_address), port: pod.port, pod_address: Some(pod.pod_address), ..order }, held))
}

/// All of the Pod's own addresses: who asks through the API server (`kubectl port-forward`) comes by its loopback. Where there is nothing but that, no other.
fn bind(pod_address: IpAddr) -> IpAddr {
    match pod_address {
        address if address.is_loopback() => address,
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

async fn ask(mut connection: Connection, uid: &str) -> Option<Order> {
    connection.send(&FromWorker::Join(Join { version: VERSION, assignment_uid: uid.to_owned() })).await.ok()?;
    tracing::info!(uid, "waiting for the agent's order");
    loop {
        if let FromAgent::Order(order) = connection.receive().await.ok()?? {
            return Some(*order);
        }
    }
}
