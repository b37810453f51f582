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

/// The distribution that is left where only some tokens can be drawn: worked out here by summing over all of them, largest first.
fn truncated(logits: &[f32], temperature: f32, keep: impl Fn(&[f64], usize) -> bool) -> Vec<f64> {
    let untempered = softmax(logits, 1.0);
    let kept = |id: usize| keep(&untempered, id);
    let weights: Vec<f64> = (0..logits.len()).map(|id| if kept(id) { f64::from(logits[id] / temperature).exp() } else { 0.0 }).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// What is likelier than a token, together.
fn before(probabilities: &[f64], id: usize) -> f64 {
    probabilities.iter().filter(|&&probability| probability > probabilities[id]).sum()
}

/// That nothing else was drawn, and the rest in proportion. The 99.9th percentiles are of Wilson and Hilferty's approximation.
fn assert_drawn_as(expected: &[f64], drawn: &[u32], what: &str) {
    assert!(drawn.iter().all(|&token| expected[token as usize] > 0.0), "{what}: a token was drawn that is not left");
    let of_those_left: Vec<usize> = (0..expected.len()).filter(|&id| expected[id] > 0.0).collect();
    let freedom = of_those_left.len() as f64 - 1.0;
    let renumbered: Vec<u32> =
        drawn.iter().filter_map(|&token| of_those_left.iter().position(|&id| id == token as usize)).map(|at| at as u32).collect();
    let statistic = chi_square(&renumbered, &of_those_left.iter().map(|&id| expected[id]).collect::<Vec<_>>());
    let percentile = freedom * (1.0 - 2.0 / (9.0 * freedom) + 3.09 * (2.0 / (9.0 * freedom)).sqrt()).powi(3);
    assert!(freedom > 0.5 && statistic < percentile, "{what}: chi-square {statistic} with {freedom} degrees of freedom");
}

#[test]
fn what_top_p_and_min_p_leave_is_drawn_in_proportion_at_each_temperature() {
    let logits = [1.0, 0.0, 2.0, -1.0, 0.5, 1.5, -0.5, 0.25, 1.25, 0.75];
    for temperature in [0.6f32, 1.0, 1.5] {
        let with = |more: SamplingOptions| draws(SamplingOptions { temperature, ..more }, &logits, 60_000);
        let by_top_p = truncated(&logits, temperature, |all, id| before(all, id) < 0.8);
        assert_drawn_as(&by_top_p, &with(SamplingOptions { top_p: 0.8, ..plain() }), "top_p");
        let largest = |all: &[f64]| all.iter().copied().fold(0.0, f64::max);
        let by_min_p = truncated(&logits, temperature, |all, id| all[id] >= 0.25 * largest(all));
        assert_drawn_as(&by_min_p, &with(SamplingOptions { min_p: 0.25, ..plain() }), "min_p");
        let rank = |all: &[f64], id: usize| all.iter().filter(|&&probability| probability > all[id]).count();
        let by_top_k = truncated(&logits, temperature, |all, id| rank(all, id) < 4);
        assert_drawn_as(&by_top_k, &with(SamplingOptions { top_k: 4, ..plain() }), "top_k");
        // Of the six that top_k leaves, top_p looks at shares of what those six hold.
        let of_six = |all: &[f64]| -> f64 { (0..all.len()).filter(|&id| rank(all, id) < 6).map(|id| all[id]).sum() };
        let by_both = truncated(&logits, temperature, |all, id| rank(all, id) < 6 && before(all, id) / of_six(all) < 0.7);
        assert_drawn_as(&by_both, &with(SamplingOptions { top_k: 6, top_p: 0.7, ..plain() }), "top_k and top_p");
    }
}

#[test]
fn of_allowed_tokens_each_is_drawn_as_if_there_were_no_others() {
    let logits = [1.0, 9.0, 2.0, -1.0, f32::NAN, 1.5, 8.0, 0.25];
    let allowed = |token: u32| [0, 2, 3, 5, 7].contains(&token);
    let sampled = |options: SamplingOptions| -> Vec<u32> {
        let mut sampler = Sampler::new(options, 4096);
        (0..40_000).map(|_| sampler.sample_allowed(&logits, allowed)).collect()
    };
    let of_the_rest = logits.map(|logit| if [9.0, 8.0].contains(&logit) || logit.is_nan() { -1e9 } else { logit });
    assert_drawn_as(&truncated(&of_the_rest, 1.0, |all, id| all[id] > 0.0), &sampled(plain()), "all that is allowed");
    // Among those, not among all: the two that are left out would have been the likeliest.
    let by_top_p = truncated(&of_the_rest, 1.0, |all, id| before(all, id) < 0.8);
    assert_drawn_as(&by_top_p, &sampled(SamplingOptions { top_p: 0.8, top_k: 4, ..plain() }), "top_p of what is allowed");
    assert_eq!(sampled(SamplingOptions { temperature: 0.0, ..plain() })[0], 2);
}

#[test]
fn penalties_reach_the_right_tokens_where_others_are_left_out() {
    let mut sampler = Sampler::new(SamplingOptions { temperature: 0.0, repeat_penalty: 10.0, ..plain() }, 64);
    sampler.accept(&[1, 5]);
    assert_eq!(sampler.sample_allowed(&[9.0, 8.0, 7.0, 6.0, 5.0, 9.0], |token| token > 2), 3);
    assert_eq!(sampler.sample_allowed(&[9.0, 8.0, 7.0, 6.0, 5.0, 90.0], |token| token > 2), 5);
    assert_eq!(sampler.sample_allowed(&[f32::NAN, 8.0, f32::NEG_INFINITY], |token| token == 2), 2);
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
    sampler.penalise(&[3.0, -1.0, 2.0]);
    assert_eq!(sampler.logits, [3.0 / 2.0 - 0.25 - 0.5, -2.0 - 0.5 - 0.5, 2.0]);
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

#[test]
fn the_likeliest_of_many_are_the_same_as_of_a_sorted_list() {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(7);
    for length in [3, 64, 65, 1000, 49_152 + 17] {
        // Few values, so that there are many equals; some are no numbers, or impossible.
        let mut logits: Vec<f32> = (0..length).map(|_| (random.random::<f32>() * 300.0).round() / 10.0).collect();
        for i in (0..length).step_by(11) {
            logits[i] = if i % 2 == 0 { f32::NAN } else { f32::NEG_INFINITY };
        }
        let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|l| if l.is_nan() { f32::NEG_INFINITY } else { *l })).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for k in [1, 2, 40, 200, length] {
            let mut candidates = Candidates::default();
            candidates.fill_likeliest(&logits, k);
            let expected: Vec<u32> = sorted.iter().take(k).map(|(id, _)| *id).collect();
            assert_eq!(candidates.top(k), expected, "{k} of {length}");
        }
    }
}

#[test]
fn where_nothing_is_possible_there_is_a_token_all_the_same() {
    for logits in [vec![f32::NEG_INFINITY; 200], vec![f32::NAN; 200]] {
        assert!(Sampler::new(SamplingOptions::default(), 64).sample(&logits) < 200);
        assert_eq!(Sampler::new(SamplingOptions { temperature: 0.0, ..plain() }, 64).sample(&logits), 0);
    }
}
