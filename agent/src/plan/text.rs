//! Text as a terminal has it: columns that are aligned, and paragraphs that wrap.

/// Terminals are at least this wide.
pub(crate) const WIDTH: usize = 80;

/// Rows with their columns aligned: the first one to the left, the others, mostly bytes, to the right. They come closer together where the terminal
/// would not be wide enough for two spaces between them.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let between = if widths.iter().sum::<usize>() + 2 * N.saturating_sub(1) <= WIDTH { "  " } else { " " };
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<_>>().join(between).trim_end();
        text.push('\n');
    }
    text
}

/// A label and words that wrap beside it.
pub(crate) fn paragraph(label: &str, text: &str) -> String {
    const INDENT: usize = 11;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() || INDENT + line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    let labels = std::iter::once(label).chain(std::iter::repeat(""));
    lines.iter().zip(labels).map(|(line, label)| format!("{label:<INDENT$}{line}").trim_end().to_owned() + "\n").collect()
}
