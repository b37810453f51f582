//! What only other hardware gives.

use crate::device_plan::{Device, NodeDevices, Planner};
use crate::fit_report::Suggestion;
use crate::fit_report::considered::Considered;
use crate::fit_report::suggestions::met_on;
use crate::units::Bytes;

/// The size of one GPU, of the kind that the node has, that would do beside the same host. In whole GiB, as `agent plan --gpu` takes it.
pub(super) fn of(considered: &Considered<'_>) -> Option<Suggestion> {
    let (wished, (backend, overhead)) = (considered.demand.wished(considered.plan().total_layers.0), considered.gpu_kind());
    if wished == 0 {
        return None;
    }
    let NodeDevices { gpus: _, host, defaults } = considered.devices;
    let node = |offered| NodeDevices {
        gpus: vec![Device { id: "gpu0".into(), backend, offered, overhead, ..Device::default() }],
        host: host.clone(),
        defaults: *defaults,
    };
    let unlimited = node(Bytes::MAX);
    let planner = Planner::new(considered.summary, &unlimited, |_| true, considered.engine, considered.asked.max_devices);
    let needed = planner.sized(&considered.request).ok()?.gpu_needs(wished, 1).total();
    let size = defaults.smallest_gpu(needed)?;
    let gib = size.0 >> 30;
    let message = format!("one GPU of {gib} GiB with nothing else on it holds the {needed} that this needs there");
    met_on(&node(defaults.offered_by(size)), considered, "device", format!("{gib}GiB"), message)
}
