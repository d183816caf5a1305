//! Reads `differences.txt`: the rows in which ours differs from Debian's nbdkit on purpose.
//!
//! ```text
//! # comment
//! [row_name: its variant, if it has several]
//! because: one line that a reviewer accepts
//! - a line of Debian's transcript
//! + the line of ours in its place
//! ```

const LIST: &str = include_str!("../../differences.txt");

/// One listed row.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    row: &'a str,
    reason: &'a str,
    lines: Vec<&'a str>,
}

/// The lines in which a row has to differ; empty if it is not listed.
///
/// # Panics
/// If the list is malformed.
pub(super) fn of_row(name: &str) -> Vec<String> {
    let entries = parse(LIST);
    let entry = entries.into_iter().find(|entry| entry.row == name);
    entry.map_or_else(Vec::new, |entry| entry.lines.into_iter().map(str::to_owned).collect())
}

/// Checks that every listed row is a test in one of these source texts.
///
/// # Panics
/// If a row is listed that no longer exists.
pub fn check_rows_exist(sources: &[&str]) {
    for entry in parse(LIST) {
        let test = entry.row.split(':').next().unwrap_or_default();
        let function = format!("fn {test}()");
        assert!(
            sources.iter().any(|source| source.contains(&function)),
            "differences.txt lists {}, which is no row",
            entry.row
        );
    }
}

fn parse(text: &str) -> Vec<Entry<'_>> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(row) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            assert!(
                entries.iter().all(|entry| entry.row != row),
                "differences.txt lists {row} twice"
            );
            entries.push(Entry { row, reason: "", lines: Vec::new() });
            continue;
        }
        let number = number + 1;
        let Some(entry) = entries.last_mut() else {
            panic!("differences.txt:{number}: expected [row], found {line:?}");
        };
        if let Some(reason) = line.strip_prefix("because: ") {
            entry.reason = reason;
        } else if line.starts_with("- ") || line.starts_with("+ ") {
            entry.lines.push(line);
        } else {
            panic!("differences.txt:{number}: expected because:, - or +, found {line:?}");
        }
    }
    for entry in &entries {
        assert!(!entry.reason.is_empty(), "differences.txt: {} has no reason", entry.row);
        assert!(!entry.lines.is_empty(), "differences.txt: {} has no lines", entry.row);
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_reason_and_lines() {
        let entries = parse("# c\n\n[a_row]\nbecause: of that\n- x -> y\n+ x -> z\n");
        assert_eq!(
            entries,
            [Entry { row: "a_row", reason: "of that", lines: vec!["- x -> y", "+ x -> z"] }]
        );
    }

    #[test]
    #[should_panic(expected = "has no reason")]
    fn a_row_without_a_reason_is_refused() {
        parse("[a_row]\n- x\n");
    }

    #[test]
    fn the_list_in_the_tree_is_well_formed() {
        parse(LIST);
    }
}
