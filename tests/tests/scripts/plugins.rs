//! Plugins that are scripts, `nbdkit-NAME-plugin`: Debian has example4 and S3. nbdkit-plugin(3),
//! nbdkit-probing(1).

use std::process::Command;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::command::{self, Finished};
use nbdkit_tests::{Ask, Server, TempDir};

use crate::support::{DEADLINE, write};

fn run(binary: &Binary, arguments: &[&str]) -> Finished {
    command::run(Command::new(binary.path()).args(arguments), DEADLINE)
}

/// Debian's server, if it has this plugin.
fn debian_with(plugin: &str) -> Option<Binary> {
    let debian = Binary::debian()?;
    let found = run(&debian, &["--dump-plugin", plugin]).status.success();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "CI must have {plugin}");
        eprintln!("SKIPPED: Debian's nbdkit has no {plugin}");
    }
    found.then_some(debian)
}

fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    // What Perl prints itself comes first or last, by whose buffer is written first.
    lines.sort();
    lines
}

#[test]
fn scripts_of_the_distribution_describe_themselves() {
    for plugin in ["example4", "S3"] {
        let Some(debian) = debian_with(plugin) else { continue };
        let ours = Binary::under_test();
        let both = |arguments: &[&str]| [run(&ours, arguments), run(&debian, arguments)];
        let [found, expected] = both(&["--dump-plugin", plugin]);
        assert!(found.status.success(), "{found:?}");
        let mut keys = lines(&found.stdout);
        // What nbdkit does not have.
        let ours = |key: &String| key.starts_with("sandbox=") || key.starts_with("isolation=");
        assert_eq!(keys.extract_if(.., |key| ours(key)).count(), 2, "{found:?}");
        assert_eq!(keys, lines(&expected.stdout));
        // The server's own version and options come before the plugin's.
        let [found, expected] = both(&["--version", plugin]);
        assert_eq!(found.stdout.lines().last(), expected.stdout.lines().last());
        let [found, expected] = both(&["--help", plugin]);
        let about = |text: &str| text[text.find("\nplugin: ").expect("a plugin")..].to_owned();
        assert_eq!(about(&found.stdout), about(&expected.stdout));
        // A parameter that it misses, one that it does not know.
        for arguments in [&["-U", "-", plugin][..], &["-U", "-", plugin, "nosuch=1"]] {
            let [found, expected] = both(arguments);
            assert_eq!(found.status_text(), expected.status_text(), "{arguments:?}");
        }
    }
}

#[test]
fn example4_serves_a_disk() {
    let Some(debian) = debian_with("example4") else { return };
    let [found, expected] = [Binary::under_test(), debian].map(|binary| {
        let server = Server::nbdkit(["example4", "size=65536"]).binary(binary).start();
        let mut client = server.connected("");
        assert_eq!(client.export().expect("an export").0, 65536);
        assert_eq!(client.call(&Ask::read(4096, 512)).expect("a reply").data, [0; 512]);
        let written = client.call(&Ask::write(4096, *b"perl")).expect("a reply").error;
        (client.export().expect("an export").1, format!("{written:?}"))
    });
    assert_eq!(found, expected);
}

/// By path Debian's takes libraries only, and its sh plugin executes such a script, which executes
/// nbdkit, and so on.
#[test]
fn a_script_for_the_sh_plugin_is_found_by_path_and_read_by_the_shell() {
    if !Binary::under_test().is_ours() {
        return;
    }
    let cases = "case $1 in get_size) echo 4660;; config) [ $2 = a ] || exit 1;; \
                 dump_plugin) echo extra=1;; *) exit 2;; esac\n";
    for shebang in ["/usr/sbin/nbdkit sh", "/usr/bin/env nbdkit sh", "/usr/bin/env -S nbdkit sh"] {
        let builder = Server::nbdkit(["{dir}/nbdkit-mine-plugin", "a=b"]);
        write(builder.dir(), "nbdkit-mine-plugin", &format!("#!{shebang}\n{cases}"), 0o755);
        let path = builder.dir().join("nbdkit-mine-plugin");
        let dumped = run(&Binary::under_test(), &["--dump-plugin", &path.to_string_lossy()]);
        for line in ["name=sh", "extra=1"] {
            assert!(dumped.stdout.lines().any(|it| it == line), "{shebang}: {dumped:?}");
        }
        let server = builder.start();
        let client = server.connected("");
        assert_eq!(client.export().expect("an export").0, 4660);
    }
}

#[test]
fn scripts_of_no_plugin_are_refused_in_one_line() {
    if !Binary::under_test().is_ours() {
        return;
    }
    let dir = TempDir::new();
    for (text, mode, words) in [
        ("#!/bin/sh\n", 0o755, "does not name nbdkit as its interpreter"),
        ("#!/usr/sbin/nbdkit\n", 0o755, "does not name the language"),
        ("#!/usr/sbin/nbdkit -r perl\n", 0o755, "options are not supported"),
        ("#!/usr/sbin/nbdkit no-such\n", 0o755, "no-such"),
        ("#!/usr/sbin/nbdkit perl\n", 0o644, "Permission denied"),
    ] {
        write(&dir, "nbdkit-x-plugin", text, mode);
        let path = dir.join("nbdkit-x-plugin");
        let finished = run(&Binary::under_test(), &["-U", "-", &path.to_string_lossy()]);
        assert_eq!(finished.status.code(), Some(1), "{text}: {finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{text}: {finished:?}");
        assert!(finished.stderr.contains(words), "{text}: {finished:?}");
    }
}
