//! How a file's quantisation is called.

use std::collections::BTreeMap;

use crate::gguf::{GgmlType, Header};

/// The name that `general.file_type` stands for (`enum llama_ftype` in llama.cpp's `include/llama.h`); without it, the type that most bytes have.
pub(super) fn name(header: &Header) -> String {
    let stated = header.u64("general.file_type").ok().flatten().and_then(file_type);
    stated.map_or_else(|| commonest(header).map_or_else(String::new, |ty| ty.to_string()), str::to_owned)
}

fn file_type(id: u64) -> Option<&'static str> {
    Some(match id {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4",
        39 => "NVFP4",
        40 => "Q1_0",
        _ => return None,
    })
}

fn commonest(header: &Header) -> Option<GgmlType> {
    let mut bytes: BTreeMap<GgmlType, u64> = BTreeMap::new();
    for tensor in &header.tensors {
        let sum = bytes.entry(tensor.ggml_type).or_default();
        *sum = sum.saturating_add(tensor.bytes().0);
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(ty, _)| ty)
}
