//! What a machine offers on which no replica runs: for `agent plan`, which knows of none.

use stowage_crds::model_node::DeviceBackend;
use stowage_placement::layout::Backend;
use stowage_placement::offer::{DEFAULT_OVERHEAD, default_margin, offer};
use stowage_placement::{Bytes, Device, NodeDevices};

use super::{Gpu, Reading};

/// The GPUs that the engine can use, and the host.
pub fn offers(reading: &Reading) -> NodeDevices {
    let host = available(reading.host.memory, reading.host.unreclaimable);
    NodeDevices::new(reading.gpus.iter().filter_map(gpu).collect(), host)
}

fn gpu(gpu: &Gpu) -> Option<Device> {
    let backend = match gpu.backend {
        DeviceBackend::None => return None,
        DeviceBackend::Cuda => Backend::Cuda,
        DeviceBackend::Simulated => Backend::SimulatedGpu,
    };
    let offered = available(gpu.total, gpu.total.saturating_sub(gpu.free));
    Some(Device { id: gpu.uuid.clone(), backend, offered, overhead: DEFAULT_OVERHEAD })
}

fn available(total: Bytes, used: Bytes) -> Bytes {
    offer(total, used, std::iter::empty(), default_margin(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_without_a_backend_is_offered_to_nobody_and_others_offer_what_is_free_less_the_margin() {
        let gpu = |uuid: &str, backend| Gpu { uuid: uuid.into(), backend, total: Bytes::gib(8), free: Bytes::gib(5), ..Gpu::default() };
        let reading =
            Reading { gpus: vec![gpu("GPU-a", DeviceBackend::None), gpu("GPU-b", DeviceBackend::Simulated)], ..Reading::default() };
        let devices = offers(&reading);
        assert_eq!(devices.gpus.len(), 1);
        assert_eq!((devices.gpus[0].id.as_str(), devices.gpus[0].offered), ("GPU-b", Bytes(Bytes::gib(5).0 - Bytes::mib(256).0)));
    }
}
