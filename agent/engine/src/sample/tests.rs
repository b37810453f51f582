use super::*;

fn plain() -> SamplingOptions {
    SamplingOptions {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        typical_p: 1.0,
        repeat_penalty: 1.0,
        seed: Some(1),
        ..SamplingOptions::default()
    }
}

fn draws(options: SamplingOptions, logits: &[f32], count: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(options, 4096);
    (0..count).map(|_| sampler.sample(logits)).collect()
}

/// Which tokens come up at all.
fn support(options: SamplingOptions, logits: &[f32]) -> Vec<u32> {
    let mut seen = draws(options, logits, 4000);
    seen.sort_unstable();
    seen.dedup();
    seen
}

fn softmax(logits: &[f32], temperature: f32) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

fn chi_square(drawn: &[u32], expected: &[f64]) -> f64 {
    let statistic = |(id, probability): (usize, &f64)| {
        let expected = probability * drawn.len() as f64;
        let found = drawn.iter().filter(|&&token| token as usize == id).count() as f64;
        (found - expected).powi(2) / expected
    };
    expected.iter().enumerate().map(statistic).sum()
}

#[test]
fn the_sampled_distribution_is_the_softmax_at_that_temperature() {
    let logits = [1.0, 0.0, 2.0, -1.0, 0.5, 1.5, -0.5, 0.25, 1.25, 0.75];
    for temperature in [0.5, 1.0, 1.7] {
        let drawn = draws(SamplingOptions { temperature, ..plain() }, &logits, 100_000);
        let statistic = chi_square(&drawn, &softmax(&logits, temperature));
        // The 99.9th percentile for 9 degrees of freedom.
        assert!(statistic < 27.88, "chi-square {statistic} at temperature {temperature}");
    }
}

#[test]
fn what_top_k_leaves_is_drawn_in_proportion() {
    let logits = [1.0, 0.0, 2.0, -1.0, 0.5, 1.5];
    let drawn = draws(SamplingOptions { top_k: 3, ..plain() }, &logits, 50_000);
    let mut expected = softmax(&[1.0, -200.0, 2.0, -200.0, -200.0, 1.5], 1.0);
    expected.iter_mut().for_each(|probability| *probability = probability.max(1e-12));
    // The 99.9th percentile for 2 degrees of freedom.
    assert!(chi_square(&drawn, &expected) < 13.82);
}

#[test]
fn a_temperature_of_zero_is_greedy_and_of_equals_takes_the_lowest_id() {
    let options = SamplingOptions { temperature: 0.0, ..plain() };
    assert_eq!(draws(options.clone(), &[0.5, 3.0, 3.0, -1.0], 3), [1, 1, 1]);
    assert_eq!(draws(options, &[f32::NAN, -1.0, f32::NEG_INFINITY], 1), [1]);
}

#[test]
fn the_same_seed_repeats_and_another_does_not() {
    let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
    let with = |seed| draws(SamplingOptions { seed: Some(seed), ..SamplingOptions::default() }, &logits, 50);
    assert_eq!(with(7), with(7));
    assert_ne!(with(7), with(8));
}

#[test]
fn without_a_seed_two_generations_differ() {
    let logits = vec![0.0; 1000];
    let fresh = || draws(SamplingOptions { seed: None, ..plain() }, &logits, 20);
    assert_ne!(fresh(), fresh());
}

#[test]
fn top_p_keeps_the_fewest_that_reach_it() {
    let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
    assert_eq!(support(SamplingOptions { top_p: 0.75, ..plain() }, &logits), [0, 1]);
    assert_eq!(support(SamplingOptions { top_p: 0.85, ..plain() }, &logits), [0, 1, 2]);
    assert_eq!(support(SamplingOptions { top_p: 0.0, ..plain() }, &logits), [0]);
}

#[test]
fn min_p_drops_what_is_far_less_likely_than_the_likeliest() {
    let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
    assert_eq!(support(SamplingOptions { min_p: 0.25, ..plain() }, &logits), [0, 1, 2]);
    assert_eq!(support(SamplingOptions { min_p: 1.0, ..plain() }, &logits), [0]);
}

#[test]
fn typical_p_prefers_tokens_of_the_expected_surprise() {
    // Entropy 1.14 nats: the surprises 0.69, 1.20, 1.90, 3.00 are 0.45, 0.06, 0.76, 1.86 away.
    let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
    assert_eq!(support(SamplingOptions { typical_p: 0.29, ..plain() }, &logits), [1]);
    assert_eq!(support(SamplingOptions { typical_p: 0.7, ..plain() }, &logits), [0, 1]);
}

#[test]
fn each_filter_works_on_what_the_one_before_left() {
    // After top_k 2 the first holds 0.625, so a top_p of 0.6 keeps it alone; of all four it would have kept two.
    let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
    assert_eq!(support(SamplingOptions { top_k: 2, top_p: 0.6, ..plain() }, &logits), [0]);
    assert_eq!(support(SamplingOptions { top_p: 0.6, ..plain() }, &logits), [0, 1]);
}

#[test]
fn penalties_follow_their_formulas() {
    let options = SamplingOptions { repeat_penalty: 2.0, presence_penalty: 0.5, frequency_penalty: 0.25, ..plain() };
    let mut sampler = Sampler::new(options, 4096);
    sampler.accept(&[0, 1, 1, 9]);
    sampler.candidates.fill(&[3.0, -1.0, 2.0]);
    sampler.penalise();
    let logits = [0, 1, 2].map(|id| *sampler.candidates.logit_mut(id).unwrap());
    assert_eq!(logits, [3.0 / 2.0 - 0.25 - 0.5, -2.0 - 0.5 - 0.5, 2.0]);
}

#[test]
fn penalties_look_back_as_far_as_repeat_last_n() {
    let greedy = |repeat_last_n| {
        let options = SamplingOptions { temperature: 0.0, repeat_penalty: 10.0, repeat_last_n, ..plain() };
        let mut sampler = Sampler::new(options, 3);
        sampler.accept(&[0, 1]);
        sampler.accept(&[2]);
        sampler.sample(&[3.0, 2.0, 1.0, 0.5])
    };
    assert_eq!([greedy(0), greedy(1), greedy(2), greedy(-1)], [0, 0, 0, 3]);
}

#[test]
fn log_probabilities_are_of_the_logits_as_they_come() {
    let (taken, top) = log_probabilities(&[0.2f32, 0.5, 0.3].map(f32::ln), 2, 2);
    assert!((taken - 0.3f32.ln()).abs() < 1e-6);
    assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2]);
    assert!((top[0].1 - 0.5f32.ln()).abs() < 1e-6);
    assert!(log_probabilities(&[0.0, 1.0], 0, 0).1.is_empty());
}

#[test]
fn options_without_a_meaning_are_refused_by_name() {
    assert!(check(&SamplingOptions::default()).is_ok());
    let refused = |options| check(&options).unwrap_err().message;
    assert!(refused(SamplingOptions { temperature: f32::NAN, ..plain() }).starts_with("temperature is NaN"));
    assert_eq!(refused(SamplingOptions { top_p: 1.5, ..plain() }), "top_p is 1.5; it must be from 0 to 1");
    assert!(refused(SamplingOptions { repeat_last_n: -2, ..plain() }).starts_with("repeat_last_n"));
    assert!(refused(SamplingOptions { repeat_penalty: 0.0, ..plain() }).starts_with("repeat_penalty"));
}
