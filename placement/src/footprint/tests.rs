//! Sizes against figures that other runtimes print.

use crate::footprint::{Footprint, FootprintError};
use crate::layout::Backend;
use crate::request::{KvCacheType, Request};
use crate::testing::{LLAMA_3_8B, LLAMA_3_70B, SMOLLM2_135M, Shape};
use crate::units::{Bytes, Tokens};

fn footprint(shape: &Shape, num_ctx: u64, kv_cache_type: KvCacheType) -> Footprint {
    let request = Request { num_ctx: Tokens(num_ctx), kv_cache_type, ..Request::default() };
    Footprint::new(&shape.summary(), &request, Backend::Cpu, Bytes::mib(512), Backend::Cpu).unwrap()
}

/// What llama.cpp prints as "KV buffer size", in MiB.
#[test]
fn kv_caches_are_as_large_as_llama_cpp_prints_them() {
    use KvCacheType::{F16, Q8_0};
    let golden = [
        (&SMOLLM2_135M, 2048, F16, 45.0),
        (&SMOLLM2_135M, 8192, F16, 180.0),
        (&SMOLLM2_135M, 32768, F16, 720.0),
        (&SMOLLM2_135M, 2048, Q8_0, 23.91),
        (&SMOLLM2_135M, 8192, Q8_0, 95.62),
        (&SMOLLM2_135M, 32768, Q8_0, 382.5),
        (&LLAMA_3_8B, 2048, F16, 256.0),
        (&LLAMA_3_70B, 2048, F16, 640.0),
    ];
    for (shape, num_ctx, cache, expected) in golden {
        let found = footprint(shape, num_ctx, cache).kv_cache_bytes.as_mib();
        assert!((found - expected).abs() <= 0.01, "{} blocks, {num_ctx} tokens of {cache}: {found} MiB, not {expected}", shape.blocks);
    }
}

#[test]
fn the_parts_sum_to_the_total_and_the_layers_to_the_parts() {
    let footprint = footprint(&LLAMA_3_8B, 4096, KvCacheType::F16);
    let Footprint { weights_bytes, kv_cache_bytes, state_bytes, checkpoint_bytes, compute_bytes, overhead_bytes, .. } = footprint.clone();
    let parts = [weights_bytes, kv_cache_bytes, state_bytes, checkpoint_bytes, compute_bytes, overhead_bytes];
    assert_eq!(parts.into_iter().sum::<Bytes>(), footprint.total_bytes);
    assert_eq!(footprint.layers.len(), 33);
    assert_eq!(footprint.layers.iter().map(|layer| layer.weights_bytes).sum::<Bytes>(), weights_bytes);
    assert_eq!(footprint.layers.iter().map(|layer| layer.kv_cache_bytes).sum::<Bytes>(), kv_cache_bytes);
    assert_eq!(footprint.layers[32].kv_cache_bytes, Bytes::ZERO);
}

#[test]
fn an_output_tied_to_the_embeddings_is_held_again_on_gpu_but_is_once_in_the_file() {
    let tied = footprint(&SMOLLM2_135M, 512, KvCacheType::F16);
    let untied = footprint(&Shape { tied_output: false, ..SMOLLM2_135M }, 512, KvCacheType::F16);
    let matrix = Bytes(576 * 49152 / 32 * 20);
    assert_eq!(tied.weights_bytes, untied.weights_bytes);
    assert_eq!(tied.host_weights_bytes, matrix);
    assert_eq!(Some(untied.file_weights_bytes), tied.file_weights_bytes.checked_add(matrix));
}

#[test]
fn a_context_is_cached_in_steps_of_256_and_in_every_sequence() {
    let summary = SMOLLM2_135M.summary();
    let cache = |num_ctx, parallel| {
        let request = Request { num_ctx: Tokens(num_ctx), parallel, ..Request::default() };
        Footprint::new(&summary, &request, Backend::Cpu, Bytes::ZERO, Backend::Cpu).unwrap().kv_cache_bytes
    };
    assert_eq!(cache(1, 1), cache(256, 1));
    assert_eq!(cache(257, 1), cache(512, 1));
    assert_eq!(Some(cache(512, 3)), cache(512, 1).checked_mul(3));
}

#[test]
fn layers_without_kv_heads_cache_nothing() {
    let header = crate::testing::read(&SMOLLM2_135M.writer().header());
    let mut header = header;
    let heads = (0..30).map(|layer| if layer % 3 == 0 { 3 } else { 0 }).collect();
    header.metadata.insert("llama.attention.head_count_kv".into(), crate::gguf::Value::Array(crate::gguf::Array::I32(heads)));
    let summary = crate::ModelSummary::from_header(&header, Bytes(0)).unwrap();
    let request = Request { num_ctx: Tokens(2048), ..Request::default() };
    let footprint = Footprint::new(&summary, &request, Backend::Cpu, Bytes::ZERO, Backend::Cpu).unwrap();
    assert_eq!(footprint.kv_cache_bytes, Bytes::mib(15));
}

#[test]
fn what_64_bits_cannot_count_is_an_error() {
    let summary = LLAMA_3_70B.summary();
    let sized = |request: Request| Footprint::new(&summary, &request, Backend::Cpu, Bytes::ZERO, Backend::Cpu);
    for num_ctx in [u64::MAX, 1 << 50, 1 << 40, (1 << 32) + 1] {
        let error = sized(Request { num_ctx: Tokens(num_ctx), ..Request::default() }).unwrap_err();
        assert!(matches!(error, FootprintError::TooManyTokens { .. }), "{error}");
    }
    assert!(sized(Request { num_ctx: Tokens(1 << 32), ..Request::default() }).is_ok());
    let many = Request { num_ctx: Tokens(1 << 32), parallel: u32::MAX, ..Request::default() };
    assert!(matches!(sized(many), Err(FootprintError::Overflow { .. })));
    assert!(Footprint::new(&summary, &Request::default(), Backend::Cpu, Bytes::MAX, Backend::Cpu).is_err());
}

#[test]
fn a_summary_from_elsewhere_that_makes_no_sense_is_an_error() {
    let bad = |change: &dyn Fn(&mut crate::ModelSummary)| {
        let mut summary = SMOLLM2_135M.summary();
        change(&mut summary);
        Footprint::new(&summary, &Request::default(), Backend::Cpu, Bytes::ZERO, Backend::Cpu).unwrap_err().to_string()
    };
    assert!(bad(&|summary| summary.layers = vec![[9, 1]]).contains("no layer kind 9"));
    assert!(bad(&|summary| summary.input = vec![[99, 1]]).contains("no tensor kind 99"));
    assert!(bad(&|summary| summary.layer_kinds[0].experts = vec![[0, 1000]]).contains("more bytes of experts than of weights"));
    assert!(bad(&|summary| summary.layers = vec![[0, u32::MAX], [0, u32::MAX]]).contains("4294967295 layers"));
}
