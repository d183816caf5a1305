//! Plugins have manual pages that name their parameters and debug flags.

use std::path::Path;

/// Those that have a page of their own.
const PAGES: &[&str] = &[
    "example1",
    "example2",
    "example3",
    "iso",
    "linuxdisk",
    "ondemand",
    "tmpdisk",
    "vhd",
    "vhdx",
    "vmdk",
];

#[test]
fn a_plugins_page_names_its_parameters() {
    let mut missing = Vec::new();
    for name in PAGES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = path.join(format!("../man/nbdkit-{name}-plugin.1"));
        let page = std::fs::read_to_string(&path);
        let page = page.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // Fonts change in the middle of words.
        let fonts = [r"\fB", r"\fI", r"\fR"];
        let page = fonts.iter().fold(page, |page, font| page.replace(font, "")).replace(r"\-", "-");
        let plugin = crate::load(name).expect("a plugin");
        let help = plugin.config_help().unwrap_or_default();
        let keys = help.lines().filter_map(|line| Some(line.split_once('=')?.0));
        let wanted = keys.map(|key| format!(".BR {}=", key.trim_matches(['[', ']'])));
        let flags = plugin.debug_flags().iter().map(|flag| format!("{name}.{flag}=1"));
        let title = format!("nbdkit-{name}-plugin - ");
        let unnamed = wanted.chain(flags).chain([title]).filter(|text| !page.contains(text));
        missing.extend(unnamed.map(|text| format!("{name}: {text}")));
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
