//! What is missing is found from the header alone.

use crate::capability::{PRE_TOKENIZERS, runs, supports};
use crate::gguf::write::HeaderWriter;
use crate::gguf::{GgmlType, Value};
use crate::layout::Backend;
use crate::model_summary::ModelSummary;
use crate::request::KvCacheType;
use crate::testing::{SMOLLM2_135M, Shape, read};
use crate::units::Bytes;

/// Whether a model runs whose header was changed.
fn changed(change: impl Fn(HeaderWriter) -> HeaderWriter) -> Result<(), String> {
    let summary = ModelSummary::from_header(&read(&change(SMOLLM2_135M.writer()).header()), Bytes::ZERO).unwrap();
    runs(&summary, KvCacheType::F16, Backend::Cpu)
}

#[test]
fn what_is_missing_is_named_beside_what_there_is() {
    assert_eq!(supports("llama", GgmlType::Q4_1, KvCacheType::F16, Backend::Cpu), Ok(()));
    let error = supports("mamba", GgmlType::Q4_1, KvCacheType::F16, Backend::Cpu).unwrap_err();
    assert!(error.contains("mamba") && error.contains("llama"), "{error}");
    let error = supports("llama", GgmlType::IQ1_S, KvCacheType::F16, Backend::Cpu).unwrap_err();
    assert!(error.contains("IQ1_S") && error.contains("Q4_1"), "{error}");
}

#[test]
fn what_a_header_asks_for_beside_the_usual_graph_is_refused_by_name() {
    let norm = |writer: HeaderWriter| writer.tensor("blk.7.attn_sub_norm.weight", GgmlType::F32, &[576]);
    let table = |writer: HeaderWriter| writer.tensor("per_layer_token_embd.weight", GgmlType::F32, &[576, 2]);
    let refused = [
        (changed(|writer| writer.string("llama.rope.scaling.type", "spiral")), "spiral"),
        (changed(|writer| writer.string("tokenizer.ggml.model", "t5")), "t5"),
        (changed(|writer| writer.string("tokenizer.ggml.model", "gpt2").string("tokenizer.ggml.pre", "gpt-9")), "gpt-9"),
        (changed(norm), "attn_sub_norm.weight"),
        (changed(table), "per_layer_token_embd.weight"),
    ];
    for (found, named) in refused {
        let error = found.unwrap_err();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn what_changes_nothing_or_is_known_is_not_refused() {
    let factors = |writer: HeaderWriter| writer.tensor("rope_freqs.weight", GgmlType::F32, &[32]);
    let bias = |writer: HeaderWriter| writer.tensor("blk.7.attn_q.bias", GgmlType::F32, &[576]);
    let found = [
        changed(|writer| writer),
        changed(|writer| writer.string("llama.rope.scaling.type", "none").f32("llama.rope.scale_linear", 1.0)),
        changed(|writer| writer.string("tokenizer.ggml.model", "gpt2").string("tokenizer.ggml.pre", PRE_TOKENIZERS[0])),
        changed(|writer| writer.string("tokenizer.ggml.model", "llama").string("tokenizer.ggml.pre", "gpt-9")),
        changed(factors),
        changed(bias),
        changed(|writer| writer.string("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4.0)),
        changed(|writer| writer.f32("llama.rope.scale_linear", 4.0)),
    ];
    assert_eq!(found, [const { Ok(()) }; 8]);
}

#[test]
fn experts_and_layers_of_different_heads_are_refused_under_a_name_that_runs() {
    let summary = SMOLLM2_135M.summary();
    assert_eq!(runs(&summary, KvCacheType::F16, Backend::Cpu), Ok(()));
    let mut mixture = summary.clone();
    (mixture.architecture, mixture.particulars.experts) = ("granite".into(), 8);
    assert!(runs(&mixture, KvCacheType::F16, Backend::Cpu).unwrap_err().contains("experts"));
    let mut header = read(&SMOLLM2_135M.writer().header());
    let heads = (0..30).map(|layer| if layer % 3 == 0 { 3 } else { 9 }).collect();
    header.metadata.insert("llama.attention.head_count_kv".into(), Value::Array(crate::gguf::Array::U32(heads)));
    let uneven = ModelSummary::from_header(&header, Bytes::ZERO).unwrap();
    assert!(runs(&uneven, KvCacheType::F16, Backend::Cpu).unwrap_err().contains("differ"));
}

#[test]
fn a_quantised_cache_needs_heads_of_whole_blocks() {
    let with_heads_of = |key_length: u64| {
        let mut summary = SMOLLM2_135M.summary();
        summary.layer_kinds.iter_mut().for_each(|kind| kind.key_length = key_length);
        [KvCacheType::F16, KvCacheType::Q8_0, KvCacheType::Q4_0].map(|cache| runs(&summary, cache, Backend::Cpu).is_ok())
    };
    assert_eq!(with_heads_of(64), [true; 3]);
    assert_eq!(with_heads_of(80), [true, false, false]);
    assert_eq!(with_heads_of(288), [true, false, false]);
}

#[test]
fn heads_that_are_too_long_for_a_gpu_run_on_the_cpu() {
    let mut summary = SMOLLM2_135M.summary();
    summary.layer_kinds.iter_mut().for_each(|kind| kind.value_length = 576);
    assert_eq!(runs(&summary, KvCacheType::F16, Backend::Cpu), Ok(()));
    let error = runs(&summary, KvCacheType::F16, Backend::Cuda).unwrap_err();
    assert!(error.contains("512") && error.contains("576"), "{error}");
}

#[test]
fn a_type_that_only_vectors_have_is_no_hindrance_and_one_that_a_matrix_has_is() {
    assert_eq!(changed(|writer| writer.tensor("rope_freqs.weight", GgmlType::BF16, &[32])), Ok(()));
    let summary = Shape { weights: GgmlType::Q8_1, ..SMOLLM2_135M }.summary();
    assert!(runs(&summary, KvCacheType::F16, Backend::Cpu).unwrap_err().contains("Q8_1"));
}
