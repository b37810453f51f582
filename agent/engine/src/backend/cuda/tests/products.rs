//! Products with weights of every type, few columns and many, whole matrices and parts of them.

use proptest::prelude::*;
use stowage_placement::gguf::GgmlType;

use super::Bench;
use crate::backend::cuda::arguments::{Matrix, Part};
use crate::backend::cuda::buffers::Rows;
use crate::backend::cuda::driver::DevicePointer;
use crate::backend::cuda::linear::{Linear, Routed};
use crate::backend::cuda::planes;
use crate::backend::cuda::raw_bytes::bytes;
use crate::file_mmap::TensorView;
use crate::kernels::tests::{Numbers, TYPES, weights};

/// A matrix on the device, and its weights.
struct Random {
    ty: GgmlType,
    columns: usize,
    matrix: Matrix,
    floats: Vec<f32>,
}

impl Random {
    fn new(bench: &Bench, type_index: usize, rows: usize, blocks: usize, numbers: &mut Numbers) -> Random {
        let (ty, dtype) = TYPES[type_index];
        // Plain floats need no whole blocks, and are read eight at a time where they have such.
        let columns = match ty.is_plain() {
            true if numbers.next().is_multiple_of(2) => 31 * blocks + 3,
            true => 40 * blocks,
            false => ty.block_elements() as usize * blocks,
        };
        let (data, floats) = weights(ty, dtype, rows, columns, numbers);
        let at = bench.room(data.len());
        let view = TensorView { name: "test", ggml_type: ty, rows, columns, data: &data, map: None };
        planes::upload(&*bench.arena.driver, &view, at).unwrap();
        Random { ty, columns, matrix: Matrix { data: at, rows: rows as u32, columns: columns as u32 }, floats }
    }

    /// A row times a column, and the sum of what their elements' products are at most.
    fn product(&self, row: usize, column: &[f32]) -> (f64, f64) {
        let terms = self.floats[row * self.columns..][..self.columns].iter().zip(column).map(|(w, x)| f64::from(*w) * f64::from(*x));
        let most = column.iter().fold(0f32, |most, x| most.max(x.abs()));
        let weights: f64 = self.floats[row * self.columns..][..self.columns].iter().map(|w| f64::from(w.abs())).sum();
        (terms.sum(), weights * f64::from(most))
    }

    /// How far a product may be off, of the sum of what its elements are at most: by half a step of 8 bits, or by what half precision rounds.
    fn bound(&self, few: bool) -> f64 {
        match (few, self.ty.is_plain()) {
            (true, true) => 1e-5,
            (true, false) => 0.51 / 127.0,
            (false, _) => 1.0 / 1024.0,
        }
    }
}

fn activations(bench: &Bench, width: usize) -> DevicePointer {
    bench.room(32 * (2 * width.next_multiple_of(32) + 4))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parts_of_matrices_of_any_type_are_multiplied_with_any_number_of_columns(
        types in proptest::array::uniform2(0..TYPES.len()),
        rows in 2..150usize,
        blocks in 1..3usize,
        columns in prop_oneof![1..9usize, 9..20usize],
        first in 0..40usize,
        add in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let (bench, mut numbers) = (Bench::new(), Numbers(seed));
        let mut kernels = super::Kernels::new(bench.arena.driver.clone(), false).unwrap();
        let one = Random::new(&bench, types[0], rows, blocks, &mut numbers);
        // Of the same width, or the first again.
        let other = Random::new(&bench, types[1], rows, blocks, &mut numbers);
        let other = if other.columns == one.columns { &other } else { &one };
        let first = first.min(rows - 1);
        let (width, stride) = (one.columns, rows + 5);
        let x = numbers.floats(columns * width);
        let bias = numbers.floats(rows);
        let before = vec![0.5f32; columns * stride];
        let (from, bias_at) = (bench.put(&x), bench.put(&bias));
        let mut linear = Linear::new(Rows { at: from, stride: width as u32 }, width as u32, activations(&bench, width));
        let (to, to_other) = (bench.put(&before), bench.put(&before));
        let part = Part {
            matrix: one.matrix, to, bias: bias_at.after(4 * first), first: first as u32, rows: (rows - first) as u32, stride: stride as u32, add: add.into(),
        };
        linear.push(&mut kernels, one.ty, part).unwrap();
        let all = Part { matrix: other.matrix, to: to_other, bias: DevicePointer::NULL, first: 0, rows: rows as u32, stride: stride as u32, add: 0 };
        linear.push(&mut kernels, other.ty, all).unwrap();
        linear.run(&kernels, columns as u32).unwrap();
        let (found, found_other) = (bench.get(to, columns * stride), bench.get(to_other, columns * stride));
        for column in 0..columns {
            let x = &x[column * width..][..width];
            for row in 0..rows {
                let (expected, most) = other.product(row, x);
                let got = f64::from(found_other[column * stride + row]);
                prop_assert!((got - expected).abs() <= most * other.bound(columns <= 8) + 1e-5, "{}: {} instead of {}", other.ty, got, expected);
                if row < first { continue; }
                let (expected, most) = one.product(row, x);
                let expected = expected + f64::from(bias[row]) + if add { 0.5 } else { 0.0 };
                let got = f64::from(found[column * stride + row - first]);
                prop_assert!((got - expected).abs() <= most * one.bound(columns <= 8) + 1e-5, "{}: {} instead of {}", one.ty, got, expected);
            }
            // Nothing is written beyond a part's rows.
            prop_assert!(found[column * stride + rows - first..(column + 1) * stride].iter().all(|x| *x == 0.5));
        }
    }

    #[test]
    fn each_token_is_multiplied_with_its_experts_alone(
        type_index in 0..TYPES.len(),
        experts in 2..6usize,
        used in 1..3usize,
        tokens in prop_oneof![1..9usize, 9..24usize],
        by_token in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let (bench, mut numbers) = (Bench::new(), Numbers(seed));
        let mut kernels = super::Kernels::new(bench.arena.driver.clone(), true).unwrap();
        let rows = 33;
        let all = Random::new(&bench, type_index, experts * rows, 1, &mut numbers);
        let pairs = tokens * used;
        let columns = if by_token { tokens } else { pairs };
        let x = numbers.floats(columns * all.columns);
        let bias = numbers.floats(experts * rows);
        let choices: Vec<[u32; 2]> = (0..pairs).map(|_| [(numbers.next() % experts as u64) as u32, 0]).collect();
        let choices_at = bench.room(8 * pairs);
        bench.arena.driver.upload(choices_at, bytes(&choices)).unwrap();
        let (tiles, sorted_pairs) = (bench.room(16 * (pairs + experts)), bench.room(4 * pairs));
        let sort = crate::backend::cuda::arguments::SortArguments {
            choices: choices_at, sorted_pairs, tiles, pairs: pairs as u32, experts: experts as u32,
            most_tiles: crate::backend::cuda::linear::most_tiles(pairs as u32, experts as u32), tile_columns: 128,
        };
        kernels.launch(kernels.experts.unwrap().sort_by_expert, [1, 1, 1], experts as u32, &sort).unwrap();
        let room = bench.room(pairs * (2 * all.columns.next_multiple_of(32) + 4));
        let mut linear = Linear::new(Rows { at: bench.put(&x), stride: all.columns as u32 }, all.columns as u32, room);
        let to = bench.room(4 * pairs * rows);
        let part = Part { matrix: all.matrix, to, bias: bench.put(&bias), first: 0, rows: rows as u32, stride: rows as u32, add: 0 };
        linear.push(&mut kernels, all.ty, part).unwrap();
        let routed = Routed { choices: choices_at, tiles, sorted_pairs, used: used as u32, experts: experts as u32, by_token };
        linear.run_routed(&kernels, tokens as u32, routed).unwrap();
        let found = bench.get(to, pairs * rows);
        for pair in 0..pairs {
            let column = if by_token { pair / used } else { pair };
            for row in 0..rows {
                let at = choices[pair][0] as usize * rows + row;
                let (expected, most) = all.product(at, &x[column * all.columns..][..all.columns]);
                let (expected, got) = (expected + f64::from(bias[at]), f64::from(found[pair * rows + row]));
                prop_assert!((got - expected).abs() <= most * all.bound(tokens <= 8) + 1e-5, "{}: {} instead of {}", all.ty, got, expected);
            }
        }
    }
}

#[test]
fn rows_far_beyond_half_precision_are_multiplied_as_well_as_others() {
    let (bench, mut numbers) = (Bench::new(), Numbers(3));
    let mut kernels = super::Kernels::new(bench.arena.driver.clone(), false).unwrap();
    let matrix = Random::new(&bench, 0, 40, 2, &mut numbers);
    let width = matrix.columns;
    // Of each row another size, and one of zeros.
    let sizes = [1e30f32, 1e-30, 70000.0, 1.0, 0.0, 1e-12, 3e37, 1e6, 1e-3, 5.0];
    let x: Vec<f32> = sizes.iter().flat_map(|size| numbers.floats(width).into_iter().map(move |x| x * size)).collect();
    let mut linear = Linear::new(Rows { at: bench.put(&x), stride: width as u32 }, width as u32, activations(&bench, width));
    let to = bench.room(4 * 40 * sizes.len());
    let part = Part { matrix: matrix.matrix, to, bias: DevicePointer::NULL, first: 0, rows: 40, stride: 40, add: 0 };
    linear.push(&mut kernels, matrix.ty, part).unwrap();
    linear.run(&kernels, sizes.len() as u32).unwrap();
    for (column, found) in bench.get(to, 40 * sizes.len()).chunks_exact(40).enumerate() {
        for (row, found) in found.iter().enumerate() {
            let (expected, most) = matrix.product(row, &x[column * width..][..width]);
            assert!((f64::from(*found) - expected).abs() <= most / 1024.0, "{found} instead of {expected}");
        }
    }
}
