//! Every reason of the closed set is explained to users, and tried by a test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

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

/// Looks for `Reason::NAME`, or for NAME as a word within a string, in the code of tests: files in a crate's folder `tests`, files named `tests.rs` or
/// `…stories.rs`, and what follows `#[cfg(test)]` in others.
#[test]
fn every_reason_is_named_by_a_test() {
    let tests: String = sources(&repository()).iter().map(|path| test_code(path)).collect();
    let unnamed: Vec<&Reason> = Reason::ALL.iter().filter(|reason| !names(&tests, reason.as_str())).collect();
    assert!(unnamed.is_empty(), "no test names {unnamed:?}");
}

/// Rust files of the workspace's crates.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) = entries.partition(|path| path.is_dir());
    let is_code = |path: &PathBuf| !["target", ".git"].iter().any(|name| path.ends_with(name));
    let mut found: Vec<PathBuf> = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect();
    found.extend(folders.into_iter().filter(is_code).flat_map(|folder| sources(&folder)));
    found
}

fn test_code(path: &Path) -> String {
    let text = read(path);
    let within = path.strip_prefix(repository()).unwrap().to_string_lossy().into_owned();
    if within.contains("/tests/") || within.ends_with("/tests.rs") || within.ends_with("stories.rs") {
        return text;
    }
    text.split_once("#[cfg(test)]\nmod tests {").map(|(_, tests)| tests.to_owned()).unwrap_or_default()
}

fn names(code: &str, name: &str) -> bool {
    code.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| {
        let mut parts = line.match_indices(name).map(|(at, _)| (&line[..at], &line[at + name.len()..]));
        parts.any(|(before, after)| {
            let in_string = before.matches('"').count() % 2 == 1 && !before.ends_with(is_of_a_word);
            (before.ends_with("Reason::") || in_string) && !after.starts_with(is_of_a_word)
        })
    })
}

fn is_of_a_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}
