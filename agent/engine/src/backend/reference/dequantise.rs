//! Weights of any type as f32: by candle where it has the type, else by the definition of the type, element by element.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};
use half::f16;
use stowage_placement::Reason;
use stowage_placement::gguf::GgmlType;

use super::failed;
use crate::api::EngineError;
use crate::file_mmap::TensorView;

/// `[rows, columns]`
pub(crate) fn dequantised(view: &TensorView<'_>) -> Result<Tensor, EngineError> {
    let by_definition: fn(&[u8], usize) -> f32 = match view.ggml_type {
        GgmlType::IQ4_NL => iq4_nl,
        GgmlType::IQ4_XS => iq4_xs,
        GgmlType::MXFP4 => mxfp4,
        _ => return by_candle(view),
    };
    let (elements, bytes) = (view.ggml_type.block_elements() as usize, view.ggml_type.block_bytes() as usize);
    let blocks = view.data.chunks_exact(bytes);
    let floats = blocks.flat_map(|block| (0..elements).map(move |element| by_definition(block, element)));
    Tensor::from_vec(floats.collect::<Vec<f32>>(), (view.rows, view.columns), &Device::Cpu).map_err(failed)
}

fn by_candle(view: &TensorView<'_>) -> Result<Tensor, EngineError> {
    let dtype = dtype(view.ggml_type).ok_or_else(|| {
        let message = format!("the reference backend can't read tensor `{}` of type {}", view.name, view.ggml_type);
        EngineError::new(Reason::EngineCannotRun, message)
    })?;
    let read = || {
        let storage = QStorage::from_data(Cow::Borrowed(view.data), &Device::Cpu, dtype)?;
        QTensor::new(storage, (view.rows, view.columns))?.dequantize(&Device::Cpu)
    };
    read().map_err(failed)
}

/// The type as candle has it, where it does.
pub(crate) fn dtype(ty: GgmlType) -> Option<GgmlDType> {
    Some(match ty {
        GgmlType::F32 => GgmlDType::F32,
        GgmlType::F16 => GgmlDType::F16,
        GgmlType::BF16 => GgmlDType::BF16,
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q2_K => GgmlDType::Q2K,
        GgmlType::Q3_K => GgmlDType::Q3K,
        GgmlType::Q4_K => GgmlDType::Q4K,
        GgmlType::Q5_K => GgmlDType::Q5K,
        GgmlType::Q6_K => GgmlDType::Q6K,
        _ => return None,
    })
}

/// The code of an element of 32, whose first 16 are the low halves of 16 bytes.
fn code(bytes: &[u8], element: usize) -> usize {
    usize::from(if element < 16 { bytes[element] & 0xf } else { bytes[element - 16] >> 4 })
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Source: `dequantize_row_iq4_nl` of ggml.
fn iq4_nl(block: &[u8], element: usize) -> f32 {
    half(block) * NON_LINEAR[code(&block[2..], element)]
}

/// Source: `dequantize_row_iq4_xs` of ggml.
fn iq4_xs(block: &[u8], element: usize) -> f32 {
    let sub = element / 32;
    let low = u16::from(block[4 + sub / 2] >> (4 * (sub % 2))) & 0xf;
    let high = (u16::from_le_bytes([block[2], block[3]]) >> (2 * sub)) & 3;
    let scale = f32::from(low | high << 4) - 32.0;
    half(block) * scale * NON_LINEAR[code(&block[8 + 16 * sub..], element % 32)]
}

const NON_LINEAR: [f32; 16] = [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// A power of two, times a number of one sign bit, two of exponent and one of mantissa.
///
/// Source: "OCP Microscaling Formats (MX) Specification" 1.0.
fn mxfp4(block: &[u8], element: usize) -> f32 {
    let code = code(&block[1..], element);
    let (sign, exponent, mantissa) = (if code & 8 == 0 { 1.0 } else { -1.0 }, (code >> 1 & 3) as i32, (code & 1) as f64);
    let magnitude = if exponent == 0 { 0.5 * mantissa } else { f64::from(1 << (exponent - 1)) * (1.0 + 0.5 * mantissa) };
    (sign * magnitude * f64::from(i32::from(block[0]) - 127).exp2()) as f32
}
