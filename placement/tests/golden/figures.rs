//! Figures that other runtimes print when they load these models, in MiB as they print them: predicted to 0.01 MiB.

use stowage_placement::layout::Backend;
use stowage_placement::{Bytes, Footprint, KvCacheType, LayerFootprint, Request, Tokens, testing};

use crate::case::Case;

/// What is asked of a model.
#[derive(Clone, Copy, Debug)]
struct Asked {
    case: &'static str,
    num_ctx: u64,
    cache: KvCacheType,
    parallel: u32,
    num_batch: u32,
}

const F16: KvCacheType = KvCacheType::F16;
const Q8_0: KvCacheType = KvCacheType::Q8_0;

fn asked(case: &'static str, num_ctx: u64, cache: KvCacheType) -> Asked {
    Asked { case, num_ctx, cache, parallel: 1, num_batch: 512 }
}

impl Asked {
    fn footprint(&self) -> Footprint {
        let Asked { case, num_ctx, cache, parallel, num_batch } = *self;
        let request = Request { num_ctx: Tokens(num_ctx), kv_cache_type: cache, parallel, num_batch, ..Request::default() };
        Footprint::new(&Case::named(case).summary(), &request, Backend::Cpu, Bytes::ZERO, Backend::Cpu).unwrap()
    }

    /// Keys and values of the layers that take the most of them, and of the others: those with the whole context, and those with a window.
    fn full_and_sliding(&self) -> (Vec<LayerFootprint>, Vec<LayerFootprint>) {
        let layers = self.footprint().layers.into_iter().filter(|layer| layer.kv_cache_bytes > Bytes::ZERO);
        let layers: Vec<LayerFootprint> = layers.collect();
        let most = layers.iter().map(|layer| layer.kv_cache_bytes).max().unwrap_or_default();
        layers.into_iter().partition(|layer| layer.kv_cache_bytes == most)
    }
}

#[track_caller]
fn prints(what: &Asked, found: Bytes, printed: f64) {
    let found = found.as_mib();
    assert!((found - printed).abs() <= 0.01, "{what:?}: {found:.4} MiB, not {printed}");
}

fn sum(layers: &[LayerFootprint]) -> Bytes {
    layers.iter().map(|layer| layer.kv_cache_bytes).sum()
}

/// llama.cpp's `KV self size`, and its `KV buffer size` of one cache.
#[test]
fn keys_and_values_take_what_llama_cpp_prints() {
    let figures = [
        // Issue 5 of this repository.
        (asked("llama-3-8b", 2048, F16), 256.0),
        (asked("llama-3-70b", 2048, F16), 640.0),
        (asked("deepseek-r1-671b", 32768, F16), 2196.0),
        (asked("command-r-35b", 4096, F16), 5120.0),
        (asked("qwen3.6-35b-a3b", 4096, Q8_0), 42.5),
        // Measured on the file that the tests run: 30 layers, 3 KV heads of 64.
        (asked("smollm2-135m", 2048, F16), 45.0),
        (asked("smollm2-135m", 8192, F16), 180.0),
        (asked("smollm2-135m", 32768, F16), 720.0),
        (asked("smollm2-135m", 2048, Q8_0), 23.91),
        (asked("smollm2-135m", 8192, Q8_0), 95.62),
        (asked("smollm2-135m", 32768, Q8_0), 382.5),
        // R1 before its weights could be absorbed, `n_embd_k_gqa = 24576, n_embd_v_gqa = 16384`: ggml-org/llama.cpp pull request 11397.
        (asked("deepseek-r1-671b-unconverted", 4096, F16), 19520.0),
        // DeepSeek-R1-Distill-Qwen-32B at 16384, 64 layers of `n_embd_k_gqa = 1024`: ggml-org/llama.cpp issue 11861.
        (asked("deepseek-r1-distill-qwen-32b", 16384, F16), 4096.0),
        // `131072 cells, 12 layers, K 1536 + V 1536 MiB`, a Qwen3-Next on Vulkan.
        (asked("qwen3-next-80b-a3b", 131_072, F16), 3072.0),
        // `131072 cells, 16 layers`, a Qwen3.6-27B on CUDA.
        (asked("qwen3.6-27b", 131_072, F16), 8192.0),
    ];
    for (asked, printed) in figures {
        prints(&asked, asked.footprint().kv_cache_bytes, printed);
    }
}

/// llama.cpp's two `KV buffer size`s of a model with sliding layers: the number of layers and the MiB of each.
#[test]
fn layers_with_the_whole_context_and_sliding_ones_take_what_llama_cpp_prints() {
    let small_batch = Asked { num_batch: 128, ..asked("gpt-oss-20b", 8192, Q8_0) };
    let figures = [
        // Issue 5 of this repository.
        (asked("gpt-oss-20b", 131_072, F16), (12, 3072.0), (12, 18.0)),
        // `8192 cells, 12 layers, K (q8_0): 51.00` and `256 cells`: llama.cpp on Hexagon, with a batch of 128.
        (small_batch, (12, 102.0), (12, 3.19)),
        // Measured: 3 layers with the whole context, 15 of 512 + 512 tokens.
        (asked("gemma-3-270m", 2048, F16), (3, 6.0), (15, 15.0)),
        (asked("gemma-3-270m", 8192, F16), (3, 24.0), (15, 15.0)),
        (asked("gemma-3-270m", 32768, F16), (3, 96.0), (15, 15.0)),
        (asked("gemma-3-270m", 2048, Q8_0), (3, 3.19), (15, 7.97)),
        (asked("gemma-3-270m", 8192, Q8_0), (3, 12.75), (15, 7.97)),
        (asked("gemma-3-270m", 32768, Q8_0), (3, 51.0), (15, 7.97)),
        // `32768 cells, 4 layers` of a Gemma 4 E4B, 18 of whose 42 layers reuse others'. That log has rings of the whole context; 20 rings of
        // 512 + 512 tokens in 2 heads of 256 + 256 take 40 MiB.
        (asked("gemma-4-e4b", 32768, F16), (4, 512.0), (20, 40.0)),
    ];
    for (asked, (full_layers, full_mib), (sliding_layers, sliding_mib)) in figures {
        let (full, sliding) = asked.full_and_sliding();
        assert_eq!((full.len(), sliding.len()), (full_layers, sliding_layers), "{asked:?}");
        prints(&asked, sum(&full), full_mib);
        prints(&asked, sum(&sliding), sliding_mib);
    }
}

/// llama.cpp's `RS buffer size`.
#[test]
fn recurrent_states_take_what_llama_cpp_prints() {
    let figures = [
        // Issue 5 of this repository.
        (asked("qwen3.6-35b-a3b", 4096, Q8_0), 62.81),
        // `4 cells, 48 layers`, a Qwen3-Next on Vulkan.
        (Asked { parallel: 4, ..asked("qwen3-next-80b-a3b", 4096, F16) }, 301.5),
        // `1 cells, R (f32): 5.62 MiB, S (f32): 144.00 MiB`, and three sequences of it: ggml-org/llama.cpp pull request 23792.
        (asked("qwen3.6-27b", 4096, F16), 149.62),
        (Asked { parallel: 3, ..asked("qwen3.6-27b", 4096, F16) }, 448.88),
    ];
    for (asked, printed) in figures {
        prints(&asked, asked.footprint().state_bytes, printed);
    }
}

/// llama.cpp's `model buffer size`.
#[test]
fn weights_take_what_llama_cpp_prints() {
    // SmolLM2, whose output is tied: all that is in the file.
    let smollm2 = asked("smollm2-135m", 2048, F16);
    let footprint = smollm2.footprint();
    prints(&smollm2, footprint.file_weights_bytes.saturating_add(footprint.file_host_weights_bytes), 92.10);
    // Token embeddings in host memory: a Qwen3.6-27B on CUDA, a DeepSeek-R1-Distill-Qwen-32B (ggml-org/llama.cpp issue 11861).
    let figures = [("qwen3.6-27b", 682.03), ("deepseek-r1-distill-qwen-32b", 417.66)];
    for (case, printed) in figures {
        let asked = asked(case, 2048, F16);
        prints(&asked, asked.footprint().file_host_weights_bytes, printed);
    }
    // All layers of that 32B on GPU.
    let distilled = asked("deepseek-r1-distill-qwen-32b", 2048, F16);
    prints(&distilled, distilled.footprint().file_weights_bytes, 18508.35);
}

/// What `llama-bench` prints of a file: GiB of all tensors, and billions of parameters.
#[test]
fn files_have_the_size_that_llama_bench_prints() {
    let printed = [
        // llama 8B, llama 70B and qwen2 32B, Q4_K - Medium
        ("llama-3-8b", 4.58, 8.03),
        ("llama-3-70b", 39.59, 70.55),
        ("deepseek-r1-distill-qwen-32b", 18.48, 32.76),
        // qwen3moe 30B.A3B, qwen35 27B, gemma3 27B and deepseek2 16B, Q4_K - Medium
        ("qwen3-30b-a3b", 17.28, 30.53),
        ("qwen3.6-27b", 15.65, 27.32),
        ("gemma-3-27b", 15.40, 27.01),
        ("deepseek-v2-lite", 9.65, 15.71),
        // gpt-oss 20B MXFP4 MoE
        ("gpt-oss-20b", 11.27, 20.91),
    ];
    for (case, gib, billions) in printed {
        let tensors = testing::read(&Case::named(case).writer().header()).tensors;
        let bytes: Bytes = tensors.iter().map(|tensor| tensor.bytes()).sum();
        let parameters: u64 = tensors.iter().map(|tensor| tensor.elements()).sum();
        assert!((bytes.as_mib() / 1024.0 - gib).abs() <= 0.005, "{case}: {} MiB, not {gib} GiB", bytes.as_mib());
        assert!((parameters as f64 / 1e9 - billions).abs() <= 0.005, "{case}: {parameters} parameters, not {billions} billion");
    }
}

#[test]
fn only_rings_and_states_have_checkpoints() {
    for (case, copied) in [("llama-3-8b", false), ("deepseek-r1-671b", false), ("gemma-3-27b", true), ("mamba-2.8b", true)] {
        let footprint = asked(case, 8192, F16).footprint();
        assert_eq!(footprint.checkpoint_bytes > Bytes::ZERO, copied, "{case}");
    }
    // As long as nothing is written over, there is nothing to copy.
    assert_eq!(asked("gemma-3-27b", 1536, F16).footprint().checkpoint_bytes, Bytes::ZERO);
}
