//! A summary stays small and says what the header says.

use crate::gguf::GgmlType;
use crate::gguf::write::HeaderWriter;
use crate::model_summary::{ModelSummary, SummaryError};
use crate::reason::Reason;
use crate::testing::{DEEPSEEK_R1_32B, LLAMA_3_8B, SMOLLM2_135M, Shape, read};
use crate::units::{Bytes, LayerCount, Tokens};

fn summary(writer: &HeaderWriter) -> Result<ModelSummary, SummaryError> {
    ModelSummary::from_header(&read(&writer.header()), Bytes(writer.file_size()))
}

/// A model's header without one of its tensors.
fn without(shape: &Shape, dropped: &str) -> Result<ModelSummary, SummaryError> {
    let mut header = read(&shape.writer().header());
    header.tensors.retain(|tensor| tensor.name != dropped);
    ModelSummary::from_header(&header, Bytes(0))
}

#[test]
fn a_summary_says_what_the_model_is() {
    let summary = SMOLLM2_135M.summary();
    assert_eq!(summary.architecture, "llama");
    assert_eq!(summary.total_layers(), LayerCount(31));
    assert_eq!(summary.trained_context, Tokens(8192));
    assert_eq!(summary.quantization, "Q4_1");
    assert_eq!(summary.parameter_count, 134_515_008);
    assert_eq!(summary.layers, [[0, 30]]);
    assert_eq!((summary.shape.key_length, summary.shape.kv_heads, summary.shape.vocabulary), (64, 3, 49152));
}

#[test]
fn a_summary_takes_at_most_4_kib_and_comes_back_as_it_was() {
    // Q4_K_M gives some layers larger types by a rule; here every block has its own mixture of three types.
    let mut header = read(&DEEPSEEK_R1_32B.writer().header());
    for (i, tensor) in header.tensors.iter_mut().enumerate() {
        if tensor.ggml_type == GgmlType::Q4_K {
            tensor.ggml_type = [GgmlType::Q4_K, GgmlType::Q5_K, GgmlType::Q6_K][i * 7 % 3];
        }
    }
    let summary = ModelSummary::from_header(&header, Bytes::gib(20)).unwrap();
    let json = serde_json::to_string(&summary).unwrap();
    assert!(json.len() <= 4096, "{} bytes: {json}", json.len());
    assert_eq!(serde_json::from_str::<ModelSummary>(&json).unwrap(), summary);
}

#[test]
fn the_same_header_kept_whole_or_for_sizing_gives_the_same_summary() {
    let writer = LLAMA_3_8B.writer().strings("tokenizer.ggml.tokens", vec!["x"; 6000]);
    let mut reader = crate::gguf::HeaderReader::new(crate::gguf::Keep::All);
    reader.feed(&writer.header()).unwrap();
    let whole = ModelSummary::from_header(&reader.into_header().unwrap(), Bytes(writer.file_size())).unwrap();
    assert_eq!(summary(&writer).unwrap(), whole);
}

#[test]
fn an_architecture_that_nobody_knows_is_refused_with_those_that_are() {
    let error = summary(&HeaderWriter::architecture("rwkv9")).unwrap_err();
    assert_eq!(error.reason(), Reason::UnsupportedArchitecture);
    assert!(error.to_string().contains("`rwkv9`") && error.to_string().contains("mistral3, nomic-bert, olmo2"), "{error}");
}

#[test]
fn a_file_without_an_architecture_is_damaged() {
    let error = summary(&HeaderWriter::new()).unwrap_err();
    assert_eq!(error.reason(), Reason::InvalidModelFile);
    assert!(error.to_string().contains("general.architecture"));
}

#[test]
fn a_missing_tensor_is_named() {
    for (shape, tensor) in [
        (&SMOLLM2_135M, "blk.29.ffn_down.weight"),
        (&SMOLLM2_135M, "blk.7.attn_q.weight"),
        (&SMOLLM2_135M, "token_embd.weight"),
        (&SMOLLM2_135M, "output_norm.weight"),
        (&DEEPSEEK_R1_32B, "blk.3.attn_k.bias"),
    ] {
        let error = without(shape, tensor).unwrap_err();
        assert!(error.to_string().contains(tensor), "{error}");
        assert_eq!(error.reason(), Reason::InvalidModelFile);
    }
}

#[test]
fn a_block_beyond_the_count_and_a_count_beyond_reason_are_refused() {
    let beyond = SMOLLM2_135M.writer().tensor("blk.30.extra.weight", GgmlType::F32, &[1]);
    assert!(summary(&beyond).unwrap_err().to_string().contains("belongs to layer 30"));
    let shape = HeaderWriter::architecture("llama").u32("llama.block_count", u32::MAX);
    assert!(summary(&shape).unwrap_err().to_string().contains("4294967295; expected 1 to 4096"));
}
