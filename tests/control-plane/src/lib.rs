//! A real Kubernetes control plane on one machine: etcd, kube-apiserver and kube-controller-manager, on free ports of the loopback address.
//!
//! Any number of them run at once, each in a folder of its own, and none outlives the process that started it.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod binaries;
pub mod control_plane;
pub mod node;
pub mod processes;

pub use control_plane::{ControlPlane, ForNode, Options};
pub use node::Node;

/// What went wrong, with what the part in question printed last.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    #[error("building {binary} with `go build` failed ({status}); its last lines:\n{output}")]
    Build { binary: String, status: String, output: String },
    #[error(
        "`go` was not found: the control plane is built from its Go modules, which needs Go 1.26 or newer on PATH (or etcd and kube-apiserver in KUBEBUILDER_ASSETS)"
    )]
    NoGo,
    /// `free` and `needed` in MiB.
    #[error("the disk of {} has {free} MiB free, and a control plane needs {needed} MiB for its database and its logs", .directory.display())]
    Disk { directory: std::path::PathBuf, free: u64, needed: u64 },
    #[error("{name} ended while it was starting ({status}); its last lines:\n{log}")]
    Ended { name: String, status: String, log: String },
    #[error("{name} was not ready after {seconds} s; its last lines:\n{log}")]
    NotReady { name: String, seconds: u64, log: String },
    #[error("talking to the API server: {0}")]
    Kube(#[from] kube::Error),
    #[error("reading the kubeconfig that was just written: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error("making a key for service accounts: {0}")]
    Key(#[from] rcgen::Error),
}

impl Error {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Io { doing, source }
    }
}
