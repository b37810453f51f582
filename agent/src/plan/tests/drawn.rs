//! The chart: in the terminal, and as SVG by `--svg`.

use super::*;

/// Fails where the text is no well-formed XML of elements, attributes and text.
fn assert_well_formed(xml: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = xml;
    while let Some((text, tag)) = rest.split_once('<') {
        assert_text(text);
        let (tag, after) = tag.split_once('>').expect("a tag that ends");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
            continue;
        }
        let (name, attributes) = tag.trim_end_matches('/').split_once(' ').unwrap_or((tag.trim_end_matches('/'), ""));
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "<{tag}>");
        assert_attributes(attributes);
        if !tag.ends_with('/') {
            open.push(name);
        }
        assert!(!open.is_empty(), "one element holds all");
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} is open");
}

fn assert_text(text: &str) {
    assert!(!text.contains('>') && !text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    for entity in text.split('&').skip(1) {
        assert!(["amp;", "lt;", "gt;", "quot;"].iter().any(|known| entity.starts_with(known)), "&{entity}");
    }
}

fn assert_attributes(attributes: &str) {
    let mut names: Vec<&str> = Vec::new();
    let mut rest = attributes.trim();
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").expect("an attribute with a value in quotes");
        let (value, after) = value.split_once('"').expect("a value that ends");
        assert!(!names.contains(&name), "{name} is there twice");
        assert!(!value.contains('&') && !value.contains("NaN") && !value.contains("inf"), "{name}={value}");
        names.push(name);
        rest = after.trim_start();
    }
}

impl Models {
    async fn drawn(&self, name: &str, flags: &str) -> String {
        let file = self.path("chart.svg");
        answer(&self.args(name, &format!("{flags} --svg {}", file.display())), &machine()).await.unwrap();
        let drawn = std::fs::read_to_string(file).unwrap();
        assert_well_formed(&drawn);
        drawn
    }
}

fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

#[tokio::test]
async fn one_plan_is_drawn_as_stacked_areas_with_a_line_for_each_gpu_and_a_mark_for_what_is_asked() {
    let models = Models::new();
    let drawn = models.drawn("smollm2.gguf", "--num-ctx 3000 --gpu 1GiB --gpu 2GiB").await;
    assert_eq!(count(&drawn, "<polygon"), 4);
    for label in
        ["gpu0 ends at 768.0 MiB", "gpu1 ends at 2.50 GiB", "num_ctx (tokens", "weights", "cache", "working space", "GPU libraries"]
    {
        assert!(drawn.contains(label), "{label} is missing:\n{drawn}");
    }
    let needed = models.plan("smollm2.gguf", "--num-ctx 3000 --gpu 1GiB").await.footprint.total_bytes;
    assert!(drawn.contains(&format!("num_ctx 3000: {needed}<")), "{drawn}");
    assert!(
        drawn.contains("<title id=\"title\">a model: GPU memory for all layers on one GPU</title>")
            && drawn.contains("<desc id=\"desc\">With a cache of type f16")
    );
    assert_eq!((count(&drawn, "class=\"end\""), count(&drawn, "class=\"asked\""), count(&drawn, "class=\"dot\"")), (2, 1, 1));
}

#[tokio::test]
async fn what_is_compared_is_drawn_as_a_line_for_each_type() {
    let models = Models::new();
    let drawn = models.drawn("smollm2.gguf", "--num-ctx 4096 --gpu 1GiB --compare f16,q8_0,q4_0").await;
    assert_eq!((count(&drawn, "<polyline"), count(&drawn, "<polygon"), count(&drawn, "class=\"dot\"")), (3, 0, 3));
    for report in models.compared("smollm2.gguf", "--num-ctx 8192 --gpu 1GiB --compare f16,q8_0,q4_0").await {
        let label = format!(">{} {}<", report.request.kv_cache_type, report.footprint.total_bytes);
        assert!(drawn.contains(&label), "{label} is missing:\n{drawn}");
    }
}

#[tokio::test]
async fn an_area_ends_at_the_height_of_its_bytes() {
    let models = Models::new();
    // The GPU offers 768 MiB and the longest context needs 796.9 MiB, so the axis, in steps of 128 MiB, ends at 896 MiB: 300 units above 384.
    let drawn = models.drawn("smollm2.gguf", "--num-ctx 8192 --gpu 1GiB").await;
    let y = |mib: f64| 384.0 - mib / 896.0 * 300.0;
    let report = models.plan("smollm2.gguf", "--num-ctx 8192 --gpu 1GiB").await;
    assert!(drawn.contains(&format!("class=\"end\" x1=\"76\" y1=\"{:.1}\"", y(768.0))), "{drawn}");
    assert!(drawn.contains(&format!("640.0,{:.1}", y(report.footprint.total_bytes.as_mib()))), "{drawn}");
    assert!(drawn.contains(&format!("640.0,{:.1}", y(report.footprint.weights_bytes.as_mib()))), "{drawn}");
}

#[tokio::test]
async fn any_model_and_any_number_of_gpus_make_a_good_drawing() {
    let models = Models::new();
    let short = Shape { trained_context: 512, blocks: 2, ..SMOLLM2_135M };
    models.write("short.gguf", &short.writer().header());
    let mut named = SMOLLM2_135M.writer().header();
    let at = named.windows(7).position(|window| window == b"a model").unwrap();
    named[at..at + 7].copy_from_slice(b"<&\x1b\"]]>");
    models.write("named.gguf", &named);
    let flags = ["", "--gpu 0", "--gpu 1", "--gpu 64x1GiB", "--gpu 900TiB --num-ctx 16384", "--gpu 1GiB --compare q4_0 --parallel 7"];
    for (name, flags) in ["smollm2.gguf", "short.gguf", "named.gguf"].iter().flat_map(|name| flags.iter().map(move |flags| (name, flags))) {
        let drawn = models.drawn(name, flags).await;
        assert!(drawn.contains("<svg") && !drawn.contains('\u{1b}'), "{name} {flags}");
    }
    let drawn = models.drawn("named.gguf", "--gpu 1GiB").await;
    assert!(drawn.contains("&lt;&amp;\"]]&gt;: GPU memory"), "{drawn}");
    let drawn = models.drawn("smollm2.gguf", "--gpu 64x1GiB").await;
    assert_eq!(count(&drawn, "class=\"end\""), 64);
    assert!(
        count(&drawn, " ends at ") < 90 && drawn.contains(">gpu63 ends at 48.0 GiB<"),
        "labels that would lie on one another are left out"
    );
}

#[tokio::test]
async fn a_chart_takes_the_place_of_the_one_before_and_leaves_nothing_else() {
    let models = Models::new();
    let before = models.drawn("smollm2.gguf", "--num-ctx 512 --gpu 1GiB").await;
    assert_ne!(models.drawn("smollm2.gguf", "--num-ctx 1024 --gpu 1GiB").await, before);
    let mut names: Vec<_> = std::fs::read_dir(models.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["chart.svg", "smollm2.gguf"]);
}

#[tokio::test]
async fn a_chart_that_can_not_be_written_is_an_error_that_names_the_file() {
    let models = Models::new();
    for file in ["nowhere/chart.svg", ""] {
        let flags = format!("--gpu 1GiB --svg {}", models.path(file).display());
        let error = answer(&models.args("smollm2.gguf", &flags), &machine()).await.unwrap_err();
        assert!(matches!(error, PlanError::Write { .. }));
        assert!(error.to_string().starts_with("writing the chart to ") && error.to_string().contains(file), "{error}");
    }
}

#[tokio::test]
async fn no_line_of_any_table_is_wider_than_80_columns() {
    let models = Models::new();
    let wide = Shape { trained_context: 10_485_760, ..SMOLLM2_135M };
    models.write("wide.gguf", &wide.writer().header());
    for name in ["smollm2.gguf", "wide.gguf"] {
        for gpus in ["", "--gpu 1GiB", "--gpu 8x15GiB", "--gpu 1GiB --gpu 900TiB"] {
            for asked in [
                "",
                "--num-ctx 300",
                "--num-ctx 8192 --parallel 16",
                "--compare f16,q8_0,q4_0",
                "--compare q4_0,q8_0 --num-ctx 8000 --parallel 99",
            ] {
                let table = models.printed(name, &format!("{gpus} {asked}")).await;
                assert!(table.lines().all(|line| line.chars().count() <= 80), "{name} {gpus} {asked}:\n{table}");
            }
        }
    }
}
