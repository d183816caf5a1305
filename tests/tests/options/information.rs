//! Options that print something and end: `--help`, `--version`, `--dump-config`, `--dump-plugin`,
//! the lists of options. nbdkit-probing(1).

use std::collections::BTreeMap;

use nbdkit_tests::binary::Binary;

use crate::support::{assert_refused, debian_lacks, run};

/// Standard output of a command that must succeed and say nothing else.
fn output(arguments: &[&str]) -> String {
    let finished = run(arguments);
    assert!(finished.status.success(), "{arguments:?}: {finished:?}");
    assert_eq!(finished.stderr, "", "{arguments:?}");
    finished.stdout
}

/// Lines of KEY=VALUE, in which no key may come twice.
fn fields(arguments: &[&str]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    for line in output(arguments).lines() {
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{line:?}"));
        let earlier = fields.insert(key.to_owned(), value.to_owned());
        assert_eq!(earlier, None, "{key} twice");
    }
    fields
}

#[test]
fn help_names_the_synopsis_and_the_manual_page() {
    let help = output(&["--help"]);
    for words in ["PLUGIN", "--dump-plugin", "--filter=FILTER", "nbdkit(1)"] {
        assert!(help.contains(words), "no {words}");
    }
}

#[test]
fn help_describes_every_option_in_the_lists() {
    if debian_lacks("a description of every option in its help") {
        return;
    }
    let help = output(&["--help"]);
    for list in ["--short-options", "--long-options"] {
        for option in output(&[list]).lines() {
            // Other spellings of an option that is described need not be.
            let alias = [
                "--export",
                "--export-name",
                "--no-fork",
                "--ip-addr",
                "--keep-alive",
                "--new-style",
                "--old-style",
                "--pid-file",
                "--print-url",
                "--read-only",
                "--show-uri",
                "--show-url",
                "--stdin",
                "--time-out",
            ];
            assert!(alias.contains(&option) || help.contains(option), "no {option} in --help");
        }
    }
}

#[test]
fn every_option_in_the_list_is_accepted() {
    // Each of them before --help, which is not reached if the option is unknown; a value where one
    // is due.
    for option in output(&["--long-options"]).lines() {
        let value = match option {
            "--busy-poll" | "--park-idle" => "=0",
            "--debug" => "=nbdkit.x=1",
            "--isolation" => "=shared",
            "--log" => "=null",
            "--mask-handshake" | "--threads" | "--timeout" | "--time-out" => "=1",
            "--sandbox" | "--tls" => "=off",
            "--allow-net"
            | "--exit-with-parent"
            | "--foreground"
            | "--no-fork"
            | "--ipv4-only"
            | "--ipv6-only"
            | "--newstyle"
            | "--log-connections"
            | "--new-style"
            | "--oldstyle"
            | "--old-style"
            | "--no-sr"
            | "--no-structured-replies"
            | "--no-mc"
            | "--no-meta-contexts"
            | "--read-only"
            | "--readonly"
            | "--single"
            | "--stdin"
            | "--swap"
            | "--tls-verify-peer"
            | "--verbose"
            | "--vsock"
            | "--keepalive"
            | "--keep-alive"
            | "--no-keepalive"
            | "--print-uri"
            | "--print-url"
            | "--show-uri"
            | "--show-url"
            | "--dump-config"
            | "--dump-plugin"
            | "--version"
            | "--help"
            | "--long-options"
            | "--short-options" => "",
            _ => "=x",
        };
        let finished = run([format!("{option}{value}"), "--help".to_owned()]);
        assert!(!finished.stderr.contains("option '"), "{option}: {finished:?}");
        assert!(!finished.stderr.contains("unrecognized"), "{option}: {finished:?}");
    }
}

#[test]
fn version_is_a_word_and_a_number() {
    for arguments in [&["--version"][..], &["-V"]] {
        let text = output(arguments);
        let mut words = text.split_whitespace();
        assert_eq!(words.next(), Some("nbdkit"));
        let version = words.next().expect("a number");
        let config = fields(&["--dump-config"]);
        assert_eq!(version, config["version"]);
        let mut parts = version.split('.');
        assert_eq!(parts.next(), Some(config["version_major"].as_str()));
        assert_eq!(parts.next(), Some(config["version_minor"].as_str()));
    }
}

#[test]
fn version_goes_on_to_the_plugin() {
    let text = output(&["--version", "null"]);
    assert!(text.starts_with("nbdkit ") && text.contains("\nnull "), "{text}");
}

#[test]
fn dump_config_has_keys_in_alphabetical_order() {
    let text = output(&["--dump-config"]);
    let keys: Vec<&str> = text.lines().map(|line| line.split('=').next().unwrap()).collect();
    let mut sorted = keys.clone();
    sorted.sort_unstable();
    assert_eq!(keys, sorted);
    let config = fields(&["--dump-config"]);
    assert_eq!(config["name"], "nbdkit");
    assert_eq!(config["exit_with_parent"], "yes");
    assert_eq!(std::path::Path::new(&config["binary"]), Binary::under_test().path());
}

#[test]
fn dump_config_tells_what_came_after_1_32() {
    if debian_lacks("these keys") {
        return;
    }
    let config = fields(&["--dump-config"]);
    for (key, value) in [
        ("run_default_socket", "Unix"),
        ("max_api_version", "2"),
        ("soext", "so"),
        ("timeout_option", "yes"),
        ("vsock_option", "yes"),
    ] {
        assert_eq!(config.get(key).map(String::as_str), Some(value), "{key}");
    }
}

#[test]
fn dump_config_needs_no_plugin_and_looks_at_none() {
    output(&["--dump-config"]);
    output(&["--dump-config", "nosuchplugin"]);
}

#[test]
fn short_options_are_dashes_and_letters() {
    let text = output(&["--short-options"]);
    for letter in "46DefginopPrstuUvV".chars() {
        assert!(text.lines().any(|line| line == format!("-{letter}")), "no -{letter}");
    }
    assert!(text.lines().all(|line| line.len() == 2), "{text}");
}

#[test]
fn plugin_help_is_the_servers_and_the_plugins() {
    for arguments in [&["memory", "--help"][..], &["--help", "memory"]] {
        let text = output(arguments);
        assert!(text.contains("--dump-plugin"), "{arguments:?}");
        assert!(text.contains("plugin: memory"), "{arguments:?}");
        assert!(text.contains("size=<SIZE>"), "{arguments:?}");
    }
}

#[test]
fn filter_help_comes_with_the_plugins() {
    let text = output(&["--filter=delay", "--filter=cow", "null", "--help"]);
    for words in ["plugin: null", "filter: delay", "filter: cow", "rdelay=", "cow-on-cache="] {
        assert!(text.contains(words), "no {words} in\n{text}");
    }
}

#[test]
fn help_about_an_unknown_plugin_fails() {
    let finished = run(["--help", "nosuchplugin"]);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("nosuchplugin"), "{finished:?}");
}

#[test]
fn dump_plugin_tells_the_plugin_apart() {
    for arguments in [&["memory", "--dump-plugin"][..], &["--dump-plugin", "memory"]] {
        let found = fields(arguments);
        for (key, value) in [
            ("name", "memory"),
            ("api_version", "2"),
            ("max_thread_model", "parallel"),
            ("thread_model", "parallel"),
            ("magic_config_key", "size"),
        ] {
            assert_eq!(found.get(key).map(String::as_str), Some(value), "{arguments:?}: {key}");
        }
        assert!(found["path"].starts_with('/'));
    }
}

#[test]
fn dump_plugin_needs_no_parameters_and_opens_nothing() {
    for plugin in ["memory", "file", "sh", "eval", "split", "pattern", "data", "null"] {
        assert_eq!(fields(&[plugin, "--dump-plugin"])["name"], plugin);
    }
}

#[test]
fn dump_plugin_shows_the_thread_model_that_filters_leave() {
    let found = fields(&["--filter=noparallel", "memory", "1M", "--dump-plugin"]);
    assert_eq!(found["max_thread_model"], "parallel");
    assert_eq!(found["thread_model"], "serialize_requests");
}

#[test]
fn dump_plugin_lists_the_filters_too() {
    if debian_lacks("filters in --dump-plugin (1.36)") {
        return;
    }
    let found = fields(&["null", "--filter=cow", "--filter=delay", "--dump-plugin"]);
    assert_eq!(found["name"], "null");
    for filter in ["cow", "delay"] {
        assert_eq!(found[&format!("{filter}_name")], filter);
        assert!(found.contains_key(&format!("{filter}_path")));
    }
}

#[test]
fn dump_plugin_needs_a_plugin_that_exists() {
    let finished = run(["--dump-plugin"]);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("--dump-config"), "{finished:?}");
    let finished = run(["--dump-plugin", "nosuchplugin"]);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("nosuchplugin"), "{finished:?}");
    let finished = run(["--filter=nosuchfilter", "--dump-plugin", "null"]);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("nosuchfilter"), "{finished:?}");
}

#[test]
fn dump_plugin_does_not_excuse_options_that_contradict() {
    for others in [&["-s"][..], &["-p", "10999", "-U", "-"]] {
        assert_refused([&["--dump-plugin", "null"], others].concat(), &["cannot be used"]);
    }
}

#[test]
fn output_that_nobody_reads_is_no_crash() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = crate::support::nbdkit(["--help"]);
    let status = command.stdout(writer).status().unwrap();
    // SIGPIPE, or a status of its own; not a panic, which is 101, nor an abort.
    let code = status.code().unwrap_or(0);
    assert_ne!(code, 101, "{status}");
    use std::os::unix::process::ExitStatusExt;
    assert!(!status.core_dumped(), "{status}");
}
