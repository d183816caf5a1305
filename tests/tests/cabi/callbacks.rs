//! Which callbacks are called, when, with what, and what becomes of their failures, as Debian's
//! server does it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nbdkit_tests::binary::Binary;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::row_name;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Server, TempDir, command};

use crate::support::{compile, exercise};

/// The lines that `order.c` wrote while `binary` served `script`. Without those about block sizes,
/// which Debian's server asks for only when the client does.
fn order(binary: &Binary, arguments: &[&str], script: impl Fn(&mut Session)) -> Vec<String> {
    let log = TempDir::new().join("log");
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    let mut server = Server::nbdkit([&compile("order.c", &[])])
        .args(arguments)
        .env("ORDER_LOG", &log)
        .binary(binary.clone())
        .start();
    let mut session = Session::new(server.socket(), server.dir().path());
    script(&mut session);
    drop(session);
    // A server that is told to stop may not get to close what the last client had open; Debian's
    // does not always. Where an open fails, nothing is closed, so that this is no condition.
    let closed = || {
        let lines = lines(&log);
        let count = |callback: &str| lines.iter().filter(|line| line.starts_with(callback)).count();
        count("close ") >= count("open ")
    };
    let end = Instant::now() + Duration::from_secs(2);
    while !closed() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(server.stop().success());
    let mut lines = lines(&log);
    lines.retain(|line| !line.starts_with("block_size"));
    std::fs::remove_dir_all(log.parent().unwrap()).unwrap();
    lines
}

fn lines(log: &Path) -> Vec<String> {
    std::fs::read_to_string(log).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn every_callback_comes_in_nbdkits_order_with_nbdkits_arguments() {
    let ours = order(&Binary::under_test(), &["key=value", "-D", "order.loud=3"], exercise);
    for callback in [
        "load debug=3,0",
        "config key=value",
        "thread_model",
        "get_ready",
        "after_fork",
        "preconnect readonly=0",
        "list_exports readonly=0 is_tls=0",
        "default_export readonly=0 is_tls=0",
        "open readonly=0 export=default-1 is_tls=0",
        "export_description handle=1",
        "close handle=1 export=default-1",
        "cleanup",
        "unload",
    ] {
        assert!(ours.iter().any(|line| line == callback), "{callback}: {ours:#?}");
    }
    let Some(debian) = Binary::debian() else { return eprintln!("SKIPPED: no oracle") };
    let theirs = order(&debian, &["key=value", "-D", "order.loud=3"], exercise);
    assert_eq!(ours, theirs);
}

#[test]
fn a_readonly_server_says_so_to_every_callback() {
    let ours = order(&Binary::under_test(), &["-r"], exercise);
    assert!(ours.iter().any(|line| line.starts_with("open readonly=1")), "{ours:#?}");
    let Some(debian) = Binary::debian() else { return eprintln!("SKIPPED: no oracle") };
    assert_eq!(ours, order(&debian, &["-r"], exercise));
}

#[test]
fn a_plugin_with_every_callback() {
    Row::new(row_name!(), &[&compile("order.c", &[])]).compare(exercise);
}

#[test]
fn a_callback_that_fails() {
    for_each(
        &[
            "config",
            "config_complete",
            "thread_model",
            "get_ready",
            "preconnect",
            "list_exports",
            "default_export",
            "open",
            "get_size",
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
        ],
        |callback| {
            let fail = format!("fail={callback}");
            Row::new(row_name!(), &[&compile("order.c", &[]), &fail])
                .variant(callback)
                .compare(exercise);
        },
    );
}

#[test]
fn block_sizes_that_fail_are_a_refusal_of_the_export() {
    let server = Server::nbdkit([&compile("order.c", &[]), "fail=block_size"]).start();
    let mut client = server.connect();
    client.handshake().expect("a handshake");
    let answer = client.go("", &[]).expect("an answer");
    assert_eq!(answer.export(), None);
    assert!(answer.to_string().contains("NBD_REP_ERR_UNKNOWN"), "{answer}");
    let _ = server.wait_for_stderr("order[1]: error: block_size was asked to fail");
}

#[test]
fn after_fork_that_fails_ends_the_server() {
    let plugin = compile("order.c", &[]);
    let finished = Server::nbdkit([&plugin, "fail=after_fork"]).try_start().expect_err("ended");
    assert!(finished.stderr.contains("error: after_fork was asked to fail"), "{finished:?}");
    assert_eq!(finished.status.code(), Some(1));
}

#[test]
fn the_errno_of_a_failure() {
    for_each(&["0", "1"], |preserved| {
        let plugin = compile("errno.c", &[&format!("-DPRESERVED={preserved}")]);
        Row::new(row_name!(), &[&plugin]).variant(preserved).compare(|s| {
            for how in ["x", "e28", "s28", "e28s1", "s1e28", "e95", "s95", "s95m", "e28m", "s30m"] {
                s.open_export(how);
                s.read(0, 512);
                s.ask(&nbdkit_tests::Ask::write_zeroes(0, 512));
                s.disconnect();
            }
        });
    });
}

#[test]
fn dump_plugin_names_every_callback_that_there_is() {
    for source in ["order.c", "errno.c", "functions.c"] {
        let plugin = compile(source, &[]);
        Row::new(row_name!(), &["--dump-plugin", &plugin]).compare_command();
    }
    let plugin = compile("old.c", &["-w"]);
    Row::new(row_name!(), &["--dump-plugin", &plugin]).compare_command();
}

#[test]
fn a_plugin_that_exits_while_it_is_configured() {
    for_each(&["0", "7"], |status| {
        let exit = format!("exit={status}");
        let plugin = compile("order.c", &[]);
        Row::new(row_name!(), &["-f", "-U", "-", &plugin, &exit]).variant(status).compare_command();
        let background = format!("{status} in the background");
        Row::new(row_name!(), &["-U", "-", &plugin, &exit]).variant(&background).compare_command();
    });
}

#[test]
fn help_and_version_load_and_unload() {
    let plugin = compile("order.c", &[]);
    for option in ["--help", "--version", "--dump-plugin"] {
        let dir = TempDir::new();
        let log = dir.join("log");
        let mut command = Command::new(Binary::under_test().path());
        command.args([option, &plugin]).env("ORDER_LOG", &log);
        let finished = command::run(&mut command, Duration::from_secs(20));
        assert!(finished.status.success(), "{finished:?}");
        assert!(finished.stdout.contains("order"), "{finished:?}");
        let lines = lines(&log);
        assert_eq!(lines.first().map(String::as_str), Some("load debug=0,0"));
        assert_eq!(lines.last().map(String::as_str), Some("unload"), "{option}");
    }
}

#[test]
fn a_debug_flag_that_there_is_not_is_reported() {
    let plugin = compile("order.c", &[]);
    let server = Server::nbdkit(["-D", "order.nope=1", &plugin]).start();
    let _ =
        server.wait_for_stderr("order does not contain a global variable called order_debug_nope");
}

#[test]
fn the_sandbox_of_code_that_declares_nothing_is_named_with_v() {
    for (options, lines) in [(&["-v"][..], 1), (&[], 0)] {
        let mut server = Server::nbdkit(options).arg(compile("order.c", &[])).start();
        server.stop();
        let stderr = server.stderr_text_after_end();
        let named = stderr.lines().filter(|line| line.contains("sandbox=compat: "));
        assert_eq!(named.count(), lines, "{stderr}");
    }
    // Who knows what it needs may say so.
    let mut server = Server::nbdkit(["--sandbox=strict", &compile("plain.cc", &[])]).start();
    let mut client = server.connect();
    crate::support::open(&mut client);
    assert!(server.stop().success());
    assert_eq!(server.stderr_text_after_end(), "");
}
