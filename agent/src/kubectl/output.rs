//! How answers are printed: as text, or for machines.

use std::io::Write;

use clap::ValueEnum;
use serde::Serialize;

use super::Error;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

/// Prints the answer; `text` is what people read of it.
pub fn print<T: Serialize>(format: Format, answer: &T, text: impl FnOnce(&T) -> String) -> Result<(), Error> {
    let printed = match format {
        Format::Table => text(answer),
        Format::Json => serde_json::to_string_pretty(answer)? + "\n",
        Format::Yaml => stowage_crds::yaml::to_string(answer)?,
    };
    let mut out = std::io::stdout().lock();
    out.write_all(printed.as_bytes())?;
    Ok(out.flush()?)
}
