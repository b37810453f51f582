//! What a machine offers on which no replica runs: for `agent plan`, which knows of none.

use stowage_crds::model_node::DeviceBackend;
use stowage_placement::layout::Backend;
use stowage_placement::offer::{offer, overdrawn};
use stowage_placement::{Bytes, Defaults, Device, HOST, Holder, NodeDevices, Who};

use super::{Gpu, GpuProcess, Reading};

/// The GPUs that the engine can use, and the host.
pub fn offers(reading: &Reading, defaults: Defaults) -> NodeDevices {
    let gpus = reading.gpus.iter().filter_map(|gpu| offered_gpu(gpu, defaults));
    let host = &reading.host;
    NodeDevices { gpus: gpus.collect(), host: device(HOST, host.memory, host.unreclaimable, defaults), defaults }
}

fn offered_gpu(gpu: &Gpu, defaults: Defaults) -> Option<Device> {
    let backend = match gpu.backend {
        DeviceBackend::None => return None,
        DeviceBackend::Cuda => Backend::Cuda,
        DeviceBackend::Simulated => Backend::SimulatedGpu,
    };
    let used = gpu.total.saturating_sub(gpu.free);
    let overdrawn = overdrawn(gpu.total, used, std::iter::empty(), defaults.margin(gpu.total));
    let holder = |process: &GpuProcess| {
        let who = Who::Process { pid: process.pid, name: process.name.clone() };
        let bytes = process.bytes?.saturating_sub(overdrawn);
        (bytes > Bytes::ZERO).then_some(Holder { who, bytes })
    };
    let holders = gpu.processes.iter().filter_map(holder).collect();
    let (overhead, uncertainty) = (defaults.overhead_bytes, defaults.uncertainty());
    let device = device(&gpu.uuid, gpu.total, used, defaults);
    Some(Device { backend, overhead, uncertainty, holders, ..device })
}

/// A device of `total` bytes of which `used` are in use.
pub fn device(id: &str, total: Bytes, used: Bytes, defaults: Defaults) -> Device {
    let margin = defaults.margin(total);
    Device { id: id.to_owned(), offered: offer(total, used, std::iter::empty(), margin), margin, ..Device::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_without_a_backend_is_offered_to_nobody_and_others_offer_what_is_free_less_the_margin() {
        let gpu = |uuid: &str, backend| Gpu { uuid: uuid.into(), backend, total: Bytes::gib(8), free: Bytes::gib(5), ..Gpu::default() };
        let reading =
            Reading { gpus: vec![gpu("GPU-a", DeviceBackend::None), gpu("GPU-b", DeviceBackend::Simulated)], ..Reading::default() };
        let devices = offers(&reading, Defaults::default());
        assert_eq!(devices.gpus.len(), 1);
        assert_eq!((devices.gpus[0].id.as_str(), devices.gpus[0].offered), ("GPU-b", Bytes(Bytes::gib(5).0 - Bytes::mib(256).0)));
    }
}
