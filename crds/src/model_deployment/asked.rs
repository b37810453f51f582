//! A ModelDeployment in the words of `placement`. Operator and `agent plan` ask through this, so they ask for the same.

use stowage_placement::Asked;

use super::ModelDeploymentSpec;

impl ModelDeploymentSpec {
    /// What the planner is asked for.
    pub fn asked(&self) -> Asked {
        let defaults = Asked::default();
        Asked {
            num_ctx: self.parameters.num_ctx,
            num_gpu: self.parameters.num_gpu.unwrap_or(defaults.num_gpu),
            kv_cache_type: self.kv_cache_type,
            parallel: self.parallel,
            num_batch: self.parameters.num_batch.unwrap_or(defaults.num_batch),
            policy: self.placement.policy,
            context_policy: self.placement.context_policy,
            min_context: self.placement.min_context,
            max_devices: (self.placement.device_selector.max_devices > 0).then_some(self.placement.device_selector.max_devices),
        }
    }
}
