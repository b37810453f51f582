//! A ModelNode as a candidate for a replica. The operator decides by it, and `kubectl stowage plan` says what it would decide.

use std::collections::BTreeMap;

use stowage_placement::{Asked, ModelSummary, NodeDevices, PlacementPolicy};

use crate::ModelNode;
use crate::ledger::{Ledger, matches};
use crate::model_deployment::{DeviceSelector, PlacementSpec};
use crate::model_node::ModelFile;

/// Whether the Node's labels are those asked for, and where the deviceSelector names a kind of GPU, that it has one; unless no GPU is asked for.
pub fn selector_matches(placement: &PlacementSpec, asked: &Asked, labels: &BTreeMap<String, String>, node: &ModelNode) -> bool {
    let labels_match = placement.node_selector.iter().all(|(label, value)| labels.get(label) == Some(value));
    let selector = &placement.device_selector;
    let names_a_gpu = !selector.product.is_empty() || selector.min_memory.0 > 0;
    let on_cpu = asked.policy == PlacementPolicy::RequireCPU || asked.num_gpu == 0;
    let mut gpus = node.status.iter().flat_map(|status| &status.devices);
    labels_match && (!names_a_gpu || on_cpu || gpus.any(|gpu| matches(selector, gpu)))
}

/// What a node has for the replica. One that the selector keeps out is told what it could have if the selector admitted its GPUs.
pub fn devices(ledger: &Ledger<'_>, placement: &PlacementSpec, selector_matches: bool) -> NodeDevices {
    let devices = ledger.devices(&placement.device_selector);
    match !selector_matches && devices.gpus.is_empty() {
        true => ledger.devices(&DeviceSelector::default()),
        false => devices,
    }
}

/// A model of the agents' model directories.
#[derive(Clone, Debug, PartialEq)]
pub struct Meant<'a> {
    pub summary: &'a ModelSummary,
    /// The nodes that have it, each with its file.
    pub nodes: BTreeMap<&'a str, &'a ModelFile>,
}

/// Which model a path in the model directory means, of the files that nodes (by name) have there: the same name can stand for different files; the one
/// that most nodes have is meant.
pub fn meant<'a>(files: impl Iterator<Item = (&'a str, &'a ModelFile)>, path: &str) -> Option<Meant<'a>> {
    let mut by_summary: Vec<Meant<'a>> = Vec::new();
    for (node, file) in files.filter(|(_, file)| file.path == path) {
        let Some(summary) = &file.summary else { continue };
        match by_summary.iter_mut().find(|known| known.summary == summary) {
            Some(known) => drop(known.nodes.insert(node, file)),
            None => by_summary.push(Meant { summary, nodes: BTreeMap::from([(node, file)]) }),
        }
    }
    by_summary.into_iter().reduce(|best, other| if other.nodes.len() > best.nodes.len() { other } else { best })
}
