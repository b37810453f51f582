//! Each kernel against its scalar twin, and the scalar reading of every type against the reference backend's.

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QTensor};
use proptest::prelude::*;
use stowage_placement::KvCacheType;
use stowage_placement::gguf::GgmlType;

use super::cached::Cached;
use super::matrix::{Activations, Columns, Matrix, Products};
use super::{BLOCK, BLOCK_BYTES, Head, Isa, Query};
use crate::arena::{Arena, Purpose};
use crate::backend::reference;
use crate::file_mmap::TensorView;
use crate::pool::Pool;

pub(crate) const TYPES: [(GgmlType, Option<GgmlDType>); 16] = [
    (GgmlType::F32, Some(GgmlDType::F32)),
    (GgmlType::F16, Some(GgmlDType::F16)),
    (GgmlType::BF16, Some(GgmlDType::BF16)),
    (GgmlType::Q4_0, Some(GgmlDType::Q4_0)),
    (GgmlType::Q4_1, Some(GgmlDType::Q4_1)),
    (GgmlType::Q5_0, Some(GgmlDType::Q5_0)),
    (GgmlType::Q5_1, Some(GgmlDType::Q5_1)),
    (GgmlType::Q8_0, Some(GgmlDType::Q8_0)),
    (GgmlType::Q2_K, Some(GgmlDType::Q2K)),
    (GgmlType::Q3_K, Some(GgmlDType::Q3K)),
    (GgmlType::Q4_K, Some(GgmlDType::Q4K)),
    (GgmlType::Q5_K, Some(GgmlDType::Q5K)),
    (GgmlType::Q6_K, Some(GgmlDType::Q6K)),
    // candle has none of these.
    (GgmlType::IQ4_NL, None),
    (GgmlType::IQ4_XS, None),
    (GgmlType::MXFP4, None),
];

/// Numbers that look random and are the same each time (splitmix64).
pub(crate) struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// From -1 to 1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

/// Random weights of a type as they would lie in a file, and what the reference backend reads from them.
pub(crate) fn weights(ty: GgmlType, dtype: Option<GgmlDType>, rows: usize, columns: usize, numbers: &mut Numbers) -> (Vec<u8>, Vec<f32>) {
    let data = match dtype {
        Some(dtype) => {
            let floats = candle_core::Tensor::from_vec(numbers.floats(rows * columns), (rows, columns), &Device::Cpu).unwrap();
            QTensor::quantize(&floats, dtype).unwrap().data().unwrap().into_owned()
        }
        None => random_blocks(ty, rows * columns, numbers),
    };
    let view = TensorView { name: "test", ggml_type: ty, rows, columns, data: &data, map: None };
    let read = reference::dequantised(&view).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (data, read)
}

/// Blocks of any codes, with scales that keep weights below about 1.
fn random_blocks(ty: GgmlType, elements: usize, numbers: &mut Numbers) -> Vec<u8> {
    let mut data: Vec<u8> =
        (0..elements / ty.block_elements() as usize * ty.block_bytes() as usize).map(|_| numbers.next() as u8).collect();
    for block in data.chunks_exact_mut(ty.block_bytes() as usize) {
        let scale = half::f16::from_f32(numbers.float() * if ty == GgmlType::IQ4_XS { 2e-4 } else { 8e-3 });
        match ty {
            GgmlType::MXFP4 => block[0] = 122 + block[0] % 4,
            _ => block[..2].copy_from_slice(&scale.to_le_bytes()),
        }
    }
    data
}

fn matrix(ggml_type: GgmlType, data: &[u8], rows: usize, columns: usize) -> Matrix {
    let bytes =
        stowage_placement::layout::weight_bytes(ggml_type, rows as u64, columns as u64, stowage_placement::layout::Backend::Cpu).unwrap();
    let region = Arena::new(bytes).unwrap().take(Purpose::Weights, bytes).unwrap();
    let view = TensorView { name: "test", ggml_type, rows, columns, data, map: None };
    Matrix::load(&view, Activations::Quantised, region, &Pool::new(2).unwrap()).unwrap()
}

/// Products `[tokens, rows]` by one instruction set.
fn multiply(matrix: &Matrix, isa: Isa, activations: &[f32], tokens: usize, before: Option<&[f32]>) -> Vec<f32> {
    let (rows, length, width) = (matrix.rows, matrix.columns, isa.group_width(tokens));
    let mut quantised = vec![0u32; tokens.next_multiple_of(8) * length.div_ceil(BLOCK) * BLOCK_BYTES / 4];
    let mut results = before.map_or_else(|| vec![f32::NAN; tokens * rows], <[f32]>::to_vec);
    if matrix.is_quantised() {
        for (token, row) in activations.chunks_exact(length).enumerate() {
            let group = token / width * width * (length / BLOCK) * BLOCK_BYTES;
            // SAFETY: the group lies in the buffer.
            unsafe { isa.quantise(row.as_ptr(), length, token % width, width, quantised.as_mut_ptr().cast::<u8>().add(group)) };
        }
    }
    let columns = Columns { tokens, floats: activations.as_ptr(), stride: length, quantised: quantised.as_ptr().cast(), width };
    let products = Products { to: results.as_mut_ptr(), stride: rows, add: before.is_some() };
    for tile in 0..matrix.tiles() {
        // SAFETY: buffers have room for all rows and tokens.
        unsafe { matrix.multiply(isa, tile, &columns, products) };
    }
    results
}

fn scalar() -> Isa {
    *Isa::available().last().unwrap()
}

/// Whether plain floats are multiplied with rounded activations.
fn rounds_activations(ty: GgmlType, isa: Isa) -> bool {
    ty == GgmlType::BF16 && isa.name() == "avx512-bf16"
}

#[test]
fn every_type_is_read_as_the_reference_reads_it() {
    let mut numbers = Numbers(1);
    for (ty, dtype) in TYPES {
        let (rows, columns) = (21, 512);
        let (data, expected) = weights(ty, dtype, rows, columns, &mut numbers);
        let matrix = matrix(ty, &data, rows, columns);
        let mut row = vec![0f32; columns];
        for (index, expected) in expected.chunks_exact(columns).enumerate() {
            matrix.read_row(index, &mut row);
            for (column, (found, expected)) in row.iter().zip(expected).enumerate() {
                assert!((found - expected).abs() <= 1e-6, "{ty} row {index} column {column}: {found} instead of {expected}");
            }
        }
    }
}

#[test]
fn products_are_those_of_the_weights_as_floats_to_within_the_rounding_of_activations() {
    let mut numbers = Numbers(2);
    for (ty, dtype) in TYPES {
        let (rows, columns, tokens) = (37, 512, 11);
        let (data, floats) = weights(ty, dtype, rows, columns, &mut numbers);
        let matrix = matrix(ty, &data, rows, columns);
        let activations = numbers.floats(tokens * columns);
        for isa in Isa::available() {
            let found = multiply(&matrix, isa, &activations, tokens, None);
            let (mut error, mut size) = (0f64, 0f64);
            for (i, found) in found.iter().enumerate() {
                let (token, row) = (i / rows, i % rows);
                let pairs = floats[row * columns..][..columns].iter().zip(&activations[token * columns..][..columns]);
                let expected: f64 = pairs.map(|(w, a)| f64::from(*w) * f64::from(*a)).sum();
                error += (f64::from(*found) - expected).powi(2);
                size += expected.powi(2);
            }
            let bound = if matrix.is_quantised() || rounds_activations(ty, isa) { 0.01 } else { 1e-6 };
            assert!((error / size).sqrt() < bound, "{ty} on {}: relative error {}", isa.name(), (error / size).sqrt());
        }
    }
}

#[test]
fn a_column_has_the_same_products_whatever_columns_stand_beside_it() {
    let mut numbers = Numbers(3);
    for (ty, dtype) in TYPES {
        let (rows, columns, tokens) = (21, 1280, 21);
        let (data, _) = weights(ty, dtype, rows, columns, &mut numbers);
        let matrix = matrix(ty, &data, rows, columns);
        let (activations, before) = (numbers.floats(tokens * columns), numbers.floats(tokens * rows));
        for isa in Isa::available() {
            for before in [None, Some(before.as_slice())] {
                let together = multiply(&matrix, isa, &activations, tokens, before);
                for count in [1, 3, 7] {
                    let alone =
                        multiply(&matrix, isa, &activations[..count * columns], count, before.map(|before| &before[..count * rows]));
                    assert!(alone == together[..count * rows], "{ty} on {}: {count} of {tokens} columns", isa.name());
                }
            }
        }
    }
}

/// Blocks of one byte over and over, but for their scales in f16.
fn uniform_blocks(ty: GgmlType, elements: usize, byte: u8) -> Vec<u8> {
    let places: &[usize] = match ty {
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        GgmlType::Q6_K => &[208],
        GgmlType::MXFP4 => &[],
        _ => &[0],
    };
    let mut data = vec![byte; elements / ty.block_elements() as usize * ty.block_bytes() as usize];
    for block in data.chunks_exact_mut(ty.block_bytes() as usize) {
        places.iter().for_each(|&at| block[at..at + 2].copy_from_slice(&half::f16::from_f32(0.01).to_le_bytes()));
        if ty == GgmlType::MXFP4 {
            block[0] = 124;
        }
    }
    data
}

#[test]
fn the_largest_weights_and_activations_overflow_no_sum() {
    for (ty, _) in TYPES.into_iter().filter(|(ty, _)| stowage_placement::layout::is_tiled(*ty)) {
        for (byte, activation) in [(255u8, 1f32), (255, -1.0), (0, 1.0), (0, -1.0), (0x80, 1.0), (0x7f, -1.0), (0x77, 1.0), (0x88, 1.0)] {
            let (rows, columns) = (16, 256);
            let matrix = matrix(ty, &uniform_blocks(ty, rows * columns, byte), rows, columns);
            for tokens in [1, 3, 8] {
                let activations = vec![activation; tokens * columns];
                let expected = multiply(&matrix, scalar(), &activations, tokens, None);
                for isa in Isa::available() {
                    let found = multiply(&matrix, isa, &activations, tokens, None);
                    let close = |(found, expected): (&f32, &f32)| (found - expected).abs() <= 1e-3 * (1.0 + expected.abs());
                    assert!(found.iter().zip(&expected).all(close), "{ty} of {byte} on {}: {found:?} instead of {expected:?}", isa.name());
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_product_kernel_agrees_with_its_scalar_twin(seed in any::<u64>(), kind in 0..TYPES.len(), rows in 2usize..50, blocks in 1usize..6, tokens in 1usize..20, add in any::<bool>()) {
        let (ty, dtype) = TYPES[kind];
        let (mut numbers, columns) = (Numbers(seed), blocks * 256);
        let (data, _) = weights(ty, dtype, rows, columns, &mut numbers);
        let matrix = matrix(ty, &data, rows, columns);
        let activations = numbers.floats(tokens * columns);
        let before = add.then(|| numbers.floats(tokens * rows));
        let expected = multiply(&matrix, scalar(), &activations, tokens, before.as_deref());
        for isa in Isa::available() {
            let found = multiply(&matrix, isa, &activations, tokens, before.as_deref());
            for (found, expected) in found.iter().zip(&expected) {
                let bound = if rounds_activations(ty, isa) { 0.05 } else { 2e-3 };
                prop_assert!((found - expected).abs() < bound * (1.0 + expected.abs()), "{} on {}: {} instead of {}", ty, isa.name(), found, expected);
            }
        }
    }

    #[test]
    fn what_is_done_with_rows_agrees_with_its_scalar_twin(seed in any::<u64>(), length in 1usize..100) {
        let mut numbers = Numbers(seed);
        let (rows, weight) = (numbers.floats(length).iter().map(|x| x * 20.0).collect::<Vec<_>>(), numbers.floats(length));
        let run = |isa: Isa| {
            let (mut normed, mut gate, mut turned) = (vec![0f32; length], rows.clone(), rows.clone());
            let [mut gelu, mut clamped, mut halves, mut capped, mut scaled, mut layer, mut exact] = std::array::from_fn(|_| rows.clone());
            // SAFETY: all rows have `length` floats; the rotation has two for each pair.
            unsafe {
                isa.norm(rows.as_ptr(), weight.as_ptr(), length, 1e-5, normed.as_mut_ptr());
                isa.gated_silu(gate.as_mut_ptr(), weight.as_ptr(), length);
                isa.rotate(turned.as_mut_ptr(), 1, length, weight.as_ptr(), length / 2);
                isa.gated_gelu_tanh(gelu.as_mut_ptr(), weight.as_ptr(), length);
                isa.gated_clamped(clamped.as_mut_ptr(), weight.as_ptr(), length, 1.702, 7.0);
                isa.rotate_halves(halves.as_mut_ptr(), 1, length, weight.as_ptr(), length / 2);
                isa.layer_norm(rows.as_ptr(), weight.as_ptr(), weight.as_ptr(), length, 1e-5, layer.as_mut_ptr());
                isa.gelu(exact.as_mut_ptr(), length);
                isa.softcap(capped.as_mut_ptr(), 30.0, length);
                isa.scale(scaled.as_mut_ptr(), 0.7, length);
                isa.add_scaled(scaled.as_mut_ptr(), weight.as_ptr(), 0.3, length);
            }
            [normed, gate, turned, gelu, clamped, halves, capped, scaled, layer, exact].concat()
        };
        let expected = run(scalar());
        for isa in Isa::available() {
            for (found, expected) in run(isa).iter().zip(&expected) {
                prop_assert!((found - expected).abs() <= 1e-5 * (1.0 + expected.abs()), "{}: {} instead of {}", isa.name(), found, expected);
            }
        }
    }

    #[test]
    fn attention_is_the_softmax_of_scores_over_all_that_a_query_sees(
        seed in any::<u64>(),
        queries in 1usize..17,
        seen in 1usize..600,
        window in 1usize..300,
        key_length in 1usize..70,
        value_length in 1usize..100,
        softcap in prop_oneof![Just(0f32), Just(2.0)],
        sink in prop_oneof![Just(f32::NEG_INFINITY), Just(1.5)],
    ) {
        let mut numbers = Numbers(seed);
        let cells = 256;
        let half = |x: f32| half::f16::from_f32(x);
        let mut keys: Vec<_> = numbers.floats(cells * key_length).into_iter().map(half).collect();
        let mut values: Vec<_> = numbers.floats(cells * value_length).into_iter().map(half).collect();
        let vectors = numbers.floats(queries * key_length);
        let ends: Vec<usize> = (0..queries).map(|i| seen + i / 2).collect();
        // What is still in the ring when the last one was stored.
        let firsts: Vec<usize> = ends.iter().map(|end| end.saturating_sub(window).max((ends[queries - 1]).saturating_sub(cells))).collect();
        let expected: Vec<f64> = (0..queries).flat_map(|query| {
            let key = |p: usize, d: usize| f64::from(keys[(p % cells / 16 * key_length + d) * 16 + p % 16].to_f32());
            let plain = |p: usize| 3.0 * (0..key_length).map(|d| key(p, d) * f64::from(vectors[query * key_length + d])).sum::<f64>();
            let score = |p: usize| if softcap > 0.0 { f64::from(softcap) * (plain(p) / f64::from(softcap)).tanh() } else { plain(p) };
            let weights: Vec<f64> = (firsts[query]..ends[query]).map(|p| score(p).exp()).collect();
            let sum: f64 = weights.iter().sum::<f64>() + f64::from(sink).exp();
            let value = |p: usize, d: usize| f64::from(values[p % cells * value_length + d].to_f32());
            (0..value_length).map(|d| weights.iter().zip(firsts[query]..).map(|(w, p)| w / sum * value(p, d)).sum()).collect::<Vec<f64>>()
        }).collect();
        for isa in Isa::available() {
            let mut found = vec![0f32; queries * value_length];
            let cached = Cached {
                cache_type: KvCacheType::F16,
                keys: keys.as_mut_ptr().cast(),
                values: values.as_mut_ptr().cast(),
                key_length,
                value_length,
                cells,
            };
            let head = Head { cached, scale: 3.0, softcap };
            let to = found.as_mut_ptr();
            // SAFETY: each query has its vector and its place for the answer.
            let queries: Vec<Query> = (0..queries).map(|i| unsafe {
                let (from, to) = (vectors.as_ptr().add(i * key_length), to.add(i * value_length));
                Query { from, to, first: firsts[i], end: ends[i], sink, partial: std::ptr::null_mut() }
            }).collect();
            // SAFETY: the cache has 256 cells.
            unsafe { isa.attend(&head, &queries) };
            for (found, expected) in found.iter().zip(&expected) {
                prop_assert!((f64::from(*found) - expected).abs() < 1e-4, "{}: {} instead of {}", isa.name(), found, expected);
            }
        }
    }
}

#[test]
fn the_transform_of_heads_keeps_products_and_is_its_own_inverse() {
    for isa in Isa::available() {
        for length in [32, 64, 96, 128, 256] {
            let head = |seed: usize| (0..length).map(|i| ((i * 37 + seed * 101) % 29) as f32 - 14.0).collect::<Vec<f32>>();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            let (a, b) = (head(1), head(2));
            let transformed = |head: &[f32]| {
                let mut head = head.to_vec();
                // SAFETY: the row has as many floats as are said.
                unsafe { isa.hadamard(head.as_mut_ptr(), length) };
                head
            };
            let (c, d) = (transformed(&a), transformed(&b));
            assert!((dot(&a, &b) - dot(&c, &d)).abs() < 1e-3 * dot(&a, &a), "{} {length}", isa.name());
            assert!(transformed(&c).iter().zip(&a).all(|(found, expected)| (found - expected).abs() < 1e-4), "{} {length}", isa.name());
            // One outlier is spread over a whole run.
            let mut outlier = vec![0.0; length];
            outlier[5] = 1.0;
            let run = (1usize << length.trailing_zeros()) as f32;
            let most = transformed(&outlier).iter().fold(0f32, |most, x| most.max(x.abs()));
            assert!((most - 1.0 / run.sqrt()).abs() < 1e-6, "{} {length}: {most}", isa.name());
        }
    }
}
