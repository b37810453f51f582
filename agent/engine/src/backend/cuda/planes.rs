//! How a matrix lies on a device: in planes, each the same part of every block, one after the other. It takes the bytes that it takes in the file, and whatever a
//! kernel reads at once is aligned, which it is not within blocks of 18 or 210 bytes. `kernels/weights.cuh` reads by the same order.

use stowage_placement::Reason;
use stowage_placement::gguf::GgmlType;

use super::driver::{DevicePointer, Driver};
use crate::api::EngineError;
use crate::file_mmap::TensorView;

/// Bytes that are put in order and uploaded at a time.
const CHUNK: usize = 4 << 20;

/// A part of a block in the file: its first byte, and how many.
type Plane = (usize, usize);

/// The planes of a type in their order; one of whole blocks where blocks stay together. `None`: there are no kernels for it.
fn planes(ty: GgmlType) -> Option<&'static [Plane]> {
    Some(match ty {
        GgmlType::F32 => &[(0, 4)],
        GgmlType::F16 | GgmlType::BF16 => &[(0, 2)],
        GgmlType::Q4_0 | GgmlType::IQ4_NL => &[(2, 16), (0, 2)],
        GgmlType::Q4_1 => &[(4, 16), (0, 4)],
        GgmlType::Q5_0 => &[(6, 16), (2, 4), (0, 2)],
        GgmlType::Q5_1 => &[(8, 16), (4, 4), (0, 4)],
        GgmlType::Q8_0 => &[(2, 32), (0, 2)],
        GgmlType::Q2_K => &[(16, 64), (0, 16), (80, 4)],
        GgmlType::Q3_K => &[(32, 64), (0, 32), (96, 12), (108, 2)],
        GgmlType::Q4_K => &[(16, 128), (0, 16)],
        GgmlType::Q5_K => &[(48, 128), (16, 32), (0, 16)],
        GgmlType::Q6_K => &[(0, 128), (128, 64), (192, 16), (208, 2)],
        GgmlType::IQ4_XS => &[(8, 128), (0, 8)],
        GgmlType::MXFP4 => &[(1, 16), (0, 1)],
        _ => return None,
    })
}

/// Brings a tensor to a device. What was read of the file is let go of.
pub fn upload(driver: &dyn Driver, view: &TensorView<'_>, to: DevicePointer) -> Result<(), EngineError> {
    let planes = planes(view.ggml_type).ok_or_else(|| {
        let message = format!("tensor `{}` has type {}, for which there are no CUDA kernels", view.name, view.ggml_type);
        EngineError::new(Reason::EngineCannotRun, message)
    })?;
    let block_bytes = view.ggml_type.block_bytes() as usize;
    if let [(_, _)] = planes {
        driver.upload(to, view.data)?;
        view.let_go(0..view.data.len());
        return Ok(());
    }
    let blocks = view.data.len() / block_bytes;
    let in_chunk = CHUNK / block_bytes;
    let mut staged = Vec::with_capacity(CHUNK);
    for first in (0..blocks).step_by(in_chunk) {
        let chunk = first * block_bytes..(first + in_chunk).min(blocks) * block_bytes;
        let mut before = 0;
        for (start, length) in planes {
            staged.clear();
            for block in view.data[chunk.clone()].chunks_exact(block_bytes) {
                staged.extend_from_slice(&block[*start..start + length]);
            }
            driver.upload(to.after(blocks * before + first * length), &staged)?;
            before += length;
        }
        view.let_go(chunk);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use stowage_placement::capability::WEIGHT_TYPES;

    #[test]
    fn every_type_has_planes_that_hold_each_byte_of_a_block_once_and_are_aligned_one_after_the_other() {
        for ty in WEIGHT_TYPES {
            let planes = planes(*ty).unwrap();
            let mut bytes: Vec<usize> = planes.iter().flat_map(|(start, length)| *start..start + length).collect();
            bytes.sort_unstable();
            assert_eq!(bytes, (0..ty.block_bytes() as usize).collect::<Vec<usize>>(), "{ty}");
            // A plane begins after a multiple of each that is before it; what is read of it at once is the largest power of two in its length, up to 16.
            for pair in planes.windows(2) {
                let aligned = |length: usize| (1 << length.trailing_zeros()).min(16);
                assert!(aligned(pair[0].1) >= aligned(pair[1].1), "{ty}");
            }
        }
    }
}
