//! What lies over the curves: where GPUs end, and what is asked about.

use stowage_placement::{Bytes, Tokens};

use super::element::{Anchor, text};
use super::scales::{BOTTOM, LEFT, RIGHT, Scales, TOP};
use crate::plan::curve::Chart;

/// A GPU's UUID is longer than a label has room for.
pub(super) fn short(gpu: &str) -> String {
    gpu.chars().take(12).collect()
}

/// A line where each GPU ends, the GPUs counted one after another. Its gaps are filled with the ground, so that it is seen on any area.
pub(super) fn ends(chart: &Chart, scales: &Scales) -> String {
    let place = |y: f64| format!("x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{RIGHT}\" y2=\"{y:.1}\"");
    let line = |y: f64| format!("<line class=\"under\" {0}/>\n<line class=\"end\" {0}/>\n", place(y));
    let label =
        |(gpu, at): (&str, Bytes), y: f64| text("on", (LEFT + 8.0, y - 5.0), Anchor::Start, &format!("{} ends at {at}", short(gpu)));
    let places: Vec<f64> = chart.ends.iter().map(|end| scales.y(end.at.0 as f64)).collect();
    let mut drawn: String = places.iter().map(|y| line(*y)).collect();
    // The last one counts most, so where there is no room for all it keeps its label.
    let mut lowest = f64::NEG_INFINITY;
    for (end, y) in chart.ends.iter().zip(&places).rev() {
        if y - lowest >= 15.0 {
            drawn += &label((&end.gpu, end.at), *y);
            lowest = *y;
        }
    }
    drawn
}

/// Marks what is asked about: a line at its context, a dot on its curve, and the bytes.
pub(super) fn asked(chart: &Chart, scales: &Scales) -> String {
    let mut drawn = String::new();
    let mut contexts: Vec<Tokens> = Vec::new();
    for curve in &chart.curves {
        let x = scales.x(curve.asked.0 as f64);
        if !contexts.contains(&curve.asked) {
            contexts.push(curve.asked);
            drawn += &format!("<line class=\"asked\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{BOTTOM}\"/>\n");
        }
        if let Some(need) = curve.at(curve.asked) {
            drawn += &format!("<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"4\"/>\n", scales.y(need.total().0 as f64));
        }
    }
    drawn + &asked_label(chart, scales, &contexts)
}

/// Above the line of the longest context that is asked about.
fn asked_label(chart: &Chart, scales: &Scales, contexts: &[Tokens]) -> String {
    let Some(longest) = contexts.iter().max() else { return String::new() };
    let numbers = contexts.iter().map(Tokens::to_string).collect::<Vec<_>>().join(", ");
    let total = match chart.curves.as_slice() {
        [curve] => curve.at(curve.asked).map(|need| format!(": {}", need.total())),
        _ => None,
    };
    let x = scales.x(longest.0 as f64);
    let anchor = if x > (LEFT + RIGHT) / 2.0 { Anchor::End } else { Anchor::Start };
    text("", (x, TOP - 7.0), anchor, &format!("num_ctx {numbers}{}", total.unwrap_or_default()))
}
