//! Puts figures into the tree: docs/bench/KIND.tsv, and all that is made of such files.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::figures::Figures;
use crate::pages;

const BEGIN: &str = "<!-- bench -->";
const END: &str = "<!-- /bench -->";

/// Writes the figures of this kind of machine below `root`, in place of older ones, and makes all
/// pages anew.
pub(crate) fn publish(root: &Path, figures: &Figures) -> Result<(), Failure> {
    let dir = directory(root);
    fs::create_dir_all(&dir).map_err(|error| Failure::io("mkdir", dir.display(), &error))?;
    write(&dir.join(format!("{}.tsv", figures.kind)), &figures.to_text())?;
    tables(root)
}

/// Makes all pages anew of the figures below `root`.
pub(crate) fn tables(root: &Path) -> Result<(), Failure> {
    for (path, text) in generated(root)? {
        write(&path, &text)?;
    }
    Ok(())
}

fn directory(root: &Path) -> PathBuf {
    root.join("docs/bench")
}

/// All files that are made of figures, and what should be in them.
fn generated(root: &Path) -> Result<Vec<(PathBuf, String)>, Failure> {
    let dir = directory(root);
    let mut kinds = Vec::new();
    let entries = fs::read_dir(&dir).map_err(|error| Failure::io("read", dir.display(), &error))?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tsv") {
            let figures = Figures::parse(&read(&path)?);
            let wrong = |error| Failure::Unavailable(format!("{}: {error}", path.display()));
            kinds.push(figures.map_err(wrong)?);
        }
    }
    // The latest first.
    kinds.sort_by(|one, other| (&other.date, &one.kind).cmp(&(&one.date, &other.kind)));
    let Some(latest) = kinds.first() else {
        return Err(Failure::Unavailable(format!("{}: no figures", dir.display())));
    };
    let mut files = Vec::new();
    for (path, section) in [
        (root.join("README.md"), pages::short(latest)),
        (root.join("docs/speed.md"), pages::all(&kinds)),
    ] {
        let text = between_marks(&read(&path)?, &section).ok_or_else(|| {
            let path = path.display();
            Failure::Unavailable(format!("{path}: no line {BEGIN} before a line {END}"))
        })?;
        files.push((path, text));
    }
    for figures in &kinds {
        files.push((dir.join(format!("{}.md", figures.kind)), pages::page(figures)));
        for (name, _, svg) in pages::plots(figures) {
            files.push((dir.join(name), svg));
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::io("read", path.display(), &error))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| Failure::io("write", path.display(), &error))
}

/// The text with everything between the marks replaced.
fn between_marks(text: &str, section: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{section}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The root of the workspace.
    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    /// Files that are not what their figures say.
    fn stale(root: &Path) -> Vec<String> {
        let mut stale = Vec::new();
        let files = generated(root).unwrap();
        for (path, text) in &files {
            if fs::read_to_string(path).ok().as_ref() != Some(text) {
                stale.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
        for entry in fs::read_dir(directory(root)).unwrap() {
            let path = entry.unwrap().path();
            let is_source = path.extension().is_some_and(|extension| extension == "tsv");
            if !is_source && !files.iter().any(|(generated, _)| *generated == path) {
                stale.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
        stale
    }

    /// A copy of all files that are made of figures, and one of their sources there.
    fn copy(test: &str) -> (PathBuf, PathBuf) {
        let dir = std::env::temp_dir().join(format!("nbdb-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(directory(&dir)).unwrap();
        for (path, text) in generated(&root()).unwrap() {
            fs::write(dir.join(path.strip_prefix(root()).unwrap()), text).unwrap();
        }
        let mut sources = Vec::new();
        for entry in fs::read_dir(directory(&root())).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "tsv") {
                let copy = directory(&dir).join(path.file_name().unwrap());
                fs::copy(&path, &copy).unwrap();
                sources.push(copy);
            }
        }
        sources.sort();
        (dir, sources.remove(0))
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = between_marks(&text, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n{END}\nb\n"));
        assert_eq!(between_marks(&new, "new\n").unwrap(), new);
        assert_eq!(between_marks("no marks", "new"), None);
    }

    #[test]
    fn the_pages_in_the_tree_are_those_of_the_figures() {
        let stale = stale(&root());
        assert!(
            stale.is_empty(),
            "not what docs/bench/*.tsv say (nbdkit-bench tables .): {stale:?}"
        );
    }

    #[test]
    fn one_edited_number_on_either_side_is_found() {
        let (dir, source) = copy("edited");
        assert_eq!(stale(&dir), [] as [&str; 0]);

        let readme = dir.join("README.md");
        let right = fs::read_to_string(&readme).unwrap();
        let row = right.lines().find(|line| line.starts_with("| 4k-read-d16 ")).unwrap();
        let number = row.split('|').nth(3).unwrap().trim();
        fs::write(&readme, right.replace(row, &row.replacen(number, "999 ±1%", 1))).unwrap();
        assert_eq!(stale(&dir), ["README.md"]);
        fs::write(&readme, right).unwrap();

        let text = fs::read_to_string(&source).unwrap();
        let cell = text.lines().find(|line| line.starts_with("cell\tours\t")).unwrap();
        let median = cell.split('\t').nth(2).unwrap();
        fs::write(&source, text.replace(cell, &cell.replacen(median, "12345", 1))).unwrap();
        assert!(!stale(&dir).is_empty());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn another_kind_of_machine_is_added_and_the_latest_is_in_the_readme() {
        let (dir, source) = copy("added");
        let first = Figures::parse(&fs::read_to_string(&source).unwrap()).unwrap();
        let mut second = first.clone();
        second.kind = "another".to_owned();
        second.machine = "Another machine".to_owned();
        second.date = "2999-01-01".to_owned();
        publish(&dir, &second).unwrap();
        assert_eq!(stale(&dir), [] as [&str; 0]);
        let readme = fs::read_to_string(dir.join("README.md")).unwrap();
        assert!(readme.contains("Another machine, 2999-01-01: 8 of "), "{readme}");
        let speed = fs::read_to_string(dir.join("docs/speed.md")).unwrap();
        for kind in [&first.kind, &second.kind] {
            assert!(speed.contains(&format!("(bench/{kind}.md)")), "{kind}");
            assert!(directory(&dir).join(format!("{kind}.md")).is_file(), "{kind}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
