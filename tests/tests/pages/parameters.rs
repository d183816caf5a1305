//! The page of a plugin or filter has every parameter and every debug flag, and no other.

use std::collections::BTreeSet;
use std::path::Path;

use nbdkit_tests::TempDir;

use crate::modules::{Module, built_in};
use crate::page::Page;
use crate::{assert_none, nbdkit, root};

/// The parameters at the beginning of the lines of `--help`, as in `[file=]<FILENAME>`.
fn in_help(help: &str) -> BTreeSet<String> {
    let is_name = |key: &&str| {
        key.starts_with(|c: char| c.is_ascii_alphabetic())
            && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let keys = help.lines().filter_map(|line| line.split_once('='));
    let keys = keys.flat_map(|(key, _)| key.trim_start_matches('[').split('|'));
    keys.filter(is_name).map(str::to_owned).collect()
}

/// What the module's part of `--help` lists.
fn help(module: &Module, dir: &Path) -> BTreeSet<String> {
    let filter = format!("--filter={}", module.name);
    let arguments = match module.is_filter {
        true => vec![&*filter, "null", "--help"],
        false => vec![&*module.name, "--help"],
    };
    let text = nbdkit(arguments, dir).stdout;
    let (_, own) = text.split_once("Please read").unwrap_or_else(|| panic!("{module:?}: {text}"));
    let own = own.split("\nplugin: null").next().unwrap_or_default();
    in_help(own)
}

/// The parameters that have entries: `.It Cm KEY Ns = Ns Ar VALUE`, `.It Oo Cm KEY Ns = Oc ...`.
fn on_page(page: &Page) -> BTreeSet<String> {
    let items = page.macros("It");
    let words: Vec<Vec<&str>> = items.iter().map(|item| item.split(' ').collect()).collect();
    let found = words.iter().flat_map(|words| words.windows(4));
    let is_parameter = |words: &&[&str]| words[0] == "Cm" && words[2] == "Ns" && words[3] == "=";
    found.filter(is_parameter).map(|words| words[1].to_owned()).collect()
}

/// Whether the module takes a parameter of this name: one that nobody knows is an error of its own.
fn is_taken(module: &Module, key: &str, dir: &Path) -> bool {
    let filter = format!("--filter={}", module.name);
    let parameter = format!("{key}=x");
    let mut arguments = vec!["-U", "-", "--run", "true"];
    match (module.is_filter, &*module.name) {
        (true, _) => arguments.extend([&*filter, "null"]),
        (false, name) => arguments.push(name),
    }
    arguments.push(&parameter);
    let stderr = nbdkit(arguments, dir).stderr;
    let refusals = ["unknown parameter", "is unknown", "the first parameter must be"];
    !refusals.iter().any(|refusal| stderr.contains(refusal))
}

#[test]
fn every_parameter_has_its_entry_and_every_entry_is_of_a_parameter() {
    let dir = TempDir::new();
    let mut wrong = Vec::new();
    let mut count = 0;
    for module in built_in() {
        let (page, help) = (module.page(), help(&module, dir.path()));
        let entries = on_page(&page);
        count += entries.len();
        let title = page.title();
        wrong.extend(help.difference(&entries).map(|key| format!("{title} lacks {key}=")));
        // Some plugins hand on what they do not know.
        let takes_anything = is_taken(&module, "no-such-parameter", dir.path());
        for key in entries.difference(&help) {
            if takes_anything || !is_taken(&module, key, dir.path()) {
                wrong.push(format!("{title} has {key}=, which is no parameter"));
            }
        }
    }
    assert!(count > 150, "{count} parameters");
    assert_none("parameters", &wrong);
}

/// Other names of a parameter are in no help, but in the arms of `match key`.
#[test]
fn every_key_that_the_code_matches_has_its_entry() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for module in built_in() {
        let page = module.page();
        let entries = on_page(&page);
        for key in keys_in_source(&module) {
            count += 1;
            if !entries.contains(&key) {
                wrong.push(format!("{} lacks {key}=", page.title()));
            }
        }
    }
    assert!(count > 100, "{count} keys");
    assert_none("parameters", &wrong);
}

/// The literals in the arms of `match key {`, in the module's file and those below.
fn keys_in_source(module: &Module) -> Vec<String> {
    let sources = root().join(if module.is_filter { "filters/src" } else { "plugins/src" });
    let stem = module.name.replace('-', "_");
    let mut files = vec![sources.join(format!("{stem}.rs"))];
    let below = std::fs::read_dir(sources.join(&stem)).into_iter().flatten();
    files.extend(below.map(|entry| entry.expect("an entry").path()));
    let files = files.iter().filter(|path| path.extension().is_some_and(|end| end == "rs"));
    let texts = files.filter_map(|path| std::fs::read_to_string(path).ok());
    texts.flat_map(|text| keys_in_text(&text)).collect()
}

fn keys_in_text(text: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if !line.trim_start().starts_with("match key {") {
            continue;
        }
        let depth = line.len() - line.trim_start().len();
        let end = format!("{}}}", " ".repeat(depth));
        let arm = format!("{}\"", " ".repeat(depth + 4));
        let arms = lines.by_ref().take_while(|line| *line != end);
        for arm in arms.filter(|line| line.starts_with(&arm)) {
            let pattern = arm.split("=>").next().unwrap_or_default();
            // A guard may have literals of its own.
            let pattern = pattern.split(" if ").next().unwrap_or_default();
            keys.extend(pattern.split('"').skip(1).step_by(2).map(str::to_owned));
        }
    }
    keys
}

#[test]
fn every_debug_flag_is_on_its_page() {
    let mut missing = Vec::new();
    let mut count = 0;
    for module in built_in() {
        let name = &*module.name;
        let flags = match module.is_filter {
            true => nbdkit_filters::load(name).map(|filter| filter.debug_flags()),
            false => nbdkit_plugins::load(name).map(|plugin| plugin.debug_flags()),
        };
        for flag in flags.unwrap_or_default() {
            count += 1;
            let text = format!("{name}.{flag}=1");
            if !module.page().text.contains(&text) {
                missing.push(text);
            }
        }
    }
    assert!(count >= 6, "{count} flags");
    assert_none("not on its page", &missing);
}

#[test]
fn keys_are_the_words_before_equals_signs() {
    let help = "a-b=<X>  c=d.\n     e=f\nno parameter\n[g=]1|2\nh|i=...\nj*, k=";
    let keys = in_help(help);
    assert_eq!(keys.iter().collect::<Vec<_>>(), ["a-b", "g", "h", "i"]);
    let code = "        match key {\n            \"a\" | \"b\" => match value {\n                \"no\" => 1,\n            },\n            _ => 2,\n        }\n            \"c\" => 3,\n";
    assert_eq!(keys_in_text(code), ["a", "b"]);
}
