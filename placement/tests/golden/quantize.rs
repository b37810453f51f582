//! Which tensor gets which type.
//!
//! Source: `tensor_allows_quantization`, `llama_tensor_get_type_impl` and `tensor_type_fallback` in `src/llama-quant.cpp` of llama.cpp, as of the copy in
//! llama-cpp-python 0.3.36; of what stays as the converter wrote it, `prepare_tensors` in its `conversion/base.py`.

use serde::Deserialize;
use stowage_placement::gguf::GgmlType;

use crate::model::{Model, Tensor};

/// How a file is quantised, by llama.cpp's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(non_camel_case_types)]
pub enum Quantization {
    F16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q4_K_M,
    /// Experts in MXFP4, all else in Q8_0.
    MXFP4_MOE,
}

impl Quantization {
    /// `enum llama_ftype`.
    pub fn file_type(self) -> u32 {
        match self {
            Quantization::F16 => 1,
            Quantization::Q4_0 => 2,
            Quantization::Q4_1 => 3,
            Quantization::Q8_0 => 7,
            Quantization::Q4_K_M => 15,
            Quantization::MXFP4_MOE => 38,
        }
    }

    fn usual(self) -> GgmlType {
        match self {
            Quantization::F16 => GgmlType::F16,
            Quantization::Q8_0 => GgmlType::Q8_0,
            Quantization::Q4_0 => GgmlType::Q4_0,
            Quantization::Q4_1 => GgmlType::Q4_1,
            Quantization::Q4_K_M => GgmlType::Q4_K,
            Quantization::MXFP4_MOE => GgmlType::MXFP4,
        }
    }
}

/// What the types of one model's tensors follow from.
pub struct Quantizer {
    quantization: Quantization,
    blocks: u64,
    experts: u64,
    tied: bool,
    /// A Llama of 70 billion parameters, whose small matrices for values get more bits.
    is_70b: bool,
    values: u64,
    values_seen: u64,
    downs_seen: u64,
}

impl Quantizer {
    pub fn new(model: &Model, quantization: Quantization) -> Quantizer {
        let blocks = model.get("block_count").unwrap_or(0);
        let heads = model.get("attention.head_count");
        Quantizer {
            quantization,
            blocks,
            experts: model.get("expert_count").unwrap_or(0),
            tied: !model.tensors.iter().any(|tensor| tensor.name == "output.weight"),
            is_70b: model.architecture == "llama" && blocks == 80 && heads != model.get("attention.head_count_kv"),
            values: model.tensors.iter().filter(|tensor| is_value(&tensor.name)).count() as u64,
            values_seen: 0,
            downs_seen: 0,
        }
    }

    /// To be asked for all tensors in their order.
    pub fn type_of(&mut self, tensor: &Tensor) -> GgmlType {
        if is_always_f32(tensor) {
            return GgmlType::F32;
        }
        if self.quantization == Quantization::F16 || stays_as_converted(&tensor.name) {
            return GgmlType::F16;
        }
        fallback(self.wanted(tensor), tensor.dimensions[0])
    }

    fn wanted(&mut self, tensor: &Tensor) -> GgmlType {
        let name = tensor.name.as_str();
        let embeddings = name == "token_embd.weight" || name == "per_layer_token_embd.weight";
        if name == "output.weight" || self.tied && embeddings {
            return match self.quantization {
                Quantization::Q8_0 | Quantization::MXFP4_MOE => GgmlType::Q8_0,
                _ => GgmlType::Q6_K,
            };
        }
        if self.quantization == Quantization::MXFP4_MOE {
            return if tensor.dimensions.len() > 2 { GgmlType::MXFP4 } else { GgmlType::Q8_0 };
        }
        if self.quantization == Quantization::Q4_K_M { self.mixed(name, embeddings) } else { self.quantization.usual() }
    }

    fn mixed(&mut self, name: &str, embeddings: bool) -> GgmlType {
        if embeddings {
            return GgmlType::Q4_K;
        }
        if is_value(name) {
            return self.value();
        }
        if name.contains("attn_k.weight") && self.experts == 8 {
            return GgmlType::Q8_0;
        }
        if name.contains("attn_output.weight") && self.experts == 8 {
            return GgmlType::Q5_K;
        }
        if name.contains("ffn_down") {
            return self.down(name);
        }
        GgmlType::Q4_K
    }

    fn value(&mut self) -> GgmlType {
        let more = gets_more_bits(self.values_seen, self.values);
        self.values_seen += 1;
        match (self.experts == 8, more, self.is_70b) {
            (true, _, _) => GgmlType::Q8_0,
            (_, true, _) => GgmlType::Q6_K,
            (_, _, true) => GgmlType::Q5_K,
            _ => GgmlType::Q4_K,
        }
    }

    /// Where there are experts, by the block; else in the order of the tensors.
    fn down(&mut self, name: &str) -> GgmlType {
        let index = if self.experts > 1 { block_of(name) } else { self.downs_seen };
        self.downs_seen += 1;
        if gets_more_bits(index, self.blocks) { GgmlType::Q6_K } else { GgmlType::Q4_K }
    }
}

/// The first and the last eighth, and every third between.
fn gets_more_bits(index: u64, count: u64) -> bool {
    index < count / 8 || index >= 7 * count / 8 || (index - count / 8) % 3 == 2
}

fn is_value(name: &str) -> bool {
    ["attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"].iter().any(|part| name.contains(part))
}

fn block_of(name: &str) -> u64 {
    name.split('.').nth(1).and_then(|number| number.parse().ok()).unwrap()
}

fn is_always_f32(tensor: &Tensor) -> bool {
    const PARTS: &[&str] = &["ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d", "altup_correct_coef", "altup_predict_coef"];
    const NAMES: &[&str] = &["position_embd.weight", "token_types.weight"];
    let name = tensor.name.as_str();
    let vector = tensor.dimensions.iter().filter(|length| **length > 1).count() < 2;
    vector
        || !name.ends_with("weight")
        || name.ends_with("_norm.weight")
        || NAMES.contains(&name)
        || PARTS.iter().any(|part| name.contains(part))
}

fn stays_as_converted(name: &str) -> bool {
    ["altup", "laurel", "per_layer_model_proj"].iter().any(|part| name.contains(part))
}

/// Where a row is no whole number of blocks.
fn fallback(wanted: GgmlType, columns: u64) -> GgmlType {
    if columns.is_multiple_of(wanted.block_elements()) {
        return wanted;
    }
    let smaller = match wanted {
        GgmlType::Q4_K => GgmlType::Q5_0,
        GgmlType::Q5_K => GgmlType::Q5_1,
        GgmlType::Q6_K => GgmlType::Q8_0,
        same => same,
    };
    if columns.is_multiple_of(smaller.block_elements()) { smaller } else { GgmlType::F16 }
}
