//! The tokens still in question while one is chosen.

use std::cmp::Ordering;

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
}

impl Candidate {
    fn new((id, &logit): (usize, &f32)) -> Candidate {
        Candidate { id: id as u32, logit: if logit.is_nan() { f32::NEG_INFINITY } else { logit } }
    }
}

/// Tokens whose largest logit says whether any of them can be among the likeliest.
const RUN: usize = 64;

/// What of a run is looked at side by side.
const LANES: usize = 16;

/// Tokens with their logits, by id until they are `sorted`.
#[derive(Default)]
pub struct Candidates {
    entries: Vec<Candidate>,
    sorted: bool,
}

/// Likeliest first; of equals the lowest id, so that the order is one and the same everywhere.
fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

impl Candidates {
    /// All tokens. A logit that is not a number counts as impossible.
    pub fn fill(&mut self, logits: &[f32]) {
        self.entries.clear();
        self.entries.extend(logits.iter().enumerate().map(Candidate::new));
        self.sorted = false;
    }

    /// The tokens that are allowed.
    pub fn fill_with(&mut self, logits: &[f32], allowed: impl Fn(u32) -> bool) {
        self.entries.clear();
        self.entries.extend(logits.iter().enumerate().map(Candidate::new).filter(|candidate| allowed(candidate.id)));
        self.sorted = false;
    }

    /// The `k` likeliest tokens, and few more. As `fill` where `k` is 0.
    pub fn fill_likeliest(&mut self, logits: &[f32], k: usize) {
        let (runs, rest) = logits.as_chunks::<RUN>();
        if k == 0 || k > runs.len() {
            return self.fill(logits);
        }
        let largest: Vec<f32> = runs.iter().map(largest).collect();
        // As many runs as `k` have a logit of at least this: so has each of the `k` likeliest.
        let least = *largest.clone().select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
        if least == f32::NEG_INFINITY {
            return self.fill(logits);
        }
        self.entries.clear();
        self.sorted = false;
        for (index, run) in runs.iter().enumerate().filter(|(index, _)| largest[*index] >= least) {
            let ids = index * RUN..;
            self.entries.extend(ids.zip(run).filter(|(_, logit)| **logit >= least).map(Candidate::new));
        }
        let ids = runs.len() * RUN..;
        self.entries.extend(ids.zip(rest).filter(|(_, logit)| **logit >= least).map(Candidate::new));
    }

    pub fn likeliest(&self) -> u32 {
        self.entries.iter().min_by(|a, b| likelier(a, b)).map_or(0, |entry| entry.id)
    }

    /// The likeliest `count`, in order.
    pub fn top(&mut self, count: usize) -> Vec<u32> {
        self.keep_top_k(count);
        self.sort();
        self.entries.iter().map(|entry| entry.id).collect()
    }

    /// Keeps the `k` likeliest; 0: all.
    pub fn keep_top_k(&mut self, k: usize) {
        if k == 0 || k >= self.entries.len() {
            return;
        }
        self.entries.select_nth_unstable_by(k - 1, likelier);
        self.entries.truncate(k);
        self.entries.sort_unstable_by(likelier);
        self.sorted = true;
    }

    /// Keeps the tokens whose surprise is nearest to the expected surprise, until they hold a probability of `p` together (Meister et al., 2022).
    pub fn keep_typical(&mut self, p: f32) {
        if p >= 1.0 {
            return;
        }
        let probabilities = self.probabilities(1.0);
        let entropy: f64 = probabilities.iter().filter(|&&q| q > 0.0).map(|q| -q * q.ln()).sum();
        let distance = |q: f64| (-q.ln() - entropy).abs();
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        order.sort_by(|&a, &b| distance(probabilities[a]).total_cmp(&distance(probabilities[b])));
        let ordered: Vec<f64> = order.iter().map(|&i| probabilities[i]).collect();
        let kept = enough_for(&ordered, p);
        self.entries = order[..kept].iter().map(|&i| self.entries[i]).collect();
        self.entries.sort_unstable_by(likelier);
    }

    /// Keeps the likeliest tokens that hold a probability of `p` together.
    pub fn keep_top_p(&mut self, p: f32) {
        if p >= 1.0 {
            return;
        }
        self.sort();
        let kept = enough_for(&self.probabilities(1.0), p);
        self.entries.truncate(kept);
    }

    /// Drops the tokens less likely than `p` times the likeliest.
    pub fn keep_min_p(&mut self, p: f32) {
        if p <= 0.0 {
            return;
        }
        self.sort();
        let least = self.entries.first().map_or(f32::NEG_INFINITY, |entry| entry.logit + p.min(1.0).ln());
        let kept = self.entries.iter().take_while(|entry| entry.logit >= least).count();
        self.entries.truncate(kept.max(1));
    }

    /// A token by its probability at this temperature; `at` in [0, 1) says which.
    pub fn draw(&self, temperature: f32, at: f64) -> u32 {
        let mut left = at;
        for (entry, probability) in self.entries.iter().zip(self.probabilities(temperature)) {
            left -= probability;
            if left < 0.0 {
                return entry.id;
            }
        }
        // Rounding can leave a little over: the likeliest has the best claim to it.
        self.likeliest()
    }

    fn sort(&mut self) {
        if !self.sorted {
            self.entries.sort_unstable_by(likelier);
            self.sorted = true;
        }
    }

    /// Softmax, in the order of the entries.
    fn probabilities(&self, temperature: f32) -> Vec<f64> {
        let largest = self.entries.iter().map(|entry| entry.logit).fold(f32::NEG_INFINITY, f32::max);
        let weight = |entry: &Candidate| {
            // Of logits that are all infinite, those equal to the largest share everything.
            if entry.logit == largest { 1.0 } else { (f64::from(entry.logit - largest) / f64::from(temperature)).exp() }
        };
        let mut weights: Vec<f64> = self.entries.iter().map(weight).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        weights
    }
}

/// The largest of a run; what is not a number is passed over.
fn largest(run: &[f32; RUN]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for some in run.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], some[lane]);
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// How many of these together reach `p`; at least one.
fn enough_for(probabilities: &[f64], p: f32) -> usize {
    let mut sum = 0.0;
    let reached = probabilities.iter().position(|probability| {
        sum += probability;
        sum >= f64::from(p)
    });
    reached.map_or(probabilities.len(), |last| last + 1)
}
