//! Which callbacks are called, when, with what, and what becomes of their failures, as Debian's
//! server does it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Server, TempDir, command};

use crate::support::{
    DEADLINE, compare, compile, compile_for, connected, debian_plugin, exercise, oracle,
};

fn lines(log: &Path) -> Vec<String> {
    std::fs::read_to_string(log).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// The lines that two filters wrote while `binary` served.
fn order(binary: &Binary, plugin: &str, arguments: &[&str]) -> Vec<String> {
    let log_dir = TempDir::new();
    let log = log_dir.join("log");
    let [outer, inner] =
        ["outer", "inner"].map(|name| compile_for(binary, "every.c", &[&format!("-DNAME={name}")]));
    let mut server = Server::nbdkit(["--filter", &outer, "--filter", &inner, plugin, "1M"])
        .args(arguments)
        .env("ORDER_LOG", &log)
        .binary(binary.clone())
        .start();
    let mut session = Session::new(server.socket(), server.dir().path());
    exercise(&mut session);
    // Debian's server hangs up before it closes the last connection's handles, and stops without
    // that if it is told to.
    let mut before = 0;
    while lines(&log).len() != before {
        before = lines(&log).len();
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(server.stop().success());
    let mut lines = lines(&log);
    // Debian's server asks for block sizes only when the client does.
    lines.retain(|line| !line.contains("block_size"));
    lines
}

#[test]
fn every_callback_comes_in_nbdkits_order_with_nbdkits_arguments() {
    for arguments in [
        &["outer=x", "inner=y", "-D", "outer.loud=3"][..],
        &["-r"],
        &["outer=fail:pread", "inner=fail:list_exports"],
    ] {
        let ours = order(&Binary::under_test(), "memory", arguments);
        for callback in ["load", "get_ready 2", "after_fork same", "prepare 42", "finalize 42"] {
            for filter in ["outer", "inner"] {
                let line = format!("{filter}: {callback}");
                assert!(ours.iter().any(|l| l.starts_with(&line)), "{line}: {ours:#?}");
            }
        }
        assert!(!ours.iter().any(|line| line.contains("other")), "{ours:#?}");
        if let (Some(debian), Some(memory)) = (oracle(), debian_plugin("memory")) {
            let theirs = order(&debian, &memory, arguments);
            let ours = order(&Binary::under_test(), &memory, arguments);
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert_eq!(ours, theirs);
            }
            assert_eq!(ours.len(), theirs.len());
        }
    }
}

#[test]
fn what_was_opened_and_prepared_is_finalized_and_closed_after_a_failure() {
    let (Some(debian), Some(memory)) = (oracle(), debian_plugin("memory")) else { return };
    for fail in ["outer=fail:open", "inner=fail:open", "outer=fail:prepare", "inner=fail:prepare"] {
        let ours = order(&Binary::under_test(), &memory, &[fail]);
        assert_eq!(ours, order(&debian, &memory, &[fail]), "{fail}");
    }
}

#[test]
fn a_filter_with_every_callback_changes_nothing() {
    compare("every.c", &[], &["--filter={FILTER}", "memory", "1M"], exercise);
}

#[test]
fn a_callback_that_fails() {
    for callback in [
        "preconnect",
        "list_exports",
        "default_export",
        "open",
        "prepare",
        "get_size",
        "export_description",
        "can_write",
        "can_flush",
        "is_rotational",
        "can_trim",
        "can_zero",
        "can_fast_zero",
        "can_extents",
        "can_fua",
        "can_multi_conn",
        "can_cache",
        "pread",
        "pwrite",
        "flush",
        "trim",
        "zero",
        "extents",
        "cache",
    ] {
        let fail = format!("every=fail:{callback}");
        compare("every.c", &[], &["--filter={FILTER}", "memory", "1M", &fail], exercise);
    }
}

#[test]
fn finalize_that_fails_is_said_and_the_server_goes_on() {
    let filter = format!("--filter={}", compile("every.c", &[]));
    let server = Server::nbdkit([&filter, "memory", "1M", "every=fail:finalize"]).start();
    connected(&server).disconnect().expect("gone");
    let _ = server.wait_for_stderr("memory[1]: error: finalize was asked to fail");
    let _ = connected(&server);
}

#[test]
fn block_sizes_that_fail_are_a_refusal_of_the_export() {
    let filter = format!("--filter={}", compile("every.c", &[]));
    let server = Server::nbdkit([&filter, "memory", "1M", "every=fail:block_size"]).start();
    let mut client = server.connect();
    client.handshake().expect("a handshake");
    assert_eq!(client.go("", &[]).expect("an answer").export(), None);
    let _ = server.wait_for_stderr("memory[1]: error: block_size was asked to fail");
}

#[test]
fn a_failure_while_the_server_starts_ends_it_with_the_filters_words() {
    let filter = format!("--filter={}", compile("every.c", &[]));
    for callback in ["config", "config_complete", "thread_model", "get_ready", "after_fork"] {
        let fail = format!("every=fail:{callback}");
        let finished = Server::nbdkit([&filter, "memory", "1M", &fail]).try_start();
        let finished = finished.expect_err("ended");
        assert_eq!(finished.status.code(), Some(1));
        let words = format!("{callback} was asked to fail");
        assert_eq!(finished.stderr.matches(&words).count(), 1, "{}", finished.stderr);
    }
}

#[test]
fn what_the_plugin_says_about_a_parameter_is_said_once() {
    let filter = format!("--filter={}", compile("every.c", &[]));
    let finished = Server::nbdkit([&filter, "memory", "1M", "nonsense=1"]).try_start();
    let finished = finished.expect_err("ended");
    assert_eq!(finished.stderr.matches("nonsense").count(), 1, "{}", finished.stderr);
}

#[test]
fn a_filter_is_told_the_thread_model_below() {
    let filter = format!("--filter={}", compile("every.c", &[]));
    if !Binary::under_test().is_ours() {
        eprintln!("skipped: a filter of nbdkit 1.32 is not told");
        return;
    }
    let server = Server::nbdkit([&filter, "memory", "1M", "-v"]).start();
    let _ = server.wait_for_stderr("the thread model below is 3");
}

#[test]
fn the_thread_model_is_the_tightest_of_the_stack() {
    let filter = format!("--filter={}", compile("every.c", &[]));
    for (plugin, model) in [("memory", "serialize_requests"), ("ondemand", "serialize_requests")] {
        let mut command = Command::new(Binary::under_test().path());
        command.args(["--dump-plugin", &filter, plugin]);
        let finished = command::run(&mut command, DEADLINE);
        let line = format!("\nthread_model={model}\n");
        assert!(finished.stdout.contains(&line), "{}", finished.stdout);
        assert!(finished.stdout.contains("\nmax_thread_model=parallel\n"), "{}", finished.stdout);
    }
}

#[test]
fn help_version_and_dump_plugin_name_the_filter_and_unload_it() {
    let filter = compile("every.c", &[]);
    let argument = format!("--filter={filter}");
    for (option, words) in [
        (
            "--help",
            &["filter: every (a filter with everything)", &filter, "every=fail:CALLBACK"][..],
        ),
        ("--version", &["every 1.46.0"]),
        ("--dump-plugin", &["every_name=every", "every_dump_plugin=1", "every_path=/"]),
    ] {
        let dir = TempDir::new();
        let log = dir.join("log");
        let mut command = Command::new(Binary::under_test().path());
        command.args([option, &argument, "memory"]).env("ORDER_LOG", &log);
        let finished = command::run(&mut command, DEADLINE);
        assert!(finished.status.success(), "{finished:?}");
        for word in words {
            assert!(finished.stdout.contains(word), "{option}: {}", finished.stdout);
        }
        let lines = lines(&log);
        assert_eq!(lines.first().map(String::as_str), Some("every: load debug=0"));
        assert_eq!(lines.last().map(String::as_str), Some("every: unload"), "{option}");
    }
}
