//! Puts a whole run into the tree: plots in docs/, the table between two marks in the README.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use crate::failure::Failure;
use crate::results::Line;
use crate::workload::FAMILIES;
use crate::{plot, table};

const BEGIN: &str = "<!-- bench -->";
const END: &str = "<!-- /bench -->";

/// Writes `docs/bench-*.svg` and the README's table below `root`.
pub(crate) fn publish(root: &Path, machine: &str, lines: &[Line]) -> Result<(), Failure> {
    let docs = root.join("docs");
    fs::create_dir_all(&docs).map_err(|error| Failure::io("mkdir", docs.display(), &error))?;
    let mut section = format!("{machine}. {}\n\n{}\n", table::LEGEND, table::markdown(lines));
    for (family, title) in FAMILIES {
        let members: Vec<&Line> =
            lines.iter().filter(|line| line.workload.family == family).collect();
        if members.is_empty() {
            continue;
        }
        let name = format!("bench-{family}.svg");
        write(&docs.join(&name), &plot::svg(title, machine, &members))?;
        section += &format!("![{title}](docs/{name})\n");
    }
    let readme = root.join("README.md");
    let text = fs::read_to_string(&readme)
        .map_err(|error| Failure::io("read", readme.display(), &error))?;
    let text = between_marks(&text, &section).ok_or_else(|| {
        Failure::Unavailable(format!("{}: no line {BEGIN} before a line {END}", readme.display()))
    })?;
    write(&readme, &text)
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

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = between_marks(&text, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n{END}\nb\n"));
        assert_eq!(between_marks(&new, "new\n").unwrap(), new);
        assert_eq!(between_marks("no marks", "new"), None);
    }
}
