//! Names that operator and agent must agree on.

/// Where the operator, the agents and their Leases live, unless told otherwise.
pub const SYSTEM_NAMESPACE: &str = "stowage-system";
/// Server-side apply's field manager of the operator.
pub const OPERATOR_MANAGER: &str = "stowage-operator";
/// Server-side apply's field manager of an agent.
pub const AGENT_MANAGER: &str = "stowage-agent";
/// On Services and EndpointSlices: the ModelDeployment that they belong to.
pub const MODEL_DEPLOYMENT_LABEL: &str = "stowage.dev/model-deployment";
/// On EndpointSlices: the replica behind it.
pub const REPLICA_LABEL: &str = "stowage.dev/replica";
/// Value of `endpointslice.kubernetes.io/managed-by` on the EndpointSlices that the operator writes.
pub const ENDPOINT_SLICE_MANAGER: &str = "stowage.dev";
/// On agents' Leases, so that they can be listed apart from other Leases of the namespace.
pub const NODE_LEASE_LABEL: &str = "stowage.dev/node-lease";

/// The Lease by which the agent of a node says that it is alive.
pub fn node_lease(node: &str) -> String {
    format!("node-{node}")
}
