//! The curves: areas stacked on one another, or a line for each type of cache.

use super::element::{Anchor, points, text};
use super::scales::{LEFT, RIGHT, Scales};
use crate::plan::curve::{Chart, Curve, Kind, Need};

/// Pieces of the curve from one context to the next.
const PIECES: u32 = 16;
/// An area at least this high has room for its name.
const NAMED: f64 = 18.0;
/// Names of lines are at least this far from one another.
const APART: f64 = 16.0;

/// A place on the curve: the context, and where each kind ends.
type Place = (f64, [f64; 4]);

/// The curve in pieces. Between two contexts that were planned bytes grow with tokens in a straight line, which is bent where contexts are drawn by their
/// logarithm.
fn places(curve: &Curve) -> Vec<Place> {
    let place = |need: &Need| (need.num_ctx.0 as f64, need.stacked().map(|bytes| bytes.0 as f64));
    let between = |pair: &[Need]| -> Vec<Place> {
        let [from, to] = pair else { return Vec::new() };
        let ((from, below), (to, above)) = (place(from), place(to));
        let at = move |piece: u32| {
            let part = f64::from(piece) / f64::from(PIECES);
            let mix = |from: f64, to: f64| from + (to - from) * part;
            (mix(from, to), std::array::from_fn(|kind| mix(below[kind], above[kind])))
        };
        (0..PIECES).map(at).collect()
    };
    curve.needs.windows(2).flat_map(between).chain(curve.needs.last().map(place)).collect()
}

/// Where the places lie across. A context that is alone is drawn as wide as there is room.
fn across(places: &[Place], scales: &Scales) -> Vec<(f64, [f64; 4])> {
    match places {
        [(_, ends)] => vec![(LEFT, *ends), (RIGHT, *ends)],
        _ => places.iter().map(|(num_ctx, ends)| (scales.x(*num_ctx), *ends)).collect(),
    }
}

/// What each kind takes, the first at the bottom.
pub(super) fn areas(chart: &Chart, scales: &Scales) -> String {
    let mut drawn = String::new();
    for curve in &chart.curves {
        let places = across(&places(curve), scales);
        for kind in chart.kinds() {
            let upper = places.iter().map(|(x, ends)| (*x, scales.y(ends[kind as usize])));
            let lower = places.iter().rev().map(|(x, ends)| (*x, scales.y(start(ends, kind))));
            drawn += &format!("<polygon class=\"{}\" points=\"{}\"/>\n", kind.class(), points(upper.chain(lower)));
        }
        drawn += &names(curve, scales, &chart.kinds());
    }
    drawn
}

/// Where the kind begins: where the one below it ends.
fn start(ends: &[f64; 4], kind: Kind) -> f64 {
    (kind as usize).checked_sub(1).map_or(0.0, |below| ends[below])
}

/// What each kind takes at the longest context, beside its area.
fn names(curve: &Curve, scales: &Scales, kinds: &[Kind]) -> String {
    let Some(last) = curve.needs.last() else { return String::new() };
    let ends = last.stacked().map(|bytes| bytes.0 as f64);
    let name = |kind: &Kind| {
        let (upper, lower) = (scales.y(ends[*kind as usize]), scales.y(start(&ends, *kind)));
        let label = format!("{} {}", kind.name(), last.bytes[*kind as usize]);
        (lower - upper >= NAMED).then(|| text("", (RIGHT + 6.0, (lower + upper) / 2.0 + 4.0), Anchor::Start, &label))
    };
    kinds.iter().filter_map(name).collect()
}

/// The totals, a line for each type of cache with its name and its last total beside it.
pub(super) fn lines(chart: &Chart, scales: &Scales) -> String {
    let totals = chart.curves.iter().map(|curve| curve.needs.last().map_or(0.0, |need| scales.y(need.total().0 as f64)));
    let labels = spread(&totals.collect::<Vec<_>>());
    let line = |(curve, label): (&Curve, f64)| {
        let places = across(&places(curve), scales).into_iter().map(|(x, ends)| (x, scales.y(ends[Kind::ALL.len() - 1])));
        let line = format!("<polyline class=\"curve {}\" points=\"{}\"/>\n", curve.cache_type, points(places));
        let total = curve.needs.last().map(|need| format!("{} {}", curve.cache_type, need.total())).unwrap_or_default();
        line + &text("", (RIGHT + 6.0, label + 4.0), Anchor::Start, &total)
    };
    chart.curves.iter().zip(labels).map(line).collect()
}

/// The places moved downwards as far as they must to be apart, each at its index.
fn spread(places: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by(|a, b| places[*a].total_cmp(&places[*b]));
    let mut spread = places.to_vec();
    for pair in order.windows(2) {
        if let [above, below] = *pair {
            spread[below] = spread[below].max(spread[above] + APART);
        }
    }
    spread
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_moved_apart_and_no_further() {
        assert_eq!(spread(&[100.0, 50.0, 104.0, 300.0]), [100.0, 50.0, 116.0, 300.0]);
        assert_eq!(spread(&[10.0, 10.0, 10.0]), [10.0, 26.0, 42.0]);
    }
}
