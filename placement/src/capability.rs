//! What the engine can run: backend x family x weight type x cache type, and what a model asks for beside them. Planner and suggestions honour it,
//! so that nothing is placed, or advised, that then could not be loaded; the engine refuses by the same functions.
//!
//! Each error says what is missing and what there is.

use crate::gguf::GgmlType;
use crate::layout::Backend;
use crate::model_summary::{ModelSummary, Particulars};
use crate::request::KvCacheType;

/// Families whose graph the engine has.
pub const ARCHITECTURES: &[&str] = &[
    "bert",
    "gemma2",
    "gemma3",
    "glm4",
    "glm4moe",
    "gpt-oss",
    "granite",
    "granitemoe",
    "llama",
    "nomic-bert",
    "phi3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "smollm3",
];

/// Those of them whose experts it routes to.
const WITH_EXPERTS: &[&str] = &["glm4moe", "gpt-oss", "granitemoe", "llama", "qwen2moe", "qwen3moe"];

/// Ways to scale positions (`rope.scaling.type`) that the engine has.
const ROPE_SCALINGS: &[&str] = &["linear", "longrope", "yarn"];

/// Tensors that the engine takes wherever they are, though no block of the family needs them.
const OPTIONAL_TENSORS: &[&str] = &[
    "attn_k.bias",
    "attn_k_norm.weight",
    "attn_output.bias",
    "attn_q.bias",
    "attn_q_norm.weight",
    "attn_qkv.bias",
    "attn_v.bias",
    "ffn_down.bias",
    "ffn_gate.bias",
    "ffn_up.bias",
    "position_embd.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
    "token_embd_norm.bias",
    "token_embd_norm.weight",
    "token_types.weight",
];

/// Quantised caches have whole blocks of this many elements.
const CACHE_BLOCK: u64 = 32;
/// The lowest compute capability that the CUDA backend runs on, major and minor: tensor cores that multiply by `mma.sync.m16n8k8`.
pub const LOWEST_COMPUTE_CAPABILITY: (u32, u32) = (7, 5);

/// Whether two UUIDs are of one GPU, or of one part of a GPU. What stands before the digits tells a part from a whole one in NVML, and nothing in CUDA.
pub fn are_of_one_gpu(one: &str, other: &str) -> bool {
    let digits = |uuid: &str| uuid.split_once('-').map(|(_, digits)| digits.to_ascii_lowercase());
    digits(one).is_some_and(|digits_of_one| digits(other) == Some(digits_of_one))
}
/// The longest head that the kernels of the CUDA backend sum.
const LONGEST_CUDA_HEAD: u64 = 512;
/// The longest head that is read from a quantised cache.
const LONGEST_QUANTISED_HEAD: u64 = 256;

/// Types of weights that the engine computes with.
pub const WEIGHT_TYPES: &[GgmlType] = &[
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
    GgmlType::IQ4_NL,
    GgmlType::IQ4_XS,
    GgmlType::MXFP4,
];

/// Types of KV cache that the engine keeps.
pub const CACHE_TYPES: &[KvCacheType] = &[KvCacheType::F16, KvCacheType::Q8_0, KvCacheType::Q4_0];

/// Kinds of tokenizer (`tokenizer.ggml.model`) that the engine has: WordPiece, byte-level BPE, and SentencePiece.
pub const TOKENIZERS: &[&str] = &["bert", "gpt2", "llama"];

/// Ways to cut words before BPE (`tokenizer.ggml.pre`) that the engine has.
pub const PRE_TOKENIZERS: &[&str] = &[
    "chatglm-bpe",
    "codeshell",
    "command-r",
    "dbrx",
    "deepseek-coder",
    "deepseek-r1-qwen",
    "deepseek-v3",
    "default",
    "exaone",
    "exaone4",
    "falcon",
    "falcon-h1",
    "falcon3",
    "glm4",
    "gpt-2",
    "gpt-4o",
    "granite-docling",
    "grok-2",
    "hunyuan",
    "hunyuan-dense",
    "jais",
    "lfm2",
    "llama-bpe",
    "llama-v3",
    "llama3",
    "llama4",
    "megrez",
    "minerva-7b",
    "mpt",
    "olmo",
    "phi-2",
    "pixtral",
    "qwen2",
    "refact",
    "smaug-bpe",
    "smollm",
    "stablelm2",
    "starcoder",
    "tekken",
    "trillion",
];

/// Whether the engine runs this model on `backend` with a cache of type `cache`. Of `Cuda` this says what its backend is made for; whether a node
/// has it, its ModelNode says.
pub fn runs(summary: &ModelSummary, cache: KvCacheType, backend: Backend) -> Result<(), String> {
    architecture(&summary.architecture)?;
    summary.weight_types().try_for_each(|ty| supports(&summary.architecture, ty, cache, backend))?;
    let Particulars { experts: count, rope_scaling: scaling, heads_by_layer, tokenizer: named, other_tensors } = &summary.particulars;
    experts(&summary.architecture, *count)?;
    rope_scaling(scaling)?;
    heads(summary, cache, backend)?;
    if *heads_by_layer {
        return Err("the engine has no graph whose layers differ in how many heads they have".into());
    }
    if let Some(tensor) = other_tensors.iter().find(|tensor| !OPTIONAL_TENSORS.contains(&tensor.as_str())) {
        return Err(format!("the engine does not know what to do with tensor `{tensor}` of a {} model", summary.architecture));
    }
    tokenizer(named)
}

/// Whether weights of type `ty` and a cache of type `cache` can be had for a model of `architecture` on `backend`.
pub fn supports(architecture: &str, ty: GgmlType, cache: KvCacheType, backend: Backend) -> Result<(), String> {
    self::architecture(architecture)?;
    if !WEIGHT_TYPES.contains(&ty) {
        let known = list(WEIGHT_TYPES.iter().map(|ty| ty.to_string()));
        return Err(format!("the {} backend can't compute with weights of type {ty}; it can with {known}", backend.as_str()));
    }
    if !CACHE_TYPES.contains(&cache) {
        let known = list(CACHE_TYPES.iter().map(|cache| cache.to_string()));
        return Err(format!("the {} backend has no KV cache of type {cache}; it has {known}", backend.as_str()));
    }
    Ok(())
}

/// What an engine can do with the parts of a model that it runs. Plans are made for [`Engine::OURS`]; tests make them for one that can more.
#[derive(Clone, Copy, Debug)]
pub struct Engine {
    /// As [`offloads_experts`].
    pub offloads_experts: fn(Backend) -> bool,
}

impl Engine {
    pub const OURS: Engine = Engine { offloads_experts };
}

/// Whether a layer on this backend can leave its experts' weights in host memory, where the host then computes them.
///
/// Of a plan with `expertLayerRanges` the host then loads the tensors that [`crate::model_summary::LayerKind::experts`] counts of those layers, laid out
/// for its own backend, and the GPU all others; each takes the scratch memory of a device that holds blocks.
pub fn offloads_experts(backend: Backend) -> bool {
    match backend {
        Backend::Reference | Backend::Cpu | Backend::SimulatedGpu | Backend::Cuda => false,
    }
}

/// Whether the engine has a graph for the family.
pub fn architecture(name: &str) -> Result<(), String> {
    if ARCHITECTURES.contains(&name) {
        return Ok(());
    }
    Err(format!("the engine has no graph for the architecture {name}; it runs {}", ARCHITECTURES.join(", ")))
}

/// Whether the engine routes a family's tokens to experts.
fn experts(architecture: &str, count: u64) -> Result<(), String> {
    if count == 0 || WITH_EXPERTS.contains(&architecture) {
        return Ok(());
    }
    let known = WITH_EXPERTS.join(", ");
    Err(format!("the engine does not route to the experts of a {architecture} model (expert_count is {count}); it does for {known}"))
}

/// Whether the engine scales positions so; empty and `none`: not at all.
fn rope_scaling(kind: &str) -> Result<(), String> {
    if kind.is_empty() || kind == "none" || ROPE_SCALINGS.contains(&kind) {
        return Ok(());
    }
    Err(format!("the engine has no rope scaling of type {kind}; it has {}, and factors in tensors", ROPE_SCALINGS.join(", ")))
}

/// Whether the model's heads can be kept in a cache of this type, and attended to.
fn heads(summary: &ModelSummary, cache: KvCacheType, backend: Backend) -> Result<(), String> {
    let attending = summary.layer_kinds.iter().filter(|kind| kind.kv_heads > 0);
    let lengths = attending.flat_map(|kind| [kind.key_length, kind.value_length]);
    attended_heads(lengths.clone(), backend)?;
    cached_heads(lengths, cache)
}

/// Whether a backend attends with keys and values of these lengths, in elements of a head.
pub fn attended_heads(mut lengths: impl Iterator<Item = u64>, backend: Backend) -> Result<(), String> {
    match lengths.find(|length| backend == Backend::Cuda && *length > LONGEST_CUDA_HEAD) {
        Some(length) => Err(format!(
            "the cuda backend attends with heads of at most {LONGEST_CUDA_HEAD} elements, and this model's are {length} long; the CPU has no such bound"
        )),
        None => Ok(()),
    }
}

/// Whether keys and values of these lengths, in elements of a head, can be kept in a cache of this type.
pub fn cached_heads(mut lengths: impl Iterator<Item = u64>, cache: KvCacheType) -> Result<(), String> {
    let kept = |length: u64| length.is_multiple_of(CACHE_BLOCK) && length <= LONGEST_QUANTISED_HEAD;
    match lengths.find(|length| cache != KvCacheType::F16 && !kept(*length)) {
        Some(length) => Err(format!(
            "a KV cache of type {cache} has heads of whole blocks of {CACHE_BLOCK} elements, at most {LONGEST_QUANTISED_HEAD}, and this model's are {length} long"
        )),
        None => Ok(()),
    }
}

/// Whether the engine has the tokenizer `KIND` or `KIND/PRE`; of an empty name nothing is known.
fn tokenizer(name: &str) -> Result<(), String> {
    let (kind, pre) = name.split_once('/').map_or((name, None), |(kind, pre)| (kind, Some(pre)));
    if !kind.is_empty() && !TOKENIZERS.contains(&kind) {
        let known = TOKENIZERS.join(", ");
        return Err(format!("the engine has no tokenizer of kind `{kind}` (tokenizer.ggml.model); it has {known}"));
    }
    match pre {
        Some(pre) if kind == "gpt2" => pre_tokenizer(pre),
        _ => Ok(()),
    }
}

/// Whether the engine cuts words by the rules of this name.
pub fn pre_tokenizer(name: &str) -> Result<(), String> {
    if PRE_TOKENIZERS.contains(&name) {
        return Ok(());
    }
    let known = PRE_TOKENIZERS.join(", ");
    Err(format!("the tokenizer's pre-tokenizer `{name}` (tokenizer.ggml.pre) is not known; known are {known}"))
}

fn list(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
