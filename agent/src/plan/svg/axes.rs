//! Lines across with their bytes, and contexts below.

use stowage_placement::{Bytes, Tokens};

use super::element::{Anchor, text};
use super::scales::{BOTTOM, LEFT, RIGHT, Scales};
use crate::plan::curve::Chart;

/// Bytes upwards and contexts to the right, with their units.
pub(super) fn draw(chart: &Chart, scales: &Scales) -> String {
    let mut drawn = String::new();
    for bytes in scales.ticks() {
        let y = scales.y(bytes.0 as f64);
        drawn += &format!("<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{RIGHT}\" y2=\"{y:.1}\"/>\n");
        drawn += &text("quiet", (LEFT - 8.0, y + 4.0), Anchor::End, &shortest(bytes));
    }
    let places: Vec<f64> = chart.contexts().iter().map(|num_ctx| scales.x(num_ctx.0 as f64)).collect();
    for (num_ctx, x) in labelled(&chart.contexts(), &places) {
        drawn += &format!("<line class=\"grid\" x1=\"{x:.1}\" y1=\"{BOTTOM}\" x2=\"{x:.1}\" y2=\"{}\"/>\n", BOTTOM + 5.0);
        drawn += &text("quiet", (x, BOTTOM + 19.0), Anchor::Middle, &num_ctx.to_string());
    }
    drawn + &text("quiet", ((LEFT + RIGHT) / 2.0, BOTTOM + 40.0), Anchor::Middle, "num_ctx (tokens of context, each step twice as many)")
}

/// `8 GiB` for `8.00 GiB`.
fn shortest(bytes: Bytes) -> String {
    let text = bytes.to_string();
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.')),
        _ => text,
    }
}

/// The contexts whose numbers have room beside one another; the longest always has.
fn labelled(contexts: &[Tokens], places: &[f64]) -> Vec<(Tokens, f64)> {
    const DIGIT: f64 = 7.5;
    let mut shown: Vec<(Tokens, f64)> = Vec::new();
    for (num_ctx, x) in contexts.iter().zip(places).rev() {
        let width = (num_ctx.to_string().len() + 1) as f64 * DIGIT;
        if shown.last().is_none_or(|(_, next)| next - x >= width) {
            shown.push((*num_ctx, *x));
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_as_short_as_they_can_be() {
        let shown = [Bytes::gib(8), Bytes::mib(1536), Bytes::mib(100), Bytes::ZERO].map(shortest);
        assert_eq!(shown, ["8 GiB", "1.5 GiB", "100 MiB", "0 B"]);
    }

    #[test]
    fn numbers_that_would_touch_are_left_out_and_the_longest_context_is_not() {
        let contexts = [1024, 2048, 131_071, 131_072].map(Tokens);
        let shown = labelled(&contexts, &[0.0, 100.0, 699.0, 700.0]);
        assert_eq!(shown.into_iter().map(|(num_ctx, _)| num_ctx.0).collect::<Vec<_>>(), [131_072, 2048, 1024]);
    }
}
