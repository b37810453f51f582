//! The chart as an SVG file that stands alone: stacked areas for one type of KV cache, a line for each where several are compared.
//!
//! `scales` turns contexts and bytes into places; `axes`, `shapes` (the curves) and `marks` (where GPUs end, what is asked) draw there; `element` writes
//! XML, and this file puts them together.

mod axes;
mod element;
mod marks;
mod scales;
mod shapes;

use stowage_placement::PlanReport;

use super::curve::{Chart, Kind};
use super::table;
use element::{Anchor, escaped, text};
use scales::{HEIGHT, LEFT, Scales, WIDTH};

/// Light and dark, by what the reader's system prefers. Kinds and types differ in lightness too, and each has its name beside it.
const STYLE: &str = "
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; }
.quiet { fill: #59636e; }
.ground { fill: #ffffff; }
.grid { stroke: #d1d9e0; }
.on { paint-order: stroke; stroke: #ffffff; stroke-width: 4px; stroke-linejoin: round; }
.end { stroke: #b3261e; stroke-width: 2; stroke-dasharray: 7 4; }
.under { stroke: #ffffff; stroke-width: 2; }
.asked { stroke: #1f2328; stroke-dasharray: 2 3; }
.dot { fill: #1f2328; }
.curve { fill: none; stroke-width: 2.5; }
.weights { fill: #2f6db3; } .cache { fill: #f2b134; } .space { fill: #7a3e9d; } .libraries { fill: #9aa4ae; }
.f16 { stroke: #2f6db3; } .q8_0 { stroke: #b8720a; } .q4_0 { stroke: #7a3e9d; }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc; }
.quiet { fill: #9198a1; }
.ground { fill: #0d1117; }
.grid { stroke: #3d444d; }
.on { stroke: #0d1117; }
.under { stroke: #0d1117; }
.end { stroke: #ff8a80; }
.asked { stroke: #f0f6fc; }
.dot { fill: #f0f6fc; }
.f16 { stroke: #6cb0f5; } .q8_0 { stroke: #f2b134; } .q4_0 { stroke: #c792ea; }
}
";

/// `reports` are those that the chart was made of.
pub(super) fn draw(reports: &[PlanReport], chart: &Chart) -> String {
    let scales = Scales::new(chart);
    let title = title(reports);
    let compared = chart.curves.len() > 1;
    let curves = if compared { shapes::lines(chart, &scales) } else { shapes::areas(chart, &scales) };
    let legend = if compared { String::new() } else { legend(chart) };
    let parts = [
        format!("<title id=\"title\">{}</title>\n<desc id=\"desc\">{}</desc>\n", escaped(&title), escaped(&description(chart))),
        format!("<style>{STYLE}</style>\n<rect class=\"ground\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n"),
        text("title", (16.0, 26.0), Anchor::Start, &title),
        legend,
        axes::draw(chart, &scales),
        curves,
        marks::ends(chart, &scales),
        marks::asked(chart, &scales),
    ];
    let frame =
        format!("viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" aria-labelledby=\"title desc\"");
    format!("<svg xmlns=\"http://www.w3.org/2000/svg\" {frame}>\n{}</svg>\n", parts.concat())
}

/// A name may be as long as its file likes; the chart is not.
fn title(reports: &[PlanReport]) -> String {
    const LONGEST: usize = 48;
    let name = reports.first().map(table::name).unwrap_or_default();
    let name = if name.chars().count() > LONGEST { name.chars().take(LONGEST - 1).chain(['…']).collect() } else { name };
    format!("{name}: GPU memory for all layers on one GPU")
}

/// What the chart shows, for those who can't see it.
fn description(chart: &Chart) -> String {
    let mut sentences = Vec::new();
    for curve in &chart.curves {
        let needs = curve.needs.iter().map(|need| format!("{} at num_ctx {}", need.total(), need.num_ctx));
        sentences.push(format!("With a cache of type {}, all layers need {}.", curve.cache_type, needs.collect::<Vec<_>>().join(", ")));
    }
    sentences.extend(chart.ends.iter().map(|end| format!("{} ends at {}.", marks::short(&end.gpu), end.at)));
    sentences.join(" ")
}

impl Kind {
    fn class(self) -> &'static str {
        match self {
            Kind::Weights => "weights",
            Kind::Cache => "cache",
            Kind::WorkingSpace => "space",
            Kind::Libraries => "libraries",
        }
    }
}

fn legend(chart: &Chart) -> String {
    const ENTRY: f64 = 125.0;
    let entry = |(index, kind): (usize, Kind)| {
        let x = LEFT + index as f64 * ENTRY;
        let swatch = format!("<rect class=\"{}\" x=\"{x}\" y=\"42\" width=\"12\" height=\"12\"/>\n", kind.class());
        swatch + &text("", (x + 18.0, 52.0), Anchor::Start, kind.name())
    };
    chart.kinds().into_iter().enumerate().map(entry).collect()
}
