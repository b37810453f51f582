//! A plan for this machine's memory alone, for whoever measures a model without a cluster.

use std::path::Path;

use stowage_placement::{Asked, Bytes, ModelSummary, NodeDevices, PlacementPolicy, Reason, Request, decide};

use crate::api::{BackendChoice, EngineError, LoadRequest};
use crate::file_mmap::ModelFile;

/// What loads a file with all layers on the host, whatever memory there is.
pub fn on_host(path: &Path, request: &Request, num_thread: u32) -> Result<LoadRequest, EngineError> {
    let file = ModelFile::open(path)?;
    let summary = ModelSummary::from_header(file.header(), file.size());
    let summary = summary.map_err(|error| EngineError::new(Reason::InvalidModelFile, format!("{}: {error}", path.display())))?;
    let asked = Asked {
        num_ctx: Some(request.num_ctx),
        num_gpu: 0,
        kv_cache_type: request.kv_cache_type,
        parallel: request.parallel,
        num_batch: request.num_batch,
        policy: PlacementPolicy::RequireCPU,
        ..Asked::default()
    };
    let refused = |refusal: stowage_placement::Refusal| EngineError::new(refusal.reason, refusal.message);
    let decision = decide(&summary, &asked, &NodeDevices::new(Vec::new(), Bytes(u64::MAX / 2))).map_err(refused)?;
    decision.verdict.map_err(refused)?;
    Ok(LoadRequest {
        path: path.into(),
        plan: decision.report.plan,
        request: decision.report.request,
        num_thread,
        template: String::new(),
        backend: BackendChoice::Cpu,
    })
}
