//! The Kubernetes API of Stowage, group `stowage.dev`, version `v1alpha1`.
//!
//! [`ModelDeployment`] is what a user asks for, [`ModelNode`] is one node as Stowage sees it. One writer per field: users write `ModelDeployment.spec`; the
//! operator writes `ModelDeployment.status` and `ModelNode.spec.assignments`; admins write `ModelNode.spec.devices`; an agent writes the `status` of its node's
//! ModelNode. `crdgen` turns these types into `crds/generated/*.yaml`.
#![cfg_attr(test, allow(clippy::unwrap_used))]
// Printer columns repeat `type_ = "string"`, each in a group of its own; clippy takes them for repetitions.
#![allow(clippy::duplicated_attributes)]

pub mod candidate;
pub mod conditions;
pub mod definitions;
pub mod ledger;
pub mod log_line;
pub mod model_deployment;
pub mod model_node;
pub mod names;
pub mod refusal;
#[doc(hidden)]
pub mod testing;
pub mod yaml;

pub use model_deployment::{ModelDeployment, ModelDeploymentSpec, ModelDeploymentStatus};
pub use model_node::{ModelNode, ModelNodeSpec, ModelNodeStatus};
