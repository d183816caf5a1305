//! Each plugin and filter has a page of its own, and nbdkit(1) lists them.

use std::process::Command;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::command::run;

use crate::page::{Page, page, pages};
use crate::{DEADLINE, assert_none, root};

/// Pages of plugins and filters that are files of their own.
const FILES: &[&str] = &["nbdkit-example4-plugin", "nbdkit-ext2-filter", "nbdkit-rust-plugin"];

/// A built-in plugin or filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) is_filter: bool,
}

impl Module {
    /// `nbdkit-cow-filter`.
    pub(crate) fn page_name(&self) -> String {
        format!("nbdkit-{}-{}", self.name, if self.is_filter { "filter" } else { "plugin" })
    }

    pub(crate) fn page(&self) -> Page {
        page(&self.page_name())
    }
}

/// All built-in plugins and filters.
pub(crate) fn built_in() -> Vec<Module> {
    let worker = Binary::ours().path().with_file_name("nbdkit-worker");
    let listed = run(Command::new(worker).arg("--built-in"), DEADLINE).stdout;
    let modules: Vec<Module> = listed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(kind, name)| Module { name: name.to_owned(), is_filter: kind == "filter" })
        .collect();
    assert!(modules.len() > 70, "{listed}");
    modules
}

#[test]
fn every_plugin_and_filter_has_a_page_and_no_page_is_of_another() {
    let mut wrong = Vec::new();
    let modules = built_in();
    for module in &modules {
        let page = module.page();
        let name = &module.name;
        let synopsis = page.section_lines("SYNOPSIS");
        let how = if module.is_filter {
            format!(".Fl -filter Ns = Ns Cm {name}")
        } else {
            format!(".Cm {name}")
        };
        if !synopsis.contains(&&*how) {
            wrong.push(format!("{}: its synopsis has no {how}", page.title()));
        }
        for heading in ["DESCRIPTION", "PARAMETERS", "EXAMPLES", "WHAT CLIENTS SHARE", "SEE ALSO"] {
            if page.section_lines(heading).is_empty() {
                wrong.push(format!("{}: no section {heading}", page.title()));
            }
        }
    }
    let is_module = |page: &Page| page.name.ends_with("-plugin") || page.name.ends_with("-filter");
    for page in pages().iter().filter(|page| is_module(page)) {
        let is_built_in = modules.iter().any(|module| module.page_name() == page.name);
        let is_interface = ["nbdkit-plugin", "nbdkit-filter"].contains(&&*page.name);
        if !is_built_in && !is_interface && !FILES.contains(&&*page.name) {
            wrong.push(format!("{}: there is no such plugin or filter", page.title()));
        }
    }
    assert_none("pages of plugins and filters", &wrong);
}

#[test]
fn every_page_is_named_in_the_page_of_the_server() {
    let server = page("nbdkit");
    let references = server.references();
    let pages = pages();
    let others = pages.iter().filter(|page| page.name != "nbdkit");
    let missing = others.filter(|page| !references.contains(&(&page.name, &page.section)));
    // Examples for programmers, which nobody serves.
    let missing = missing.filter(|page| page.name != "nbdkit-example4-plugin");
    let missing: Vec<String> = missing.map(Page::title).collect();
    assert_none("nbdkit(1) does not name", &missing);
}

#[test]
fn pages_say_what_they_are_about_in_the_same_words_as_the_list() {
    let server = page("nbdkit");
    let lines = server.section_lines("PLUGINS AND FILTERS");
    let mut wrong = Vec::new();
    for module in built_in() {
        let page = module.page();
        let about = page.macros("Nd").first().copied().unwrap_or_default().to_owned();
        let item = format!(".It Xr {} {}", page.name, page.section);
        let mut after = lines.iter().skip_while(|line| **line != item).skip(1);
        let listed = after.next().copied().unwrap_or_default().trim_end_matches('.');
        if !listed.eq_ignore_ascii_case(&about) {
            wrong.push(format!("{}: {about:?} and {listed:?}", page.title()));
        }
    }
    assert_none("described differently", &wrong);
}

#[test]
fn the_readme_lists_all_built_in_plugins_and_filters() {
    let text = std::fs::read_to_string(root().join("README.md")).expect("a file");
    for (is_filter, start) in [(false, "Plugins: "), (true, "Filters: ")] {
        let (_, list) = text.split_once(start).expect("a list");
        let end = list.find(['.', ';']).expect("its end");
        let listed: Vec<&str> = list[..end].split(',').map(str::trim).collect();
        let modules = built_in();
        let modules = modules.iter().filter(|module| module.is_filter == is_filter);
        let known: Vec<&str> = modules.map(|module| &*module.name).collect();
        assert_eq!(listed, known);
    }
}
