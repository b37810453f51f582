//! What was found, in Markdown.

use std::fmt::Write;

#[derive(Default)]
pub struct Report {
    text: String,
    failed: Vec<String>,
}

impl Report {
    pub fn line(&mut self, line: &str) {
        // To whoever waits: the whole comes at the end.
        eprintln!("{line}");
        // Writing to a String can't fail.
        let _ = writeln!(self.text, "{line}");
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

    pub fn holds(&self) -> bool {
        self.failed.is_empty()
    }

    pub fn text(&self) -> String {
        let verdict = match self.failed.as_slice() {
            [] => "All checks hold.".to_owned(),
            failed => format!("{} checks fail:\n\n- {}", failed.len(), failed.join("\n- ")),
        };
        format!("{}\n## Verdict\n\n{verdict}\n", self.text)
    }
}
