//! Where a context and a number of bytes lie on the drawing, in its units: x grows to the right, y downwards.

use stowage_placement::Bytes;

use crate::plan::curve::Chart;

pub(super) const WIDTH: f64 = 808.0;
pub(super) const HEIGHT: f64 = 440.0;
/// The area that is drawn in.
pub(super) const LEFT: f64 = 76.0;
pub(super) const TOP: f64 = 84.0;
pub(super) const BOTTOM: f64 = 384.0;
/// Room for labels is to its right.
pub(super) const RIGHT: f64 = 640.0;

/// At most so many lines across.
const TICKS: u64 = 8;

/// Contexts by their logarithm, bytes by themselves from zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scales {
    /// Logarithms to the base 2 of the contexts at the left and right edge.
    first: f64,
    last: f64,
    step: u64,
    steps: u64,
}

impl Scales {
    pub fn new(chart: &Chart) -> Scales {
        let contexts = chart.contexts();
        let log = |num_ctx: Option<&stowage_placement::Tokens>| num_ctx.map_or(0.0, |num_ctx| (num_ctx.0.max(1) as f64).log2());
        let (first, last) = (log(contexts.first()), log(contexts.last()));
        // A context that is alone gets some room.
        let (first, last) = if first < last { (first, last) } else { (first - 0.5, last + 0.5) };
        let largest = chart.largest().0.max(1);
        // Round numbers in binary units; the largest power of two is far more than any device has.
        let step = largest.div_ceil(TICKS).checked_next_power_of_two().unwrap_or(1 << 63);
        Scales { first, last, step, steps: largest.div_ceil(step) }
    }

    pub fn x(&self, num_ctx: f64) -> f64 {
        LEFT + (num_ctx.max(1.0).log2() - self.first) / (self.last - self.first) * (RIGHT - LEFT)
    }

    pub fn y(&self, bytes: f64) -> f64 {
        BOTTOM - bytes / (self.step as f64 * self.steps as f64) * (BOTTOM - TOP)
    }

    /// Where lines go across, from zero upwards.
    pub fn ticks(&self) -> impl Iterator<Item = Bytes> + use<> {
        let step = self.step;
        (0..=self.steps).map(move |index| Bytes(step.saturating_mul(index)))
    }
}
