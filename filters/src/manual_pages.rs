//! Every filter has a manual page, which names its parameters and debug flags.

use std::path::Path;

/// The text of a filter's page, with plain hyphens.
fn page(name: &str) -> String {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../man");
    let path = pages.join(format!("nbdkit-{name}-filter.1"));
    let text = std::fs::read_to_string(&path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // Fonts change in the middle of words.
    [r"\fB", r"\fI", r"\fR", r"\fP"]
        .iter()
        .fold(text, |text, font| text.replace(font, ""))
        .replace(r"\-", "-")
        .replace(".BI ", ".BR ")
}

/// The parameters that begin the lines of `--help`.
fn parameters(help: &str) -> Vec<&str> {
    let is_name = |key: &&str| !key.is_empty() && !key.contains([' ', '(', '<', '[']);
    help.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, _)| key)
        .filter(is_name)
        .collect()
}

#[test]
fn every_filter_has_a_page_that_names_its_parameters() {
    let mut missing = Vec::new();
    for name in crate::names() {
        let page = page(name);
        let filter = crate::load(name).expect("a filter");
        let title = format!("nbdkit-{name}-filter - ");
        let synopsis = format!("--filter={name}");
        let listed = parameters(filter.config_help().unwrap_or_default());
        let wanted = listed.iter().map(|key| format!("{key}="));
        let flags = filter.debug_flags().iter().map(|flag| format!("{name}.{flag}=1"));
        for text in wanted.chain(flags).chain([title, synopsis]) {
            if !page.contains(&text) {
                missing.push(format!("{name}: {text}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn parameters_are_the_words_before_equals_signs() {
    let help = "a-b=<X>  (required) c=d.\n         e=f\nno parameter\ng=1|2   Text.";
    assert_eq!(parameters(help), ["a-b", "g"]);
}
