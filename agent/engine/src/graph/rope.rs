//! How positions become angles.

use std::f64::consts::PI;

use super::keys::Keys;
use super::{Weight, cannot_run};
use crate::api::EngineError;

/// Rotary position embedding: pair `i` of a head turns by `position x frequency(i)`, and is multiplied by `magnitude`. Elements from `dimensions` on
/// stay as they are.
///
/// Source: `ggml_rope_ext` and `rope_yarn` of llama.cpp.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub pairing: Pairing,
    /// Elements of a head that are turned.
    pub dimensions: usize,
    pub base: f64,
    pub scaling: Scaling,
    /// A tensor of `dimensions / 2` numbers that frequencies are divided by (Llama 3.1's, longrope's).
    pub factors: Option<Weight>,
    /// What turned elements are multiplied by.
    pub magnitude: f32,
}

/// Which elements of a head make a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `2i` and `2i + 1`.
    Neighbours,
    /// `i` and `i + dimensions / 2`.
    Halves,
}

/// How frequencies are slowed down, so that a model reads further than it was trained to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    None,
    /// Every frequency is divided by the factor.
    Linear {
        factor: f64,
    },
    /// YaRN (Peng et al. 2023): slow pairs are divided by the factor, fast ones stay, and those between are mixed. Where the ramp between them begins
    /// and ends is rounded to whole pairs or not.
    Yarn {
        factor: f64,
        original_context: f64,
        beta_fast: f64,
        beta_slow: f64,
        rounded: bool,
    },
}

impl Rope {
    /// Frequencies of the pairs, `[dimensions / 2]`. `factors` is the tensor's content.
    pub fn frequencies(&self, factors: Option<&[f32]>) -> Vec<f32> {
        let factor = |i: usize| factors.and_then(|factors| factors.get(i)).copied().unwrap_or(1.0);
        let plain = |i: usize| self.base.powf(-2.0 * i as f64 / self.dimensions as f64) / f64::from(factor(i));
        (0..self.dimensions / 2).map(|i| (plain(i) * self.slowed(i)) as f32).collect()
    }

    /// What the frequency of pair `i` is multiplied by.
    fn slowed(&self, i: usize) -> f64 {
        match self.scaling {
            Scaling::None => 1.0,
            Scaling::Linear { factor } => 1.0 / factor,
            Scaling::Yarn { factor, original_context, beta_fast, beta_slow, rounded } => {
                let (first, last) = (self.turns(original_context, beta_fast), self.turns(original_context, beta_slow));
                let (first, last) = if rounded { (first.floor(), last.ceil()) } else { (first, last) };
                let (first, last) = (first.max(0.0), last.min(self.dimensions as f64 - 1.0));
                // 1 up to the first pair, 0 from the last on.
                let kept = 1.0 - ((i as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
                kept + (1.0 - kept) / factor
            }
        }
    }

    /// The pair that makes this many turns in the context, as a fraction.
    fn turns(&self, context: f64, turns: f64) -> f64 {
        self.dimensions as f64 * (context / (turns * 2.0 * PI)).ln() / (2.0 * self.base.ln())
    }

    /// As a file states it for keys of `key_length`.
    pub(super) fn read(keys: &Keys<'_>, key_length: usize, pairing: Pairing) -> Result<Rope, EngineError> {
        let dimensions = keys.optional("rope.dimension_count")?.unwrap_or(key_length);
        if dimensions == 0 || dimensions > key_length || !dimensions.is_multiple_of(2) {
            return Err(cannot_run(format!("rotating {dimensions} elements of keys of {key_length} is not possible")));
        }
        let base = keys.float("rope.freq_base")?.unwrap_or(10_000.0);
        let (scaling, magnitude) = scaling(keys)?;
        let factors = keys.vector("rope_freqs.weight", dimensions / 2);
        Ok(Rope { pairing, dimensions, base, scaling, factors, magnitude })
    }
}

/// The scaling, and what it does to magnitudes.
fn scaling(keys: &Keys<'_>) -> Result<(Scaling, f32), EngineError> {
    let factor = match keys.float("rope.scaling.factor")? {
        Some(factor) => factor,
        None => keys.float("rope.scale_linear")?.unwrap_or(1.0),
    };
    let attention = keys.float("rope.scaling.attn_factor")?.filter(|factor| *factor > 0.0).unwrap_or(1.0);
    let linear = if factor == 1.0 || factor == 0.0 { Scaling::None } else { Scaling::Linear { factor } };
    match keys.text("rope.scaling.type")? {
        "" | "linear" => Ok((linear, attention as f32)),
        // What longrope scales by is in its tensors.
        "none" | "longrope" => Ok((Scaling::None, attention as f32)),
        "yarn" => {
            let original_context = keys.required("rope.scaling.original_context_length")? as f64;
            let beta_fast = keys.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0);
            let beta_slow = keys.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0);
            if let Some(multiplier) = keys.float("rope.scaling.yarn_log_multiplier")?.filter(|multiplier| *multiplier != 0.0) {
                return Err(cannot_run(format!("the engine has no YaRN with a logarithm's multiplier, which is {multiplier}")));
            }
            let magnitude = attention * (1.0 + 0.1 * factor.max(1.0).ln());
            Ok((Scaling::Yarn { factor, original_context, beta_fast, beta_slow, rounded: true }, magnitude as f32))
        }
        other => Err(cannot_run(format!("the engine has no rope scaling of type {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: Scaling) -> Rope {
        Rope { pairing: Pairing::Halves, dimensions: 64, base: 150_000.0, scaling, factors: None, magnitude: 1.0 }
    }

    #[test]
    fn frequencies_fall_from_one_to_almost_the_inverse_of_the_base() {
        let frequencies = rope(Scaling::None).frequencies(None);
        assert_eq!((frequencies.len(), frequencies[0]), (32, 1.0));
        assert!((f64::from(frequencies[31]) - 150_000f64.powf(-62.0 / 64.0)).abs() < 1e-12);
    }

    #[test]
    fn linear_scaling_slows_every_pair_and_factors_each_its_own() {
        let plain = rope(Scaling::None).frequencies(None);
        let slowed = rope(Scaling::Linear { factor: 4.0 }).frequencies(None);
        assert!(plain.iter().zip(&slowed).all(|(plain, slowed)| (plain / slowed - 4.0).abs() < 1e-5));
        let factors: Vec<f32> = (0..32).map(|i| 1.0 + i as f32).collect();
        assert!((plain[3] / rope(Scaling::None).frequencies(Some(&factors))[3] - 4.0).abs() < 1e-5);
    }

    #[test]
    fn yarn_leaves_fast_pairs_and_divides_slow_ones_by_the_factor() {
        let plain = rope(Scaling::None).frequencies(None);
        let yarn = rope(Scaling::Yarn { factor: 32.0, original_context: 4096.0, beta_fast: 32.0, beta_slow: 1.0, rounded: true })
            .frequencies(None);
        assert_eq!(plain[0], yarn[0]);
        assert!((plain[31] / yarn[31] - 32.0).abs() < 1e-3);
        let ratios: Vec<f32> = plain.iter().zip(&yarn).map(|(plain, yarn)| plain / yarn).collect();
        assert!(ratios.windows(2).all(|pair| pair[0] <= pair[1] + 1e-4), "{ratios:?}");
        // gpt-oss: pairs up to the 8th stay, those from the 18th on are divided by the whole factor.
        assert!((ratios[8] - 1.0).abs() < 1e-4 && ratios[9] > 1.0 && ratios[17] < 31.9 && (ratios[18] - 32.0).abs() < 1e-2, "{ratios:?}");
    }
}
