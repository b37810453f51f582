//! Norms, activations and rotations.

use proptest::prelude::*;

use super::Bench;
use crate::backend::cuda::activation::{Activate, Combine};
use crate::backend::cuda::arguments::{CapArguments, Quantised, RotationsArguments};
use crate::backend::cuda::buffers::Rows;
use crate::backend::cuda::driver::DevicePointer;
use crate::backend::cuda::layer::RowNorm;
use crate::backend::cuda::raw_bytes::bytes;
use crate::backend::cuda::weights::DeviceNorm;
use crate::graph::Activation;
use crate::kernels::tests::Numbers;

fn near(found: f32, expected: f64) -> bool {
    (f64::from(found) - expected).abs() <= 2e-5 * expected.abs().max(1.0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_part_of_the_wanted_rows_is_normed(
        length in 1..300usize, parts in 1..4usize, wanted in proptest::collection::vec(0..5u32, 1..6), with_bias in any::<bool>(), seed in any::<u64>(),
    ) {
        let (bench, mut numbers) = (Bench::new(), Numbers(seed));
        let stride = length * parts + 3;
        let (x, weight, bias) = (numbers.floats(5 * stride), numbers.floats(length), numbers.floats(length));
        let rows = |at| Rows { at, stride: stride as u32 };
        let (to, named) = (bench.room(4 * wanted.len() * stride), bench.room(4 * wanted.len()));
        bench.arena.driver.upload(named, bytes(&wanted)).unwrap();
        let norm = DeviceNorm {
            weight: bench.put(&weight), bias: if with_bias { bench.put(&bias) } else { DevicePointer::NULL }, length, epsilon: 1e-5,
        };
        RowNorm::new(norm, rows(bench.put(&x)), rows(to), parts).run(&bench.kernels, wanted.len() as u32, named, Quantised::NOWHERE).unwrap();
        let found = bench.get(to, wanted.len() * stride);
        for (row, from) in wanted.iter().enumerate() {
            for part in 0..parts {
                let x = &x[*from as usize * stride + part * length..][..length];
                let mean = if with_bias { x.iter().map(|x| f64::from(*x)).sum::<f64>() / length as f64 } else { 0.0 };
                let squares = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / length as f64;
                for i in 0..length {
                    let normed = (f64::from(x[i]) - mean) / (squares + 1e-5).sqrt() * f64::from(weight[i]);
                    let expected = if with_bias { normed + f64::from(bias[i]) } else { normed };
                    prop_assert!(near(found[row * stride + part * length + i], expected));
                }
            }
        }
    }
}

/// Rows put through something, and what it was given.
fn through(length: usize, run: impl Fn(&Bench, Rows, Rows)) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (bench, mut numbers) = (Bench::new(), Numbers(9));
    let x: Vec<f32> = numbers.floats(3 * length).iter().map(|x| x * 12.0).collect();
    let y: Vec<f32> = numbers.floats(3 * length).iter().map(|y| y * 12.0).collect();
    let stride = length as u32;
    let (to, from) = (Rows { at: bench.put(&x), stride }, Rows { at: bench.put(&y), stride });
    run(&bench, to, from);
    let found = bench.get(to.at, 3 * length);
    (found, x, y)
}

#[test]
fn gates_are_activated_as_they_are_defined() {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let silu = move |x: f64, y: f64| x * sigmoid(x) * y;
    let gelu = |x: f64, y: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()) * y;
    let clamped = move |x: f64, y: f64| {
        let (x, y) = (x.min(7.0), y.clamp(-7.0, 7.0));
        x * sigmoid(1.702 * x) * (y + 1.0)
    };
    type Twin<'a> = &'a dyn Fn(f64, f64) -> f64;
    let ways: [(Activation, Twin<'_>); 3] =
        [(Activation::Silu, &silu), (Activation::GeluTanh, &gelu), (Activation::ClampedSwiGlu { alpha: 1.702, limit: 7.0 }, &clamped)];
    for (activation, twin) in ways {
        let (found, x, y) = through(150, |bench, gate, up| {
            Activate::gated(activation, gate, up, 150).run(&bench.kernels, 3, Quantised::NOWHERE).unwrap();
        });
        for ((found, x), y) in found.iter().zip(&x).zip(&y) {
            assert!(near(*found, twin(f64::from(*x), f64::from(*y))), "{activation:?} of {x} and {y}: {found}");
        }
    }
}

#[test]
fn what_is_made_is_brought_into_eight_bits_on_the_way() {
    let (bench, mut numbers) = (Bench::new(), Numbers(4));
    let (length, rows) = (96, 3);
    // One unit is all zeros.
    let x: Vec<f32> = numbers.floats(rows * length).iter().enumerate().map(|(i, x)| if i / 16 == 4 { 0.0 } else { x * 30.0 }).collect();
    let value = Rows { at: bench.put(&x), stride: length as u32 };
    let quantised = Quantised { codes: bench.room(rows * length), scales: bench.room(rows * length / 16 * 8) };
    Activate::gelu(value, length as u32).run(&bench.kernels, rows as u32, quantised).unwrap();
    let found = bench.get(value.at, rows * length);
    let mut codes = vec![0u8; rows * length];
    bench.arena.driver.download(quantised.codes, &mut codes).unwrap();
    let scales = bench.get(quantised.scales, rows * length / 8);
    for ((unit, codes), scale) in found.chunks_exact(16).zip(codes.chunks_exact(16)).zip(scales.chunks_exact(2)) {
        let most = unit.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!((scale[0] - most / 127.0).abs() <= 1e-6 * most);
        assert!(unit.iter().zip(codes).all(|(x, code)| (x - scale[0] * f32::from(*code as i8)).abs() <= 0.5001 * scale[0]));
        let sum: i32 = codes.iter().map(|code| i32::from(*code as i8)).sum();
        assert!((scale[1] - scale[0] * sum as f32).abs() <= 1e-5 * most * 16.0);
    }
}

#[test]
fn rows_are_added_shared_and_capped() {
    let (found, x, y) = through(150, |bench, to, from| Combine::add(to, from, 150, 0.25).run(&bench.kernels, 3).unwrap());
    assert!(found.iter().zip(x.iter().zip(&y)).all(|(found, (x, y))| near(*found, f64::from(*x) + f64::from(*y) / 4.0)));
    let (found, x, y) = through(150, |bench, to, by| Combine::share(to, by, 150).run(&bench.kernels, 3).unwrap());
    for (row, (found, x)) in found.chunks_exact(150).zip(x.chunks_exact(150)).enumerate() {
        let share = 1.0 / (1.0 + (-f64::from(y[row])).exp());
        assert!(found.iter().zip(x).all(|(found, x)| near(*found, f64::from(*x) * share)));
    }
    let (found, x, _) = through(150, |bench, to, _| {
        let arguments = CapArguments { values: to.at, count: 450, scale: 0.5, softcap: 3.0 };
        bench.kernels.launch(bench.kernels.cap, [4, 1, 1], 0, &arguments).unwrap();
    });
    assert!(found.iter().zip(&x).all(|(found, x)| near(*found, 3.0 * (f64::from(*x) / 6.0).tanh())));
}

#[test]
fn far_positions_are_turned_as_exactly_as_near_ones() {
    let bench = Bench::new();
    let frequencies = [1.0f32, 0.31, 1e-4];
    let positions = [0u32, 1, 131_071, 1_000_000];
    let tokens: Vec<[u32; 2]> = positions.iter().map(|position| [0, *position]).collect();
    let (at, to) = (bench.room(8 * tokens.len()), bench.room(4 * 8 * tokens.len()));
    bench.arena.driver.upload(at, bytes(&tokens)).unwrap();
    let arguments = RotationsArguments { frequencies: bench.put(&frequencies), tokens: at, to, stride: 8, pairs: 3, magnitude: 1.5 };
    bench.kernels.launch_rows(bench.kernels.rotations, 4, 3, &arguments).unwrap();
    for (found, position) in bench.get(to, 32).chunks_exact(8).zip(positions) {
        for (i, frequency) in frequencies.iter().enumerate() {
            let (sine, cosine) = (f64::from(position) * f64::from(*frequency)).sin_cos();
            assert!((f64::from(found[i]) - 1.5 * cosine).abs() < 1e-6 && (f64::from(found[3 + i]) - 1.5 * sine).abs() < 1e-6, "{position}");
        }
    }
}
