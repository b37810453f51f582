//! A line of a log as it goes into a status.

/// Characters that a status has of one.
const LONGEST: usize = 300;

/// The line without what could upset a terminal, and not longer than a status should be.
pub fn shown(line: &str) -> String {
    line.trim().chars().filter(|c| !c.is_control()).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_and_has_no_control_characters() {
        assert_eq!(shown("  \u{1b}[31mpanicked\u{7} at 7\r\n"), "[31mpanicked at 7");
        assert_eq!(shown(&"ä".repeat(1000)).chars().count(), LONGEST);
    }
}
