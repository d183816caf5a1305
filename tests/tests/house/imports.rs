//! Which module imports which, by `use` and by paths from `crate` and `super`, and the circles in
//! that. A module may import those above it, which have to know it anyway; unit tests may import
//! what they like.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

type Graph = BTreeMap<String, BTreeSet<String>>;

/// The groups of modules that import each other, of a crate whose files these are.
pub(crate) fn circles(source: &Path, files: &[(PathBuf, String)]) -> Vec<Vec<String>> {
    let modules: BTreeMap<String, &str> =
        files.iter().map(|(path, text)| (name(source, path), text.as_str())).collect();
    let mut graph = Graph::new();
    for (module, text) in &modules {
        let imported = imports(text).into_iter().filter_map(|path| target(&modules, module, &path));
        let below = |other: &String| module.starts_with(&format!("{other}::")) || other.is_empty();
        let imported = imported.filter(|other| other != module && !below(other)).collect();
        graph.insert(module.clone(), imported);
    }
    strongly_connected(&graph)
}

/// `a::b` of `src/a/b.rs`; nothing of the root.
fn name(source: &Path, path: &Path) -> String {
    let path = path.strip_prefix(source).unwrap_or(path).with_extension("");
    let parts = path.iter().map(|part| part.to_string_lossy().into_owned());
    let parts: Vec<String> = parts.filter(|it| !["lib", "main", "mod"].contains(&&**it)).collect();
    parts.join("::")
}

/// All paths that begin with `crate`, `super` or `self`, with trees of `use` taken apart. Without
/// comments and without unit tests.
fn imports(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let text: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join(" ");
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in text.match_indices(start) {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            if text[..at].chars().next_back().is_some_and(|c| is_word(c) || c == ':') {
                continue;
            }
            let rest = &text[at..];
            let end =
                rest.find(|c: char| !(is_word(c) || c == ':' || c == '{')).unwrap_or(rest.len());
            match rest[..end].split_once('{') {
                Some((head, _)) => expand(head, &rest[head.len()..], &mut found),
                None => found.push(rest[..end].trim_end_matches(':').to_owned()),
            }
        }
    }
    found
}

/// Takes a tree `{a, b::{c, d}}` behind `head` apart.
fn expand(head: &str, tree: &str, found: &mut Vec<String>) {
    let mut depth = 0;
    let mut item = String::new();
    for c in tree.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        let ends = depth == 0 || c == ',' && depth == 1;
        if !ends {
            if !(c.is_whitespace() || c == '{' && depth == 1) {
                item.push(c);
            }
            continue;
        }
        match item.split_once('{') {
            Some((more, _)) => expand(&format!("{head}{more}"), &item[more.len()..], found),
            None if !item.is_empty() => found.push(format!("{head}{item}")),
            None => {}
        }
        item.clear();
        if depth == 0 {
            return;
        }
    }
}

/// The module that a path in `module` leads to, or into.
fn target(modules: &BTreeMap<String, &str>, module: &str, path: &str) -> Option<String> {
    let mut at: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
    for part in path.split("::") {
        match part {
            "crate" => at.clear(),
            "super" => drop(at.pop()),
            "self" => {}
            part => at.push(part),
        }
    }
    while !modules.contains_key(&at.join("::")) {
        at.pop()?;
    }
    Some(at.join("::"))
}

/// The groups of more than one module in which each leads to each other.
fn strongly_connected(graph: &Graph) -> Vec<Vec<String>> {
    let reach: Graph =
        graph.keys().map(|module| (module.clone(), reachable(graph, module))).collect();
    let mut circles: Vec<Vec<String>> = graph
        .keys()
        .filter(|module| reach[*module].contains(*module))
        .map(|module| {
            let back = |other: &&String| reach.get(*other).is_some_and(|it| it.contains(module));
            reach[module].iter().filter(back).cloned().collect()
        })
        .collect();
    circles.sort();
    circles.dedup();
    circles
}

fn reachable(graph: &Graph, from: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut pending: Vec<&String> = graph.get(from).into_iter().flatten().collect();
    while let Some(next) = pending.pop() {
        if seen.insert(next.clone()) {
            pending.extend(graph.get(next).into_iter().flatten());
        }
    }
    seen
}

#[test]
fn circles_are_found_and_parents_are_none() {
    let files = |texts: &[(&str, &str)]| -> Vec<(PathBuf, String)> {
        texts.iter().map(|(path, text)| (Path::new("/s").join(path), (*text).to_owned())).collect()
    };
    let of = |texts: &[(&str, &str)]| circles(Path::new("/s"), &files(texts));
    let a = ("a.rs", "use crate::{\n    b::{Own, self},\n    c,\n};\n");
    assert_eq!(of(&[a, ("b.rs", "fn f() { crate::a::g() }"), ("c.rs", "")]), [["a", "b"]]);
    assert!(of(&[a, ("b.rs", "// crate::a"), ("c.rs", "use crate::b::Own;")]).is_empty());
    let child = ("a/x.rs", "use super::Parent; use super::y::Other;");
    let parent = ("a.rs", "mod x; mod y; use x::Child; use self::y;");
    assert!(of(&[parent, child, ("a/y.rs", "use super::Parent;")]).is_empty());
    assert_eq!(of(&[parent, child, ("a/y.rs", "use super::x::Child;")]), [["a::x", "a::y"]]);
    let tests = "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::a;\n}\n";
    assert!(of(&[a, ("b.rs", tests), ("c.rs", "")]).is_empty());
}
