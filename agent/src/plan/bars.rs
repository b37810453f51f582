//! The chart in a terminal: a bar for each context, readable without colour.

use std::collections::BTreeSet;

use stowage_placement::{Bytes, Tokens};

use super::curve::{Chart, Curve, Kind, Need};
use super::text::WIDTH;

/// Where a GPU ends.
const END: char = '|';

impl Kind {
    fn glyph(self) -> char {
        match self {
            Kind::Weights => '#',
            Kind::Cache => '=',
            Kind::WorkingSpace => '+',
            Kind::Libraries => '.',
        }
    }
}

/// A bar for each context and, where several types of cache are compared, for each of them; empty where there is no GPU.
pub(super) fn render(chart: &Chart) -> String {
    if chart.ends.is_empty() {
        return String::new();
    }
    let bars = Bars::new(chart);
    let rows = chart.contexts().into_iter().flat_map(|num_ctx| bars.at(num_ctx));
    format!("GPU memory for all layers on one GPU, by num_ctx\n{}{}", legend(chart), rows.collect::<String>())
}

fn legend(chart: &Chart) -> String {
    let kinds = chart.kinds().into_iter().map(|kind| format!("{} {}", kind.glyph(), kind.name()));
    let entries: Vec<String> = kinds.chain([format!("{END} where a GPU ends")]).collect();
    entries.join("  ") + "\n"
}

/// How wide each part of a row is, and what a cell of a bar stands for.
struct Bars<'a> {
    chart: &'a Chart,
    contexts: usize,
    types: usize,
    totals: usize,
    /// Cells of the longest bar.
    cells: usize,
    /// The cells before which there is a line. It has a column of its own, so that what goes beyond it is seen.
    ends: BTreeSet<usize>,
}

impl<'a> Bars<'a> {
    fn new(chart: &'a Chart) -> Bars<'a> {
        let contexts = chart.contexts().iter().map(|num_ctx| num_ctx.to_string().len()).max().unwrap_or(0);
        let totals = chart.needs().map(|need| need.total().to_string().len()).max().unwrap_or(0);
        let types = match chart.curves.as_slice() {
            [_] => 0,
            curves => curves.iter().map(|curve| curve.cache_type.as_str().len() + 1).max().unwrap_or(0),
        };
        // A row has a mark and a space on each side of its bar too.
        let width = WIDTH.saturating_sub(3 + contexts + types + totals);
        let with = |cells| {
            let bars = Bars { chart, contexts, types, totals, cells, ends: BTreeSet::new() };
            Bars { ends: chart.ends.iter().map(|end| bars.cells_of(end.at)).collect(), ..bars }
        };
        let fitting = (1..=width).rev().map(with).find(|bars| bars.cells + bars.ends.len() <= width);
        fitting.unwrap_or_else(|| with(0))
    }

    /// The bytes in cells, to the nearest.
    fn cells_of(&self, bytes: Bytes) -> usize {
        let largest = u128::from(self.chart.largest().0.max(1));
        let cells = (u128::from(bytes.0) * self.cells as u128 + largest / 2) / largest;
        usize::try_from(cells).unwrap_or(self.cells)
    }

    /// The rows of one context; its number stands before the first.
    fn at(&self, num_ctx: Tokens) -> Vec<String> {
        let here = |curve: &'a Curve| Some((curve, curve.at(num_ctx)?));
        let labels = std::iter::once(num_ctx.to_string()).chain(std::iter::repeat(String::new()));
        let rows = self.chart.curves.iter().filter_map(here).zip(labels);
        rows.map(|((curve, need), label)| self.row(curve, need, &label)).collect()
    }

    fn row(&self, curve: &Curve, need: &Need, label: &str) -> String {
        let mark = if curve.asked == need.num_ctx { '>' } else { ' ' };
        let cache_type = if self.types > 0 { curve.cache_type.as_str() } else { "" };
        let (contexts, types, totals) = (self.contexts, self.types, self.totals);
        format!("{mark}{label:>contexts$} {cache_type:<types$}{} {:>totals$}\n", self.bar(need), need.total().to_string())
    }

    /// What is stacked is rounded where it ends, so that rounding never adds up.
    fn bar(&self, need: &Need) -> String {
        let ends = need.stacked().map(|end| self.cells_of(end));
        let glyph = |cell: usize| Kind::ALL.into_iter().zip(ends).find(|(_, end)| cell < *end).map_or(' ', |(kind, _)| kind.glyph());
        let line = |cell: usize| self.ends.contains(&cell).then_some(END);
        (0..self.cells).flat_map(|cell| line(cell).into_iter().chain([glyph(cell)])).chain(line(self.cells)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stowage_placement::KvCacheType;

    use super::super::curve::End;
    use super::*;

    fn need(num_ctx: u64, bytes: [u64; 4]) -> Need {
        Need { num_ctx: Tokens(num_ctx), bytes: bytes.map(Bytes) }
    }

    fn curve(cache_type: KvCacheType, asked: u64, needs: Vec<Need>) -> Curve {
        Curve { cache_type, asked: Tokens(asked), needs }
    }

    fn ends(ends: &[u64]) -> Vec<End> {
        ends.iter().map(|at| End { gpu: "gpu".into(), at: Bytes(*at) }).collect()
    }

    fn rows(chart: &Chart) -> Vec<String> {
        render(chart).lines().skip(2).map(str::to_owned).collect()
    }

    #[test]
    fn a_bar_is_stacked_as_long_as_its_bytes_and_lines_are_where_devices_end() {
        // 80 columns less the mark, four digits, two spaces, two lines and "67 B" leave 67 cells.
        let needs = vec![need(1024, [10, 5, 3, 2]), need(2048, [10, 51, 4, 2])];
        let chart = Chart { curves: vec![curve(KvCacheType::F16, 2048, needs)], ends: ends(&[34, 51]) };
        let rows = rows(&chart);
        let repeated = |glyph: &str, [a, b, c]: [usize; 3]| [a, b, c].map(|count| glyph.repeat(count)).join("|");
        assert_eq!(rows[0], format!(" 1024 {}=====+++..{} 20 B", "#".repeat(10), repeated(" ", [14, 17, 16])));
        assert_eq!(rows[1], format!(">2048 {}{}++++.. 67 B", "#".repeat(10), repeated("=", [24, 17, 10])));
    }

    #[test]
    fn types_of_cache_stand_below_one_another_at_each_context() {
        let f16 = curve(KvCacheType::F16, 2048, vec![need(1024, [10, 16, 0, 0]), need(2048, [10, 32, 0, 0])]);
        let q4_0 = curve(KvCacheType::Q4_0, 1024, vec![need(1024, [10, 4, 0, 0]), need(2048, [10, 8, 0, 0])]);
        let chart = Chart { curves: vec![f16, q4_0], ends: ends(&[63]) };
        let found = rows(&chart);
        let starts: Vec<&str> = found.iter().map(|row| &row[..12]).collect();
        assert_eq!(starts, [" 1024 f16  #", ">     q4_0 #", ">2048 f16  #", "      q4_0 #"]);
        let of = |row: &str, glyph: char| row.matches(glyph).count();
        assert_eq!(found.iter().map(|row| of(row, '=')).collect::<Vec<_>>(), [16, 4, 32, 8]);
        assert!(found.iter().all(|row| of(row, '#') == 10));
        assert!(!render(&chart).contains("working space"), "what takes nothing is not in the legend");
    }

    #[test]
    fn without_gpus_there_is_no_chart() {
        assert_eq!(render(&Chart { curves: vec![curve(KvCacheType::F16, 1, vec![need(1, [1; 4])])], ends: Vec::new() }), "");
    }

    fn any_chart() -> impl Strategy<Value = Chart> {
        let bytes = || (0u64..64).prop_flat_map(|shift| 0..=u64::MAX >> shift);
        let context = (bytes(), prop::array::uniform4(bytes()));
        let types = prop::sample::subsequence(KvCacheType::ALL.to_vec(), 1..=3);
        (types, prop::collection::vec(context, 1..12), prop::collection::vec(bytes(), 1..10)).prop_map(|(types, contexts, offered)| {
            let mut needs: Vec<Need> = contexts.into_iter().map(|(num_ctx, bytes)| need(num_ctx, bytes)).collect();
            needs.sort_by_key(|need| need.num_ctx);
            needs.dedup_by_key(|need| need.num_ctx);
            let asked = needs[0].num_ctx.0;
            let sums = offered.iter().scan(0u64, |sum, next| {
                *sum = sum.saturating_add(*next);
                Some(*sum)
            });
            let curves = types.into_iter().map(|cache_type| curve(cache_type, asked, needs.clone())).collect();
            Chart { curves, ends: ends(&sums.collect::<Vec<_>>()) }
        })
    }

    proptest! {
        #[test]
        fn no_row_is_wider_than_80_columns_and_no_bar_is_off_by_more_than_half_a_cell(chart in any_chart()) {
            let text = render(&chart);
            prop_assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
            let bars = Bars::new(&chart);
            let cell = chart.largest().0.max(1) as f64 / bars.cells as f64;
            for need in chart.needs() {
                // Whatever a line hides goes on behind it.
                let unlined = Bars { ends: BTreeSet::new(), ..Bars::new(&chart) };
                let bar = unlined.bar(need);
                let length = bar.trim_end().chars().count() as f64;
                prop_assert!((length * cell - need.total().0 as f64).abs() <= cell * 0.501, "{bar}");
                let mut glyphs: Vec<char> = bar.trim_end().chars().collect();
                glyphs.dedup();
                let order: Vec<usize> = glyphs.iter().map(|glyph| "#=+.".find(*glyph).unwrap()).collect();
                prop_assert!(order.is_sorted(), "{bar}");
            }
            for end in &chart.ends {
                let line = bars.cells_of(end.at);
                prop_assert!(bars.ends.contains(&line) && (line as f64 * cell - end.at.0 as f64).abs() <= cell * 0.501);
            }
        }

        #[test]
        fn what_fits_never_crosses_the_line_of_its_gpu_and_what_is_a_cell_too_much_does(chart in any_chart()) {
            let bars = Bars::new(&chart);
            let cell = chart.largest().0.max(1).div_ceil(bars.cells as u64);
            for need in chart.needs() {
                let bar = bars.bar(need);
                for end in &chart.ends {
                    let lines = bars.ends.range(..=bars.cells_of(end.at)).count();
                    let beyond: String = bar.split(END).skip(lines).collect();
                    if need.total() <= end.at {
                        prop_assert!(beyond.trim().is_empty(), "{bar}");
                    } else if need.total().0 - end.at.0 > cell {
                        prop_assert!(!beyond.trim().is_empty(), "{bar}");
                    }
                }
            }
        }
    }
}
