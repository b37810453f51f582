//! Heads normed, turned, kept in caches of every type, and attended to, against attention as it is defined, over all that a sequence had.

use proptest::prelude::*;
use stowage_placement::compute::ComputeShape;
use stowage_placement::{KvCacheType, Request, Tokens};

use super::Bench;
use crate::backend::cuda::attention::{Approach, DeviceAttention, device_cache};
use crate::backend::cuda::buffers::{self, Buffers};
use crate::backend::cuda::driver::DevicePointer;
use crate::backend::cuda::pass::Pass;
use crate::backend::cuda::raw_bytes::bytes;
use crate::backend::cuda::weights::DeviceNorm;
use crate::batch::Batch;
use crate::cache;
use crate::graph::{Attention, CacheShape, Operand, Pairing, Rope, Scaling};
use crate::kernels::tests::Numbers;

/// What is computed.
#[derive(Clone, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    key_length: usize,
    value_length: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    cache_type: KvCacheType,
    pairing: Option<Pairing>,
    normed: bool,
    sinks: bool,
    /// Tokens of each batch, by slot.
    batches: Vec<[usize; 2]>,
    seed: u64,
}

/// Keys and values of a sequence, of each head.
#[derive(Default)]
struct History {
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

fn cases() -> impl Strategy<Value = Case> {
    let lengths = prop_oneof![Just((32, 32)), Just((64, 96)), Just((128, 128)), Just((96, 256)), Just((256, 160))];
    let odd = prop_oneof![Just((12, 10)), Just((20, 33)), Just((72, 300))];
    let shape = (prop_oneof![Just((1, 1)), Just((4, 2)), Just((3, 3)), Just((9, 1)), Just((16, 2))], any::<bool>(), lengths, odd);
    let cache_type = prop_oneof![Just(KvCacheType::F16), Just(KvCacheType::Q8_0), Just(KvCacheType::Q4_0)];
    let window = prop_oneof![Just(None), (1..90usize).prop_map(Some)];
    let pairing = prop_oneof![Just(None), Just(Some(Pairing::Halves)), Just(Some(Pairing::Neighbours))];
    let batches = proptest::collection::vec([0..40usize, 0..40usize], 1..5);
    let flags = (any::<bool>(), any::<bool>());
    (shape, cache_type, window, pairing, flags, proptest::option::of(5.0..20.0f32), batches, any::<u64>()).prop_map(
        |(((heads, kv_heads), is_odd, whole, odd), cache_type, window, pairing, (normed, sinks), softcap, batches, seed)| {
            let (key_length, value_length) = if is_odd && cache_type == KvCacheType::F16 { odd } else { whole };
            Case { heads, kv_heads, key_length, value_length, window, softcap, cache_type, pairing, normed, sinks, batches, seed }
        },
    )
}

const NUM_BATCH: u32 = 80;

/// A device with one layer's cache.
struct Layer {
    bench: Bench,
    buffers: Buffers,
    attention: DeviceAttention,
}

fn rope(case: &Case) -> Option<Rope> {
    let turned =
        |pairing| Rope { pairing, dimensions: case.key_length / 4 * 2, base: 100.0, scaling: Scaling::None, factors: None, magnitude: 1.0 };
    case.pairing.map(turned)
}

fn layer(case: &Case, weights: &[Vec<f32>; 2]) -> Layer {
    let bench = Bench::new();
    let request = Request { num_ctx: Tokens(512), parallel: 2, num_batch: NUM_BATCH, kv_cache_type: case.cache_type, ..Request::default() };
    let shape = ComputeShape {
        embedding: 8,
        heads: case.heads as u64,
        kv_heads_max: case.kv_heads as u64,
        key_length: case.key_length as u64,
        value_length: case.value_length as u64,
        feed_forward: 8,
        vocabulary: 8,
        ropes: 1,
        ..ComputeShape::default()
    };
    let cached = CacheShape {
        kv_heads: case.kv_heads,
        key_length: case.key_length,
        value_length: case.value_length,
        window: case.window,
        for_a_batch: false,
    };
    let hidden = buffers::hidden(&bench.arena, &shape, NUM_BATCH.into()).unwrap();
    let buffers = Buffers::new(&bench.arena, hidden, &shape, &request).unwrap();
    let data = bench.room(cache::layer_bytes(&cached, &request).unwrap().0 as usize);
    let attention = Attention { heads: case.heads, scale: 0.3, softcap: case.softcap, causal: true, sinks: None, to: Operand::Attended };
    let norm =
        |weight: &Vec<f32>| DeviceNorm { weight: bench.put(weight), bias: DevicePointer::NULL, length: case.key_length, epsilon: 1e-6 };
    let [query_norm, key_norm] = weights.each_ref().map(|weight| case.normed.then(|| norm(weight)));
    let turned = case.pairing.map(|_| 0);
    let approach = Approach { query_norm, key_norm, query_rope: turned, key_rope: turned };
    let ropes: Vec<Rope> = rope(case).into_iter().collect();
    let context = (ropes.as_slice(), device_cache(&cached, &request, data), case.window);
    let sinks = if case.sinks { bench.put(&sinks(case)) } else { DevicePointer::NULL };
    let attention = DeviceAttention::new(&attention, sinks, approach, context, &buffers, &bench.kernels).unwrap();
    Layer { bench, buffers, attention }
}

/// A score of each head that gives no value.
fn sinks(case: &Case) -> Vec<f32> {
    (0..case.heads).map(|head| head as f32 / 3.0 - 1.0).collect()
}

/// A head as it goes to attention.
fn approached(case: &Case, head: &[f32], weight: &[f32], position: usize) -> Vec<f64> {
    let mut x: Vec<f64> = head.iter().map(|x| f64::from(*x)).collect();
    if case.normed {
        let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + 1e-6).sqrt();
        x.iter_mut().zip(weight).for_each(|(x, weight)| *x *= scale * f64::from(*weight));
    }
    let Some(rope) = rope(case) else { return x };
    let frequencies = rope.frequencies(None);
    for (i, frequency) in frequencies.iter().enumerate() {
        let (sine, cosine) = (position as f64 * f64::from(*frequency)).sin_cos();
        let (a, b) = if rope.pairing == Pairing::Neighbours { (2 * i, 2 * i + 1) } else { (i, i + frequencies.len()) };
        (x[a], x[b]) = (x[a] * cosine - x[b] * sine, x[a] * sine + x[b] * cosine);
    }
    x
}

fn attended(case: &Case, head: usize, query: &[f64], history: &History, position: usize) -> Vec<f64> {
    let first = case.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let score = |key: &Vec<f64>| {
        let score = 0.3 * key.iter().zip(query).map(|(k, q)| k * q).sum::<f64>();
        case.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
    };
    let weights: Vec<f64> = history.keys[first..=position].iter().map(|key| score(key).exp()).collect();
    let sink = if case.sinks { f64::from(sinks(case)[head]).exp() } else { 0.0 };
    let sum: f64 = weights.iter().sum::<f64>() + sink;
    let weighed = |d: usize| history.values[first..=position].iter().zip(&weights).map(|(value, weight)| value[d] * weight / sum).sum();
    (0..case.value_length).map(weighed).collect()
}

/// The largest difference of what is attended, over all batches.
fn difference(case: &Case) -> f64 {
    let mut numbers = Numbers(case.seed);
    let weights = [numbers.floats(case.key_length), numbers.floats(case.key_length)];
    let layer = layer(case, &weights);
    let mut histories: Vec<History> = (0..2 * case.kv_heads).map(|_| History::default()).collect();
    let mut positions = [0usize; 2];
    let mut worst = 0f64;
    for counts in &case.batches {
        let mut batch = Batch::default();
        for (slot, count) in counts.iter().enumerate() {
            batch.push_run(&vec![0; *count], slot as u32, positions[slot] as u32, false);
            positions[slot] += count;
        }
        if !batch.tokens.is_empty() {
            worst = worst.max(step(case, &layer, &batch, &weights, &mut histories, &mut numbers));
        }
    }
    worst
}

fn step(case: &Case, layer: &Layer, batch: &Batch, weights: &[Vec<f32>; 2], histories: &mut [History], numbers: &mut Numbers) -> f64 {
    let Case { heads, kv_heads, key_length, value_length, .. } = *case;
    let (rows, driver) = (batch.tokens.len(), &*layer.bench.arena.driver);
    let [query, key, value] =
        [heads * key_length, kv_heads * key_length, kv_heads * value_length].map(|width| numbers.floats(rows * width));
    for (operand, floats) in [(Operand::Query, &query), (Operand::Key, &key), (Operand::Value, &value)] {
        driver.upload(layer.buffers.rows(operand).unwrap().at, bytes(floats)).unwrap();
    }
    let pass = Pass::upload(batch, &layer.buffers, driver).unwrap();
    rotations(case, layer, rows as u32);
    layer.attention.run(&layer.bench.kernels, &pass).unwrap();
    for (row, at) in batch.tokens.iter().enumerate() {
        for head in 0..kv_heads {
            let history = &mut histories[at.slot as usize * kv_heads + head];
            let key = &key[(row * kv_heads + head) * key_length..][..key_length];
            history.keys.push(approached(case, key, &weights[1], at.position as usize));
            let value = &value[(row * kv_heads + head) * value_length..][..value_length];
            history.values.push(value.iter().map(|x| f64::from(*x)).collect());
        }
    }
    let found = layer.bench.get(layer.buffers.rows(Operand::Attended).unwrap().at, rows * heads * value_length);
    let mut worst = 0f64;
    for (row, at) in batch.tokens.iter().enumerate() {
        for head in 0..heads {
            let query = approached(case, &query[(row * heads + head) * key_length..][..key_length], &weights[0], at.position as usize);
            let history = &histories[at.slot as usize * kv_heads + head / (heads / kv_heads)];
            let expected = attended(case, head, &query, history, at.position as usize);
            let found = &found[(row * heads + head) * value_length..][..value_length];
            let differences = found.iter().zip(&expected).map(|(found, expected)| (f64::from(*found) - expected).abs());
            // What is no number is as far as can be.
            worst = differences.fold(worst, |worst, x| if x.is_nan() { f64::INFINITY } else { worst.max(x) });
        }
    }
    worst
}

fn rotations(case: &Case, layer: &Layer, rows: u32) {
    let Some(rope) = rope(case) else { return };
    let frequencies = rope.frequencies(None);
    let arguments = crate::backend::cuda::arguments::RotationsArguments {
        frequencies: layer.bench.put(&frequencies),
        tokens: layer.buffers.tokens,
        to: layer.buffers.rotations.at,
        stride: layer.buffers.rotations.stride,
        pairs: frequencies.len() as u32,
        magnitude: 1.0,
    };
    layer.bench.kernels.launch_rows(layer.bench.kernels.rotations, rows, frequencies.len() as u32, &arguments).unwrap();
}

/// What a cache of a type rounds.
fn bound(cache_type: KvCacheType) -> f64 {
    match cache_type {
        KvCacheType::F16 => 2e-3,
        KvCacheType::Q8_0 => 3e-2,
        KvCacheType::Q4_0 => 0.45,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_attended_is_as_defined_in_batches_of_several_sequences_with_windows_and_caches_of_every_type(case in cases()) {
        let found = difference(&case);
        prop_assert!(found <= bound(case.cache_type), "{}", found);
    }
}

#[test]
fn rings_go_round_and_long_contexts_are_split_over_blocks() {
    let case = Case {
        heads: 4,
        kv_heads: 2,
        key_length: 32,
        value_length: 32,
        window: None,
        softcap: None,
        cache_type: KvCacheType::F16,
        pairing: Some(Pairing::Halves),
        normed: true,
        sinks: true,
        // Beyond 256 positions, a step of one token is split in two.
        batches: [vec![[40, 30]; 9], vec![[1, 1]; 4], vec![[1, 0], [3, 2]]].concat(),
        seed: 7,
    };
    assert!(difference(&case) <= bound(KvCacheType::F16));
    // A ring has 256 cells here.
    for cache_type in [KvCacheType::F16, KvCacheType::Q8_0] {
        let ring = Case { window: Some(70), cache_type, ..case.clone() };
        assert!(difference(&ring) <= bound(cache_type));
    }
}
