//! nbdkit(1) has every option, and no other.

use std::collections::BTreeSet;

use nbdkit_tests::TempDir;

use crate::page::page;
use crate::{assert_none, nbdkit};

/// What the server's own table has: `-v`, `--verbose`.
fn known() -> BTreeSet<String> {
    let dir = TempDir::new();
    let listed = ["--long-options", "--short-options"]
        .map(|option| nbdkit([option], dir.path()).stdout)
        .concat();
    // Both options that list the others leave themselves out.
    let listed = listed.lines().map(str::to_owned);
    let known: BTreeSet<String> =
        listed.chain(["--long-options", "--short-options"].map(str::to_owned)).collect();
    assert!(known.len() > 70, "{known:?}");
    known
}

/// Those that an entry of nbdkit(1) is about: `Fl v , Fl -verbose Ar X` has two.
fn described() -> BTreeSet<String> {
    let page = page("nbdkit");
    let lines = page.section_lines("OPTIONS");
    let items = lines.iter().filter_map(|line| line.strip_prefix(".It "));
    let mut described = BTreeSet::new();
    for item in items {
        let mut words = item.split(' ');
        while let Some(word) = words.next() {
            if word == "Fl" {
                described.insert(format!("-{}", words.next().expect("an option")));
            }
        }
    }
    described
}

#[test]
fn every_option_has_its_entry_and_every_entry_is_of_an_option() {
    let (known, described) = (known(), described());
    let missing: Vec<String> = known.difference(&described).cloned().collect();
    assert_none("nbdkit(1) lacks", &missing);
    let unknown: Vec<String> = described.difference(&known).cloned().collect();
    assert_none("nbdkit(1) has, and the server does not", &unknown);
}

#[test]
fn the_values_of_an_option_are_those_of_the_help() {
    let dir = TempDir::new();
    let help = nbdkit(["--help"], dir.path()).stdout;
    let page = page("nbdkit");
    let lines = page.section_lines("OPTIONS");
    let mut missing = Vec::new();
    let mut found = 0;
    for line in help.lines().map(str::trim_start) {
        let Some((option, rest)) = line.split_once('=').filter(|_| line.starts_with("--")) else {
            continue;
        };
        let values = rest.split_ascii_whitespace().next().unwrap_or_default();
        let Some(item) = lines.iter().find(|item| {
            item.strip_prefix(".It Fl ").is_some_and(|item| {
                item.split(' ').next().is_some_and(|name| option == format!("-{name}"))
            })
        }) else {
            continue;
        };
        let literal = |value: &&str| value.starts_with(|c: char| c.is_ascii_lowercase());
        for value in values.split('|').filter(literal).filter(|_| values.contains('|')) {
            found += 1;
            if !item.split(' ').any(|word| word == value) {
                missing.push(format!("{option}: {value}"));
            }
        }
    }
    assert!(found >= 14, "{found} values");
    assert_none("nbdkit(1) lacks the values", &missing);
}
