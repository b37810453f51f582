//! Every reason of the closed set is explained to users, and produced by a test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use stowage_end_to_end::reasons::{ANSWERED, TOLD, current_test};
use stowage_placement::Reason;

const TO_DO: &str = "**What to do:** ";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_page_of_reasons_has_each_with_what_happened_and_what_to_do_and_no_other() {
    let page = read(&repository().join("docs/reasons.md"));
    let sections: Vec<(&str, &str)> = page.split("\n### ").skip(1).map(|section| section.split_once('\n').unwrap()).collect();
    let names: BTreeSet<&str> = sections.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), sections.len(), "a reason has two sections");
    assert_eq!(names, Reason::ALL.iter().map(|reason| reason.as_str()).collect());
    for reason in Reason::ALL {
        let (_, text) = sections.iter().find(|(name, _)| *name == reason.as_str()).unwrap();
        let meaning = reason.meaning().trim();
        assert!(text.contains(meaning), "{reason}: the page should say `{meaning}`");
        let to_do = text.lines().find_map(|line| line.strip_prefix(TO_DO)).unwrap_or_default();
        assert!(!to_do.is_empty(), "{reason}: the page does not say what to do");
    }
    assert!(read(&repository().join("README.md")).contains("(docs/reasons.md)"), "README links to the page");
}

#[test]
fn every_reason_is_produced_by_a_test() {
    let told = TOLD.iter().flat_map(|(_, reasons)| *reasons);
    let produced: BTreeSet<&Reason> = told.chain(ANSWERED.iter().map(|(reason, ..)| reason)).collect();
    let missing: Vec<&Reason> = Reason::ALL.iter().filter(|reason| !produced.contains(reason)).collect();
    assert!(missing.is_empty(), "no test produces {missing:?}");
}

/// A cluster holds its test to the table when it is stopped.
#[test]
fn each_test_that_is_said_to_produce_reasons_is_there_and_held_to_it() {
    let tests = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")).unwrap().map(|entry| entry.unwrap().path());
    let code: String = tests.filter(|path| path.is_file()).map(|path| read(&path)).collect();
    for (test, reasons) in TOLD {
        let body = body(&code, test).unwrap_or_else(|| panic!("there is no test {test}"));
        assert!(body.contains(".stop()"), "{test} does not stop its cluster, so nobody looks whether it produced {reasons:?}");
    }
    for (reason, file, test) in ANSWERED {
        let code = read(&repository().join(file));
        let body = body(&code, test).unwrap_or_else(|| panic!("there is no test {test} in {file}"));
        let asserts = |line: &str| line.contains("assert") && line.contains(&format!("Reason::{reason}"));
        assert!(body.lines().any(asserts), "{test} in {file} does not assert Reason::{reason}");
    }
}

#[test]
fn the_test_that_runs_is_known_by_its_name() {
    assert_eq!(current_test(), "the_test_that_runs_is_known_by_its_name");
}

/// What stands between the name of a function and the line that closes it.
fn body<'a>(code: &'a str, function: &str) -> Option<&'a str> {
    let (_, rest) = code.split_once(&format!("fn {function}("))?;
    rest.split_once("\n}\n").map(|(body, _)| body)
}
