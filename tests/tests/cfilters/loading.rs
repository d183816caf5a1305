//! Which files are filters, where they are looked for, and what is said about those that are not.

use nbdkit_tests::Server;

use crate::support::compile;

/// What a server with this filter says when it refuses it.
fn refused(filter: &str) -> String {
    let finished = Server::nbdkit(["--filter", filter, "memory", "1M"]).try_start();
    let finished = finished.expect_err("refused");
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    finished.stderr
}

#[test]
fn a_filter_of_another_version_is_refused_with_a_line_that_names_both() {
    let line = refused(&compile("refused.c", &["-DBAD_VERSION=\"1.32.5\""]));
    assert!(line.contains("1.32.5") && line.contains("1.46.0"), "{line}");
}

#[test]
fn debians_filters_are_found_by_name_and_by_path_and_refused_in_the_same_words() {
    let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
    let directory = format!("/usr/lib/{triplet}/nbdkit/filters");
    let Ok(entries) = std::fs::read_dir(&directory) else {
        return eprintln!("SKIPPED: Debian's filters are not installed");
    };
    let names: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            Some(name.strip_prefix("nbdkit-")?.strip_suffix("-filter.so")?.to_owned())
        })
        .collect();
    let path = |name: &str| format!("{directory}/nbdkit-{name}-filter.so");
    let line = refused(&path(names.first().expect("a filter")));
    assert!(line.contains("compiled for version 1.32") && line.contains("1.46.0"), "{line}");
    // By name, only one that is not built in.
    let listed = refused("no-such");
    let built_in: Vec<&str> = listed.split([' ', ',', '\n']).collect();
    for name in names.iter().filter(|name| !built_in.contains(&name.as_str())) {
        assert_eq!(refused(name), refused(&path(name)));
    }
}

#[test]
fn what_is_no_filter_is_refused_with_the_reason() {
    for (flag, reason) in [
        ("-DBAD_API=5", "(_api_version = 5)"),
        ("-DNO_VERSION", "does not say for which version"),
        ("-DNO_NAME", "filter must have a .name field"),
        ("-DBAD_NAME=\"a b\"", "filter.name must begin with"),
        ("-DNO_TABLE", "filter_init returned no table"),
        ("-DNO_ENTRY", "undefined symbol: filter_init"),
    ] {
        let line = refused(&compile("refused.c", &[flag, "-Wno-unused-variable"]));
        assert!(line.contains(reason), "{flag}: {line}");
    }
    assert!(refused("./no-such.so").contains("cannot open filter './no-such.so': "));
    assert!(refused("no-such").contains("; the filters here are "));
}

#[test]
fn a_built_in_filter_comes_before_a_file_of_the_same_name() {
    let server = Server::nbdkit(["--filter=log", "memory", "1M", "logfile=/dev/null"]).start();
    assert!(!server.stderr_text().contains("compat"));
}

#[test]
fn a_debug_flag_that_there_is_not_is_reported() {
    let filter = format!("--filter={}", compile("every.c", &[]));
    let server = Server::nbdkit(["-D", "every.nope=1", &filter, "memory", "1M"]).start();
    let _ =
        server.wait_for_stderr("every does not contain a global variable called every_debug_nope");
}
