//! Whether a page shows what a command printed, words for words: how lines are broken does not count, and what differs from run to run may differ.

/// `…` in what is shown stands for anything. Ages, times since a start, versions of objects, ports of this machine and what its host has free may differ.
pub fn shows(shown: &str, printed: &str) -> bool {
    let (shown, printed) = (words(shown), words(printed));
    let parts: Vec<&[String]> = shown.split(|word| word == "…").collect();
    let [first, between @ .., last] = parts.as_slice() else { return shown == printed };
    let Some(rest) = printed.strip_prefix(*first) else { return false };
    let mut rest = rest;
    for part in between {
        let Some(at) = (0..=rest.len().saturating_sub(part.len())).find(|at| rest[*at..].starts_with(part)) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn words(text: &str) -> Vec<String> {
    text.lines().flat_map(of_line).collect()
}

fn of_line(line: &str) -> Vec<String> {
    // `[  3.9 s] what happens`: since a start.
    let line = match line.strip_prefix('[').and_then(|line| line.split_once(" s]")) {
        Some((seconds, rest)) if seconds.trim().parse::<f64>().is_ok() => format!("[TIME]{rest}"),
        _ => line.to_owned(),
    };
    let mut words: Vec<&str> = line.split_whitespace().collect();
    // The last column of a plan's row for the host is what this machine has free.
    if words.first() == Some(&"host") && words.len() > 2 {
        words.truncate(words.len() - 2);
    }
    let mut found: Vec<String> = Vec::new();
    for word in words {
        let after_version = found.last().is_some_and(|before| before == "version");
        found.push(if after_version { number(word) } else { masked(word) });
    }
    found
}

fn number(word: &str) -> String {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
    if rest.len() < word.len() { format!("NUMBER{rest}") } else { word.to_owned() }
}

fn masked(word: &str) -> String {
    if is_age(word) {
        return "AGE".to_owned();
    }
    for address in ["127.0.0.1:", "192.0.2.10:"] {
        if let Some((before, after)) = word.split_once(address) {
            return format!("{before}{address}{}", number(after));
        }
    }
    word.to_owned()
}

/// `3s`, `2m5s`, `4d`.
fn is_age(word: &str) -> bool {
    let parts: Vec<&str> = word.split_inclusive(|c: char| "smhd".contains(c)).collect();
    let is_part =
        |part: &&str| part.len() > 1 && part.ends_with(['s', 'm', 'h', 'd']) && part[..part.len() - 1].chars().all(|c| c.is_ascii_digit());
    !parts.is_empty() && parts.iter().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_run_to_run_may_differ_and_nothing_else() {
        assert!(shows("NAME AGE\na    3s\n", "NAME   AGE\na      2m5s\n"));
        assert!(shows("[  0.0 s] starting", "[ 12.3 s] starting"));
        assert!(shows("as it was at version 12: yes", "as it was at version 4711: yes"));
        assert!(shows("http://127.0.0.1:1/v1", "http://127.0.0.1:2345/v1"));
        assert!(shows("host  0-3  73.5 MiB  21.3 GiB", "host  0-3  73.5 MiB  8.00 GiB"));
        assert!(!shows("gpu0  0-3  73.5 MiB  21.3 GiB", "gpu0  0-3  73.5 MiB  8.00 GiB"));
        assert!(!shows("a 100% GPU", "a 100% CPU"));
        assert!(!shows("a", "a b"));
    }

    #[test]
    fn an_ellipsis_stands_for_anything_in_its_place() {
        assert!(shows("…\nReason: X\n…", "a\nb\nReason: X\nc\n"));
        assert!(shows("a … c", "a c") && shows("a … c … e", "a b c d e"));
        assert!(!shows("…\nReason: X\n…", "a\nReason: Y\n"));
        assert!(!shows("a … c", "a b d"));
        assert!(!shows("… c c", "a c"));
    }
}
