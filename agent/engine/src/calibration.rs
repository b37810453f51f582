//! What a process takes of a GPU beside what it allocates there: the driver's context, its libraries, and kernels with what they need to run.
//!
//! Nobody can compute it, and a bare context misses most of it. So small models are loaded that between them run every kernel in the shapes in which it is run,
//! prompts and captured steps among them; what the driver then says of the process, less what was allocated, is what any replica will take.

use std::path::Path;

use stowage_placement::gguf::GgmlType;
use stowage_placement::{Bytes, KvCacheType, Request, Tokens, capability};

use crate::api::EngineError;
use crate::batch::Batch;
use crate::host_plan::on_gpu;
use crate::model::LoadedModel;
use crate::synthetic::{Family, Shape, Synthetic, Weights};

/// Sequences at once: as many as are gone through without tensor cores.
const PARALLEL: u32 = 8;
/// Tokens of a prompt, which are more than attention looks back at without being split.
const PROMPT: u32 = 300;
/// Tokens of a batch.
const BATCH: u32 = 64;
/// Steps of one shape: seen, captured, replayed.
const STEPS: u32 = 3;
const SEED: u64 = 1;

/// A small model, and what is kept of its keys and values.
struct Small {
    name: &'static str,
    shape: Shape,
    cache: KvCacheType,
    /// Of its matrices, in turns.
    types: &'static [GgmlType],
}

/// Between them: every type of weights, heads of up to 128, 256 and 512 elements, experts, caps, and a quantised cache.
fn small_models() -> [Small; 3] {
    let llama = Shape { blocks: 3, context: 512, ..Shape::smallest() };
    let with_experts = Shape { blocks: 1, heads: 1, head_length: 256, experts: Some((4, 2)), ..llama.clone() };
    let capped = Shape { family: Family::Gemma2, blocks: 2, heads: 1, head_length: 512, ..llama.clone() };
    let usual = &[GgmlType::Q4_K, GgmlType::Q6_K];
    [
        Small { name: "types", shape: llama, cache: KvCacheType::F16, types: capability::WEIGHT_TYPES },
        Small { name: "experts", shape: with_experts, cache: KvCacheType::Q8_0, types: usual },
        Small { name: "capped", shape: capped, cache: KvCacheType::F16, types: usual },
    ]
}

/// Models that have run every kernel on a GPU, and are still there.
pub struct Calibrated {
    models: Vec<LoadedModel>,
}

impl Calibrated {
    /// Writes the models into `folder`, which is removed again by whoever made it, and runs each of them with all layers on the GPU of this UUID.
    ///
    /// Errors: LoadFailed where a file can't be written; those of loading a model and of computing with it.
    pub fn run(folder: &Path, uuid: &str) -> Result<Calibrated, EngineError> {
        let write = |small: &Small| {
            let Small { name, shape, types, .. } = small;
            let path = folder.join(format!("{name}.gguf"));
            let written = Synthetic::new(shape, |_, number| types[number % types.len()]).write(&path, Weights::Random, SEED);
            let failed = |error| EngineError::new(stowage_placement::Reason::LoadFailed, format!("writing {}: {error}", path.display()));
            written.map_err(failed).map(|()| path)
        };
        let models = small_models().into_iter().map(|small| {
            let request =
                Request { num_ctx: Tokens(512), num_batch: BATCH, parallel: PARALLEL, kv_cache_type: small.cache, ..Request::default() };
            let mut model = LoadedModel::load(&on_gpu(&write(&small)?, &request, uuid, 1)?, &mut |_| {})?;
            exercise(&mut model)?;
            Ok(model)
        });
        Ok(Calibrated { models: models.collect::<Result<_, EngineError>>()? })
    }

    /// What the models take of the GPU of this UUID by their own count.
    pub fn allocated(&self, uuid: &str) -> Bytes {
        let devices = self.models.iter().flat_map(LoadedModel::measured).filter(|device| device.id == uuid);
        devices.map(|device| device.total()).sum()
    }
}

/// A prompt in each slot, then answers of one sequence and of several together.
fn exercise(model: &mut LoadedModel) -> Result<(), EngineError> {
    model.self_test()?;
    model.measure_speed()?;
    let vocabulary = model.vocabulary() as u32;
    let mut batch = Batch::default();
    for slot in 0..PARALLEL {
        for first in (0..PROMPT).step_by(BATCH as usize) {
            let tokens: Vec<u32> = (first..PROMPT.min(first + BATCH)).map(|position| position % vocabulary).collect();
            batch.clear();
            batch.push_run(&tokens, slot, first, false);
            model.step(&batch)?;
        }
    }
    let mut positions = [PROMPT; PARALLEL as usize];
    for sequences in [1, 2, 4, 8] {
        for _ in 0..STEPS {
            batch.clear();
            for (slot, position) in positions.iter_mut().enumerate().take(sequences) {
                batch.push_wanted(*position % vocabulary, slot as u32, *position);
                *position += 1;
            }
            model.step(&batch)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_them_the_small_models_have_every_type_of_weights_and_every_length_of_heads() {
        let models = small_models();
        let folder = tempfile::tempdir().unwrap();
        let mut types = std::collections::BTreeSet::new();
        for Small { shape, types: of, .. } in &models {
            Synthetic::new(shape, |_, number| {
                types.insert(of[number % of.len()]);
                of[number % of.len()]
            })
            .write(&folder.path().join("model"), Weights::Random, SEED)
            .unwrap();
        }
        assert!(capability::WEIGHT_TYPES.iter().all(|ty| types.contains(ty)), "{types:?}");
        assert_eq!(models.map(|small| small.shape.head_length), [128, 256, 512]);
    }

    #[cfg(feature = "simulated-gpu")]
    #[test]
    fn on_a_simulated_gpu_all_of_them_run() {
        let folder = tempfile::tempdir().unwrap();
        let calibrated = Calibrated::run(folder.path(), "GPU-simulated").unwrap();
        assert!(calibrated.allocated("GPU-simulated") > Bytes::ZERO);
        assert_eq!(calibrated.allocated("GPU-other"), Bytes::ZERO);
    }

    #[cfg(feature = "emulated-cuda")]
    #[test]
    fn cuda_kernels_run_all_of_them_on_an_emulated_gpu() {
        let folder = tempfile::tempdir().unwrap();
        let calibrated = Calibrated::run(folder.path(), "emulated-cuda-0").unwrap();
        assert!(calibrated.allocated("emulated-cuda-0") > Bytes::ZERO);
    }
}
