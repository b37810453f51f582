//! The node side of Stowage: what the node has, which model files lie on it, and the workers that serve its replicas.
//!
//! Invariant: an agent reads and writes nothing in the cluster but its own ModelNode, its own Lease and Events. It never plans: an assignment
//! is carried out as it stands, or refused with a reason. (`plan`, `kubectl` and `smoke_test` are commands of people, and act as whoever calls them.)
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bench;
pub mod calibrate;
pub mod config;
pub mod devices;
pub mod kubectl;
pub mod model_header;
pub mod node;
pub mod plan;
pub mod prepare;
pub mod run;
pub mod serve;
pub mod smoke_test;
pub mod store;
pub mod worker;
