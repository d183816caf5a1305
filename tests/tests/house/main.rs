//! Rules of the house that a machine can check, in every source file of the workspace:
//! docs/style.md, "Files", "Unsafe". A rule that is broken names the file and the line.

mod imports;

use std::path::{Path, PathBuf};

/// Longest file, lines, outside of tests and tables.
const MAX_LINES: usize = 500;
/// Widest comment, columns.
const MAX_COLUMNS: usize = 100;

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace")
}

/// Every Rust file below a directory, and its text.
fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(&next).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    pending.push(path);
                }
            } else if name.ends_with(".rs") {
                let text = std::fs::read_to_string(&path).expect("UTF-8");
                found.push((path, text));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no sources in {}", directory.display());
    found
}

/// Where a file is, from the root on.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn is_test(path: &Path) -> bool {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let in_tests = |part: &std::ffi::OsStr| part == "tests" || part == "benches" || part == "fuzz";
    name == "tests"
        || name.ends_with("_tests")
        || shown(path).split('/').any(|p| in_tests(p.as_ref()))
}

/// Fails with all that was found.
fn assert_none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

#[test]
fn no_file_is_longer_than_500_lines() {
    let long: Vec<String> = sources(&root())
        .iter()
        .filter(|(path, text)| !is_test(path) && text.lines().count() > MAX_LINES)
        .map(|(path, text)| format!("{}: {} lines", shown(path), text.lines().count()))
        .collect();
    assert_none("too long", &long);
}

#[test]
fn no_comment_is_wider_than_100_columns() {
    let mut wide = Vec::new();
    for (path, text) in sources(&root()) {
        for (number, line) in text.lines().enumerate() {
            let is_comment = line.trim_start().starts_with("//");
            // Neither a link nor a row of a table can be broken.
            let is_whole = line.contains("://") || line.starts_with("//! |");
            if is_comment && line.chars().count() > MAX_COLUMNS && !is_whole {
                wide.push(format!("{}:{}", shown(&path), number + 1));
            }
        }
    }
    assert_none("too wide", &wide);
}

/// "As above" is no invariant, and "the same" no reason.
#[test]
fn every_unsafe_block_and_every_rule_has_a_reason_of_its_own() {
    let mut lazy = Vec::new();
    for (path, text) in sources(&root()) {
        let is_policy =
            shown(&path).contains("policy") || shown(&path).ends_with("sandbox/src/lists.rs");
        for (number, line) in text.lines().enumerate() {
            let reason = line.rsplit_once("// ").map_or("", |(_, reason)| reason).to_lowercase();
            let borrowed = ["the same", "as above", "as in ", "as for ", "as promised", "likewise"];
            let safety = reason.strip_prefix("safety: ");
            let is_reason = safety.is_some() || is_policy && line.contains("c::SYS_");
            let reason = safety.unwrap_or(&reason);
            if is_reason && borrowed.iter().any(|borrowed| reason.starts_with(borrowed)) {
                lazy.push(format!("{}:{}: {reason}", shown(&path), number + 1));
            }
        }
    }
    assert_none("no reason of its own", &lazy);
}

/// docs/architecture.md, "Unsafe", has all files with unsafe code, and no other.
#[test]
fn unsafe_code_is_where_the_architecture_page_has_it() {
    let page = std::fs::read_to_string(root().join("docs/architecture.md")).expect("a page");
    let (_, section) = page.split_once("\n## Unsafe\n").expect("a section");
    let named: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| line.split(" | ").next().unwrap_or_default().split('`').skip(1).step_by(2))
        .collect();
    let files: Vec<String> = sources(&root())
        .iter()
        .filter(|(path, text)| !is_test(path) && text.contains("#![expect(unsafe_code"))
        .map(|(path, _)| shown(path))
        .collect();
    let is_named = |file: &String| named.iter().any(|named| file.starts_with(named));
    let missing: Vec<String> = files.iter().filter(|file| !is_named(file)).cloned().collect();
    assert_none("unsafe code, and not on the page", &missing);
    let gone = named.iter().filter(|named| !files.iter().any(|file| file.starts_with(**named)));
    let gone: Vec<String> = gone.map(|named| (*named).to_owned()).collect();
    assert_none("on the page, and without unsafe code", &gone);
}

#[test]
fn no_modules_import_each_other() {
    let crates = sources(&root())
        .into_iter()
        .filter(|(path, _)| path.ends_with("src/lib.rs") || path.ends_with("src/main.rs"))
        .filter_map(|(path, _)| Some(path.parent()?.to_owned()));
    let mut circles = Vec::new();
    for source in crates {
        for circle in imports::circles(&source, &sources(&source)) {
            circles.push(format!("{}: {}", shown(&source), circle.join(", ")));
        }
    }
    circles.dedup();
    assert_none("circles", &circles);
}
