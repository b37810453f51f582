//! Plans for this machine's memory or one GPU alone, for whoever measures a model without a cluster.

use std::path::Path;

use stowage_placement::{Asked, Bytes, Device, ModelSummary, NodeDevices, PlacementPolicy, Reason, Request, decide};

use crate::api::{BackendChoice, EngineError, LoadRequest, Start};
use crate::file_mmap::ModelFile;
use crate::load::gpu_layout;

/// What loads a file with all layers on the host, whatever memory there is.
pub fn on_host(path: &Path, request: &Request, num_thread: u32) -> Result<LoadRequest, EngineError> {
    let asked = Asked { num_gpu: 0, policy: PlacementPolicy::RequireCPU, ..asked(request) };
    load_request(path, &asked, Vec::new(), num_thread)
}

/// What loads a file with all layers on the GPU of this UUID, whatever it has free.
pub fn on_gpu(path: &Path, request: &Request, uuid: &str, num_thread: u32) -> Result<LoadRequest, EngineError> {
    let gpu = Device { id: uuid.into(), backend: gpu_layout(uuid), offered: Bytes(u64::MAX / 4), ..Device::default() };
    let asked = Asked { num_gpu: i64::from(u32::MAX), policy: PlacementPolicy::RequireGPU, ..asked(request) };
    load_request(path, &asked, vec![gpu], num_thread)
}

fn asked(request: &Request) -> Asked {
    Asked {
        num_ctx: Some(request.num_ctx),
        kv_cache_type: request.kv_cache_type,
        parallel: request.parallel,
        num_batch: request.num_batch,
        ..Asked::default()
    }
}

fn load_request(path: &Path, asked: &Asked, gpus: Vec<Device>, num_thread: u32) -> Result<LoadRequest, EngineError> {
    let file = ModelFile::open(path)?;
    let summary = ModelSummary::from_header(file.header(), file.size());
    let summary = summary.map_err(|error| EngineError::new(Reason::InvalidModelFile, format!("{}: {error}", path.display())))?;
    let refused = |refusal: stowage_placement::Refusal| EngineError::new(refusal.reason, refusal.message);
    let decision = decide(&summary, asked, &NodeDevices::new(gpus, Bytes(u64::MAX / 2))).map_err(refused)?;
    decision.verdict.map_err(refused)?;
    Ok(LoadRequest {
        path: path.into(),
        start: Start::InMemory,
        plan: decision.report.plan,
        request: decision.report.request,
        num_thread,
        template: String::new(),
        backend: BackendChoice::Cpu,
    })
}
