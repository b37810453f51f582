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

    /// The logit of a token that is there, before any were dropped.
    pub fn logit_mut(&mut self, id: u32) -> Option<&mut f32> {
        debug_assert!(!self.sorted, "entries stand by id only until they are sorted");
        // With none left out, a token is found at its own id.
        let at = match self.entries.get(id as usize) {
            Some(entry) if entry.id == id => id as usize,
            _ => self.entries.binary_search_by_key(&id, |entry| entry.id).ok()?,
        };
        Some(&mut self.entries[at].logit)
    }

    pub fn likeliest(&self) -> u32 {
        self.entries.iter().min_by(|a, b| likelier(a, b)).map_or(0, |entry| entry.id)
    }

    /// The likeliest `count`, in order.
    pub fn top(&mut self, count: usize) -> Vec<u32> {
        self.keep_top_k(count);
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

/// How many of these together reach `p`; at least one.
fn enough_for(probabilities: &[f64], p: f32) -> usize {
    let mut sum = 0.0;
    let reached = probabilities.iter().position(|probability| {
        sum += probability;
        sum >= f64::from(p)
    });
    reached.map_or(probabilities.len(), |last| last + 1)
}
