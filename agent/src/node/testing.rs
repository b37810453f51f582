//! Objects that the tests of this module are about.

use stowage_crds::model_node::Assignment;
use stowage_crds::testing;
use stowage_placement::{Bytes, DeviceAllocation, DeviceKind, DevicePlan, HOST};

/// Serves a model on the host alone, with 1 GiB.
pub fn assignment(uid: &str) -> Assignment {
    Assignment {
        replica: format!("smol-{uid}"),
        plan: DevicePlan { processor: "100% CPU".into(), devices: vec![allocation(HOST, 1)], ..DevicePlan::default() },
        ..testing::assignment(uid)
    }
}

/// So many GiB on a device, planned when 20 were on offer.
pub fn allocation(id: &str, gib: u64) -> DeviceAllocation {
    let kind = if id == HOST { DeviceKind::Host } else { DeviceKind::Gpu };
    DeviceAllocation { id: id.to_owned(), kind, total_bytes: Bytes::gib(gib), free_bytes: Bytes::gib(20), ..DeviceAllocation::default() }
}
