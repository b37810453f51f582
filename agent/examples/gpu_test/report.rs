//! What was found, in Markdown.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Context;

/// Written as it is found, so that of a run that is cut off all is there that was found until then.
pub struct Report {
    file: Option<File>,
    failed: Vec<String>,
}

impl Report {
    /// To standard output, and to this file.
    pub fn new(path: Option<&Path>) -> anyhow::Result<Report> {
        let file = path.map(|path| File::create(path).with_context(|| format!("writing {}", path.display()))).transpose()?;
        Ok(Report { file, failed: Vec::new() })
    }

    pub fn line(&mut self, line: &str) {
        println!("{line}");
        if let Some(Err(error)) = self.file.as_mut().map(|file| writeln!(file, "{line}")) {
            eprintln!("the report's file lacks this line: {error}");
        }
    }

    pub fn section(&mut self, title: &str) {
        self.line(&format!("\n## {title}\n"));
    }

    pub fn table(&mut self, columns: &[&str]) {
        self.line(&format!("| {} |", columns.join(" | ")));
        self.line(&format!("|{}", "---|".repeat(columns.len())));
    }

    pub fn row(&mut self, cells: &[String]) {
        self.line(&format!("| {} |", cells.join(" | ")));
    }

    /// Something that must hold.
    pub fn check(&mut self, what: &str, holds: bool) {
        self.line(&format!("- {}: {what}", if holds { "holds" } else { "**FAILS**" }));
        if !holds {
            self.failed.push(what.to_owned());
        }
    }

    /// The same of what could not be found out.
    pub fn failed(&mut self, what: &str, error: &anyhow::Error) {
        self.check(&format!("{what}: {error:#}"), false);
    }

    /// Whether all that must hold does.
    pub fn verdict(&mut self) -> bool {
        self.section("Verdict");
        let verdict = match self.failed.as_slice() {
            [] => "All checks hold.".to_owned(),
            failed => format!("{} checks fail:\n\n- {}", failed.len(), failed.join("\n- ")),
        };
        self.line(&verdict);
        self.failed.is_empty()
    }
}
