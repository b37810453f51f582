//! A whole Stowage on one machine: a real control plane, the operator and any number of agents as real processes.
//!
//! `stowage-up` (behind `make run`) and the tests of this crate stand on it.

pub mod api;
pub mod chaos;
pub mod chart;
pub mod client;
pub mod cluster;
pub mod drain;
pub mod endpoints;
pub mod file_server;
pub mod idle_agents;
pub mod installed;
pub mod machine;
pub mod manifest;
pub mod metrics_api;
pub mod models;
pub mod observer;
pub mod page;
pub mod played_kubelet;
mod prepare;
pub mod reasons;
pub mod stranger;
pub mod tls;
pub mod traffic;
pub mod watch;
pub mod workers;

pub use cluster::{Agent, AgentOptions, Cluster, Leader, Settings};
pub use machine::{SimulatedGpu, SimulatedMachine};
pub use stranger::Stranger;
