//! How tokens choose their experts.

use proptest::prelude::*;

use super::Bench;
use crate::backend::cuda::arguments::ChooseArguments;
use crate::backend::cuda::driver::{DevicePointer, Shape};
use crate::graph::Groups;
use crate::kernels::tests::Numbers;

/// Indices of the values, the largest first; of equal ones the first.
fn order(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    order
}

fn softmax(values: &[f64]) -> Vec<f64> {
    let sum: f64 = values.iter().map(|value| value.exp()).sum();
    values.iter().map(|value| value.exp() / sum).collect()
}

/// The experts of a token and their weights, as `graph::Experts` defines them.
fn chosen(logits: &[f32], bias: &[f32], gating: u32, groups: Option<Groups>, used: usize, renormalise: bool) -> Vec<(usize, f64)> {
    let logits: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
    let scores = match gating {
        0 => softmax(&logits),
        1 => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        _ => logits,
    };
    let mut by: Vec<f64> = scores.iter().zip(bias).map(|(score, bias)| score + f64::from(*bias)).collect();
    if let Some(Groups { count, used }) = groups {
        let size = by.len() / count;
        let worth = |group: &[f64]| order(group)[..2].iter().map(|expert| group[*expert]).sum();
        let worths: Vec<f64> = by.chunks_exact(size).map(worth).collect();
        let best = &order(&worths)[..used];
        by.iter_mut().enumerate().filter(|(expert, _)| !best.contains(&(expert / size))).for_each(|(_, by)| *by = f64::NEG_INFINITY);
    }
    let chosen = &order(&by)[..used];
    let mut weights: Vec<f64> = chosen.iter().map(|expert| scores[*expert]).collect();
    if gating == 2 {
        weights = softmax(&weights);
    }
    let sum: f64 = if renormalise { weights.iter().sum() } else { 1.0 };
    chosen.iter().copied().zip(weights.into_iter().map(|weight| weight * 2.5 / sum)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn experts_are_chosen_and_weighed_as_the_graph_says(
        size in 2..40usize, groups in prop_oneof![Just(None), (1..4usize, 4..6usize).prop_map(Some)], used in 1..9usize,
        gating in 0..3u32, renormalise in any::<bool>(), with_bias in any::<bool>(), seed in any::<u64>(),
    ) {
        let (bench, mut numbers) = (Bench::new(), Numbers(seed));
        let groups = groups.map(|(used, count)| Groups { count, used });
        let count = groups.map_or(size, |groups| size * groups.count);
        let used = used.min(groups.map_or(size, |groups| size * groups.used));
        let tokens = 3;
        let logits: Vec<f32> = numbers.floats(tokens * count).iter().map(|logit| logit * 6.0).collect();
        let bias = if with_bias { numbers.floats(count) } else { vec![0.0; count] };
        let choices = bench.room(8 * tokens * used);
        let arguments = ChooseArguments {
            logits: bench.put(&logits),
            selection_bias: if with_bias { bench.put(&bias) } else { DevicePointer::NULL },
            choices,
            count: count as u32,
            used: used as u32,
            gating,
            groups: groups.map_or(0, |groups| groups.count as u32),
            groups_used: groups.map_or(0, |groups| groups.used as u32),
            renormalise: renormalise.into(),
            scale: 2.5,
        };
        let shared_bytes = 4 * (2 * count as u32 + arguments.groups + used as u32);
        let shape = Shape { grid: [tokens as u32, 1, 1], threads: 32, shared_bytes };
        bench.arena.driver.launch(bench.kernels.experts.unwrap().choose, shape, &arguments).unwrap();
        let found = bench.get(choices, 2 * tokens * used);
        for (found, logits) in found.chunks_exact(2 * used).zip(logits.chunks_exact(count)) {
            for (found, (expert, weight)) in found.chunks_exact(2).zip(chosen(logits, &bias, gating, groups, used, renormalise)) {
                prop_assert_eq!(found[0].to_bits() as usize, expert);
                prop_assert!((f64::from(found[1]) - weight).abs() <= 1e-5 * weight.abs().max(1.0), "{} instead of {}", found[1], weight);
            }
        }
    }
}
