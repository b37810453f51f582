//! Objects that the tests of this module are about.

use stowage_crds::model_node::{AssignedSource, Assignment, AssignmentState, ModelDeploymentReference};
use stowage_placement::{Bytes, DeviceAllocation, DeviceKind, DevicePlan, HOST, Request};

/// Serves a model on the host alone, with 1 GiB.
pub fn assignment(uid: &str) -> Assignment {
    Assignment {
        uid: uid.to_owned(),
        replica: format!("smol-{uid}"),
        model_deployment: ModelDeploymentReference { namespace: "default".into(), name: "smol".into(), uid: "m".into() },
        revision: "0123456789".into(),
        state: AssignmentState::Serve,
        deadline: None,
        source: AssignedSource::default(),
        request: Request::default(),
        plan: DevicePlan { processor: "100% CPU".into(), devices: vec![allocation(HOST, 1)], ..DevicePlan::default() },
        max_num_ctx_on_gpu: None,
        max_num_ctx: None,
        parameters: Default::default(),
        system: String::new(),
        template: String::new(),
        aliases: Vec::new(),
        termination_grace_period_seconds: 30,
    }
}

/// So many GiB on a device, planned when 20 were on offer.
pub fn allocation(id: &str, gib: u64) -> DeviceAllocation {
    let kind = if id == HOST { DeviceKind::Host } else { DeviceKind::Gpu };
    DeviceAllocation { id: id.to_owned(), kind, total_bytes: Bytes::gib(gib), free_bytes: Bytes::gib(20), ..DeviceAllocation::default() }
}
