//! The cluster's nodes as candidates: what the operator sees of them, as far as the caller may see it too.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::{Api, ResourceExt};
use stowage_crds::ledger::Ledger;
use stowage_crds::{ModelNode, candidate, names};
use stowage_placement::{Defaults, Node};

use super::cluster::{Cluster, ClusterError, all};
use super::model::Question;

/// What was read of the nodes.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    model_nodes: Vec<ModelNode>,
    /// By name; `None`: the caller may not see them.
    nodes: Option<BTreeMap<String, KubeNode>>,
    leases: Option<BTreeMap<String, Lease>>,
    now: Timestamp,
}

impl Seen {
    /// What can't be seen is assumed to be as it should be, and told.
    pub async fn read(cluster: &Cluster) -> Result<Seen, ClusterError> {
        let model_nodes = all(&Api::all(cluster.client.clone()), "list ModelNodes").await?;
        let nodes = if_allowed(all::<KubeNode>(&Api::all(cluster.client.clone()), "list Nodes").await)?;
        let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), &cluster.system_namespace);
        let leases = if_allowed(all(&leases, "list Leases").await)?;
        Ok(Seen::new(model_nodes, nodes, leases, Timestamp::now()))
    }

    pub fn new(mut model_nodes: Vec<ModelNode>, nodes: Option<Vec<KubeNode>>, leases: Option<Vec<Lease>>, now: Timestamp) -> Seen {
        model_nodes.sort_by_key(|node| node.name_any());
        let nodes = nodes.map(|nodes| nodes.into_iter().map(|node| (node.name_any(), node)).collect());
        let leases = leases.map(|leases| leases.into_iter().map(|lease| (lease.name_any(), lease)).collect());
        Seen { model_nodes, nodes, leases, now }
    }

    pub fn model_nodes(&self) -> &[ModelNode] {
        &self.model_nodes
    }

    /// What had to be assumed.
    pub fn notes(&self) -> Vec<String> {
        let notes = [
            self.nodes.is_none().then_some("this account may not list Nodes: none is taken to be cordoned, and labels are not looked at"),
            self.leases.is_none().then_some("this account may not list the agents' Leases: every agent is taken to be alive"),
        ];
        notes.into_iter().flatten().map(str::to_owned).collect()
    }

    /// The nodes that can have the model, each as the operator would see it, the question's own replicas counted as gone.
    pub fn candidates(&self, question: &Question, defaults: Defaults) -> Vec<Node> {
        let can_have_it = |node: &&ModelNode| question.can_be_on(&node.name_any());
        self.model_nodes.iter().filter(can_have_it).map(|node| self.candidate(question, node, defaults)).collect()
    }

    fn candidate(&self, question: &Question, node: &ModelNode, defaults: Defaults) -> Node {
        let name = node.name_any();
        let ledger = Ledger::without(node, defaults, |assignment| question.is_own(assignment));
        let object = self.nodes.as_ref().map(|nodes| nodes.get(&name));
        let selector_matches = match object {
            // Labels that can't be seen are taken to match; which GPUs there are is seen.
            None => {
                let placement =
                    stowage_crds::model_deployment::PlacementSpec { node_selector: BTreeMap::new(), ..question.placement.clone() };
                candidate::selector_matches(&placement, &question.asked, &BTreeMap::new(), node)
            }
            Some(object) => {
                let labels = object.map(|object| object.labels().clone()).unwrap_or_default();
                candidate::selector_matches(&question.placement, &question.asked, &labels, node)
            }
        };
        Node {
            ready: self.is_alive(&name),
            schedulable: object.is_none_or(|object| object.is_some_and(|object| !is_cordoned(object))),
            selector_matches,
            assignments: ledger.assignments(),
            has_model_file: question.present_on.contains(&name),
            siblings: 0,
            devices: candidate::devices(&ledger, &question.placement, selector_matches),
            name,
        }
    }

    /// Whether the agent's Lease is fresh by this machine's clock.
    fn is_alive(&self, node: &str) -> bool {
        let Some(leases) = &self.leases else { return true };
        let Some(spec) = leases.get(&names::node_lease(node)).and_then(|lease| lease.spec.as_ref()) else { return false };
        let seconds = spec.lease_duration_seconds.unwrap_or(names::NODE_LEASE_SECONDS);
        spec.renew_time.as_ref().is_some_and(|renewed| self.now.duration_since(renewed.0).as_secs() <= i64::from(seconds))
    }
}

fn is_cordoned(node: &KubeNode) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
}

fn if_allowed<T>(read: Result<T, ClusterError>) -> Result<Option<T>, ClusterError> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_forbidden() => Ok(None),
        Err(error) => Err(error),
    }
}
