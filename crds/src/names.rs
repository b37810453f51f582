//! Names that operator and agent must agree on.

/// Where the operator, the agents and their Leases live, unless told otherwise.
pub const SYSTEM_NAMESPACE: &str = "stowage-system";
/// Server-side apply's field manager of the operator.
pub const OPERATOR_MANAGER: &str = "stowage-operator";
/// Server-side apply's field manager of an agent.
pub const AGENT_MANAGER: &str = "stowage-agent";
/// On Services and EndpointSlices: the ModelDeployment that they belong to.
pub const MODEL_DEPLOYMENT_LABEL: &str = "stowage.dev/model-deployment";
/// On Pods of workers, which are in another namespace than it: that of the ModelDeployment.
pub const MODEL_DEPLOYMENT_NAMESPACE_LABEL: &str = "stowage.dev/model-deployment-namespace";
/// On Pods of workers: the uid of the assignment that they carry out.
pub const ASSIGNMENT_LABEL: &str = "stowage.dev/assignment";
/// On EndpointSlices and Pods of workers: the replica behind it.
pub const REPLICA_LABEL: &str = "stowage.dev/replica";
/// Value of `endpointslice.kubernetes.io/managed-by` on the EndpointSlices that the operator writes.
pub const ENDPOINT_SLICE_MANAGER: &str = "stowage.dev";
/// On agents' Leases, so that they can be listed apart from other Leases of the namespace.
pub const NODE_LEASE_LABEL: &str = "stowage.dev/node-lease";
/// How long such a Lease holds: silence after which the node takes part in no decision.
pub const NODE_LEASE_SECONDS: i32 = 40;

/// The Lease by which the agent of a node says that it is alive.
pub fn node_lease(node: &str) -> String {
    format!("node-{node}")
}

/// Longest value of a label.
const LONGEST_LABEL: usize = 63;

/// A replica's name as the value of a label. Its end tells it apart from its siblings, so where the name is too long, the end is kept.
pub fn label_value(replica: &str) -> &str {
    let start = replica.len().saturating_sub(LONGEST_LABEL);
    replica.get(start..).unwrap_or(replica).trim_start_matches(['-', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_never_too_long() {
        let replica = format!("{}-0123456789-10", "m".repeat(50));
        assert!(label_value(&replica).len() <= LONGEST_LABEL && label_value(&replica).ends_with("-0123456789-10"));
        assert_eq!(label_value("m-0123456789-0"), "m-0123456789-0");
    }
}
