//! Which layers go on which device of one node, with the bytes on each.
//!
//! As many layers as truly fit are put on GPU, the last ones first, and each device that gets a layer also pays for its scratch memory and for
//! its driver's context. Of the ways to hold the same layers, the one with the fewest GPUs is taken; one GPU is the tightest that holds them, several
//! are filled evenly. Equal ones are told apart by their ids.
//!
//! Where not all layers of a mixture of experts fit and as many as fit are asked for, all of them may be put on GPU but for the experts of the first
//! ones, which the host then holds: see [`SizedPlanner::fullest`].

mod costs;
mod packing;
mod planner;
mod split;

pub(crate) use costs::{GpuCosts, HostCosts};
pub(crate) use planner::{MOST_TOLD_APART, Needs, Planner, SizedPlanner};
pub(crate) use split::Split;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::footprint::FootprintError;
use crate::layout::Backend;
use crate::model_summary::ModelSummary;
use crate::offer::Defaults;
use crate::request::Request;
use crate::units::{Bytes, LayerCount};

/// What a host that computes by this backend has wherever the layers are: the input layer's weights and the worker's process. [`DevicePlan::processor`] leaves it out.
pub fn on_any_host(summary: &ModelSummary, request: &Request, backend: Backend) -> Result<Bytes, FootprintError> {
    Ok(HostCosts::new(summary, request, backend)?.without_layers())
}

/// The plan for one replica on one node: one allocation a device that takes part, the host always among them and last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DevicePlan {
    /// As a person reads it: `100% GPU`, `100% CPU`, `38%/62% CPU/GPU` (shares of bytes, without input embeddings and the process). Where the host holds experts, it is
    /// such a share even if all layers are on GPU.
    pub processor: String,
    /// Layers on GPU, the output layer counted.
    pub gpu_layers: LayerCount,
    /// Layers of the model, the output layer counted.
    pub total_layers: LayerCount,
    pub devices: Vec<DeviceAllocation>,
}

/// Which kind of device it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    #[default]
    Gpu,
    Host,
}

/// What one device holds of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceAllocation {
    /// A GPU's UUID (`gpu0`, `gpu1`, … where `agent plan` was given sizes alone), or `host`.
    pub id: String,
    /// A GPU, or the host.
    pub kind: DeviceKind,
    /// First and last layer of each run, both included; the output layer is `totalLayers - 1`.
    #[serde(default)]
    pub layer_ranges: Vec<[u32; 2]>,
    /// Likewise the layers whose experts the host holds while all else of them is on GPU.
    #[serde(default)]
    pub expert_layer_ranges: Vec<[u32; 2]>,
    /// Of the weights, as allocated there.
    pub weights_bytes: Bytes,
    /// Of the KV cache, for all sequences.
    pub kv_cache_bytes: Bytes,
    /// Of recurrent states.
    pub state_bytes: Bytes,
    /// Of copies of rings and states, from which a prefix of a sequence can be gone on.
    pub checkpoint_bytes: Bytes,
    /// Of working space, for `num_batch` tokens.
    pub compute_bytes: Bytes,
    /// On a GPU what its driver and libraries take, on the host what the worker's process takes beside the model.
    pub overhead_bytes: Bytes,
    /// All of the above.
    pub total_bytes: Bytes,
    /// How far `totalBytes` may be off, up or down: what is known of this kind of GPU's overhead. 0 for the host.
    #[serde(default)]
    pub uncertainty_bytes: Bytes,
    /// What the device offered when the plan was made, its margin already taken off.
    pub free_bytes: Bytes,
    /// What is left free beside that.
    #[serde(default)]
    pub margin_bytes: Bytes,
}

/// One device of a node, as the planner sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// A GPU's UUID; its name in the plan. The host's is [`HOST`].
    pub id: String,
    /// What computes there: decides how tensors are laid out, and what can run.
    pub backend: Backend,
    /// What it offers to a new replica, as [`crate::offer::offer`] gives it: margin and everybody else's bytes already taken off.
    #[serde(rename = "offeredBytes")]
    pub offered: Bytes,
    /// What is left free of it beside that. It decides nothing here; plans show it.
    #[serde(rename = "marginBytes", default)]
    pub margin: Bytes,
    /// What the driver's context and libraries take there for one replica; 0 for the host.
    #[serde(rename = "overheadBytes", default)]
    pub overhead: Bytes,
    /// How far the overhead may be off. It decides nothing here: the margin is wide enough for it; plans show it.
    #[serde(rename = "uncertaintyBytes", default)]
    pub uncertainty: Bytes,
    /// Who holds what of the device, as far as that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<Holder>,
}

/// Somebody who holds bytes of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    pub who: Who,
    /// What the device would offer more without them. Of a device that is more than full that is less than what they hold, by
    /// [`crate::offer::overdrawn`], and then several together give back at least the sum of theirs.
    pub bytes: Bytes,
}

/// Who holds bytes of a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Who {
    /// A replica, by its ModelDeployment.
    Replica {
        /// Of the ModelDeployment.
        namespace: String,
        /// The ModelDeployment's name.
        deployment: String,
        /// The replica's name.
        replica: String,
    },
    /// A process that is none of ours.
    Process {
        /// Its id on the host.
        pid: u32,
        /// Its name, where that can be seen.
        name: String,
    },
}

/// The host's id in plans.
pub const HOST: &str = "host";

/// What one node has for a replica. GPUs that the engine has no backend for, or that the deviceSelector does not match, are left out by whoever builds this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeDevices {
    #[serde(default)]
    pub gpus: Vec<Device>,
    pub host: Device,
    /// With which the offers were made.
    pub defaults: Defaults,
}

impl NodeDevices {
    /// A host with this much memory on offer, and GPUs.
    pub fn new(gpus: Vec<Device>, host_offered: Bytes) -> NodeDevices {
        let host = Device { id: HOST.into(), backend: Backend::Cpu, offered: host_offered, ..Device::default() };
        NodeDevices { gpus, host, defaults: Defaults::default() }
    }
}

#[cfg(test)]
mod tests;
