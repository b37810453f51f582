//! What the plan is made on: devices of the sizes that flags name, the machine's own, or a node's as its ModelNode has them.

use clap::Args;
use kube::ResourceExt;
use stowage_crds::ledger::Ledger;
use stowage_crds::model_deployment::DecisionRecord;
use stowage_crds::model_node::Assignment;
use stowage_crds::{ModelDeployment, ModelNode};
use stowage_placement::{Bytes, Defaults, Device, HOST, NodeDevices};

use super::{Machine, PlanArgs};
use crate::devices::device;

/// What is assumed of devices of which nobody says otherwise; the operator has the same flags.
#[derive(Args, Clone, Copy, Debug)]
pub struct DefaultsArgs {
    /// Percent of each device that is left free.
    #[arg(long, value_name = "PERCENT", default_value_t = Defaults::default().margin_percent, value_parser = clap::value_parser!(u32).range(..=90))]
    pub margin_percent: u32,
    /// At least so much of each device is left free.
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub least_margin: Bytes,
    /// What a GPU's driver and libraries take for one replica, where it has not been measured.
    #[arg(long, value_name = "SIZE", default_value = "512MiB")]
    pub overhead: Bytes,
}

impl DefaultsArgs {
    pub fn defaults(&self) -> Defaults {
        Defaults { margin_percent: self.margin_percent, least_margin_bytes: self.least_margin, overhead_bytes: self.overhead }
    }
}

/// The devices, and whose they are.
pub(super) struct Offered {
    pub devices: NodeDevices,
    /// For people: which node's, and as of when. Nothing where flags or the machine say it.
    pub whose: Option<String>,
}

impl Offered {
    pub fn of(args: &PlanArgs, machine: &Machine, node: Option<&ModelNode>, deployment: Option<&ModelDeployment>) -> Offered {
        let Some(node) = node else { return Offered { devices: named(args, machine), whose: None } };
        match recorded(node, deployment).filter(|_| !args.now) {
            Some(DecisionRecord { node, resource_version, offered, .. }) => Offered {
                devices: offered.clone(),
                whose: Some(format!("node {node} at version {resource_version}, on which it was decided; --now takes the file's figures")),
            },
            None => Offered {
                devices: on_node(node, deployment, args.defaults.defaults()),
                whose: Some(format!("node {} as its agent published it last", node.name_any())),
            },
        }
    }
}

/// The machine's own, but for those that flags name.
fn named(args: &PlanArgs, machine: &Machine) -> NodeDevices {
    let (mut devices, defaults) = (machine.devices.clone(), args.defaults.defaults());
    if !args.gpus.is_empty() {
        let each = args.gpus.iter().flat_map(|gpus| std::iter::repeat_n(gpus.free, gpus.count));
        let gpu = |(index, free): (usize, Bytes)| Device {
            backend: machine.gpu_backend,
            overhead: defaults.overhead_bytes,
            uncertainty: defaults.uncertainty(),
            ..device(&format!("gpu{index}"), free, Bytes::ZERO, defaults)
        };
        devices.gpus = each.enumerate().map(gpu).collect();
    }
    if let Some(free) = args.memory {
        devices.host = device(HOST, free, Bytes::ZERO, defaults);
    }
    NodeDevices { defaults, ..devices }
}

/// On what the ModelDeployment was decided, where that was on this node.
fn recorded<'a>(node: &ModelNode, deployment: Option<&'a ModelDeployment>) -> Option<&'a DecisionRecord> {
    let record = deployment?.status.as_ref()?.decision.as_ref()?;
    (record.node == node.name_any() && Some(&record.model_node_uid) == node.uid().as_ref()).then_some(record)
}

/// What the node offers to a replica of this ModelDeployment, as if none of its own were there.
fn on_node(node: &ModelNode, deployment: Option<&ModelDeployment>, defaults: Defaults) -> NodeDevices {
    let key = |deployment: &ModelDeployment| (deployment.namespace().unwrap_or_else(|| "default".to_owned()), deployment.name_any());
    let own = deployment.map(key);
    let is_own = |assignment: &Assignment| {
        let owner = &assignment.model_deployment;
        own.as_ref().is_some_and(|(namespace, name)| (namespace, name) == (&owner.namespace, &owner.name))
    };
    let selector = deployment.map(|deployment| deployment.spec.placement.device_selector.clone()).unwrap_or_default();
    Ledger::without(node, defaults, is_own).devices(&selector)
}
