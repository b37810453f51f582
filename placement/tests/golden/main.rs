//! Real models, from their published configurations, sized and planned.
//!
//! A case is `cases/NAME.input.yaml`: the configuration, how the file is quantised, and what is asked. From it a header is made as llama.cpp's
//! converter and quantiser make it (`convert`, `quantize`), and what is planned for it stands in `NAME.output.yaml`, which somebody has read.
//! `make golden` writes the outputs again; with `GOLDEN_HEADERS` set to a folder, the headers are written there, for trying other programs on them.

#![allow(clippy::unwrap_used)]

mod case;
mod config;
mod convert;
mod figures;
mod model;
mod properties;
mod quantize;
mod report;
mod sizing;

use stowage_placement::{ModelSummary, decide};

use crate::case::{Case, Published};

#[test]
fn every_case_is_planned_as_it_was_reviewed() {
    let rewrite = std::env::var_os("GOLDEN_REWRITE").is_some();
    let mut differing = Vec::new();
    let headers = std::env::var_os("GOLDEN_HEADERS");
    for case in Case::all() {
        let found = report::of(&case);
        stowage_crds::yaml::from_str::<serde_json::Value>(&found).unwrap();
        if let Some(folder) = &headers {
            std::fs::write(case.header_path(folder), case.writer().header()).unwrap();
        }
        if rewrite {
            std::fs::write(case.output_path(), &found).unwrap();
        } else if std::fs::read_to_string(case.output_path()).unwrap_or_default() != found {
            differing.push(case.output_path().display().to_string());
        }
    }
    assert!(differing.is_empty(), "`make golden` would change these; see `git diff` after it: {differing:#?}");
}

#[test]
fn there_are_at_least_25_models_each_with_its_source_and_every_architecture_is_among_them() {
    let cases = Case::all();
    assert!(cases.len() >= 25, "{} cases", cases.len());
    assert!(cases.iter().all(|case| case.input.from.starts_with("https://huggingface.co/")));
    let found: std::collections::BTreeSet<&str> = cases.iter().map(|case| convert::convert(&case.input.config).architecture).collect();
    // Mistral 3 differs from Llama by its name alone.
    let missing = stowage_placement::architecture::KNOWN.iter().filter(|known| !found.contains(*known) && **known != "mistral3");
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&&str>::new());
}

/// What is published to the last one must be met so, what is published in tens of millions within half of that.
#[test]
fn a_model_has_as_many_parameters_as_is_published() {
    const ROUNDED: u64 = 10_000_000;
    let published = Case::all().into_iter().filter_map(|case| case.input.published.clone().map(|published| (case, published)));
    for (case, Published { parameters, from }) in published {
        let found = case.summary().parameter_count;
        let tolerance = if parameters.is_multiple_of(ROUNDED) { ROUNDED / 2 } else { 0 };
        let name = case.path.display();
        assert!(found.abs_diff(parameters) <= tolerance, "{name}: {found} parameters, not {parameters} ({from})");
    }
}

#[test]
fn a_summary_takes_at_most_4_kib_and_the_plan_from_it_is_the_plan_from_the_file() {
    for case in Case::all() {
        let summary = case.summary();
        let json = serde_json::to_string(&summary).unwrap();
        assert!(json.len() <= 4096, "{}: {} bytes: {json}", case.path.display(), json.len());
        let through_json: ModelSummary = serde_json::from_str(&json).unwrap();
        assert_eq!(through_json, summary);
        for (asked, gpu) in case.input.requests.iter().flat_map(|asked| case.input.gpus.iter().map(move |gpu| (asked, *gpu))) {
            let (asked, node) = (report::asked(&asked.request()), report::node(stowage_placement::Bytes::gib(gpu)));
            assert_eq!(decide(&through_json, &asked, &node), decide(&summary, &asked, &node));
        }
    }
}
