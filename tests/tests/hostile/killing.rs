//! The listener can always end a worker: without seeing it in /proc, and before it knows which
//! process it is.

use std::time::Duration;

use nbdkit_tests::Server;
use nbdkit_tests::processes::{eventually, is_alive};
use nbdkit_tests::server::ours;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::haggling;
use super::processes::worker_of;

/// A shell's command for a server that has a /proc of its own, mounted with `options`, and perhaps
/// another user.
fn with_proc(options: &str, user: &str) -> String {
    format!(
        r#"exec unshare -m sh -c 'mount -t proc -o {options} proc /proc && exec {user} "$0" "$@"' "$0" "$@""#
    )
}

const NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups";

/// Whether such a /proc can be mounted, and another user be taken on.
fn can_mount(options: &str, user: &str) -> bool {
    let shell = with_proc(options, user);
    let mounted = std::process::Command::new("sh").args(["-c", &shell, "true"]).output();
    mounted.is_ok_and(|output| output.status.success())
}

/// A worker that was stopped does not end by itself when its channel is closed.
fn a_stopped_worker_is_killed_for_a_newcomer(server: &Server) {
    let (worker, _silent) = worker_of(server, || haggling(server));
    kill(Pid::from_raw(worker), Signal::SIGSTOP).expect("a process of ours");
    let _newcomer = server.connect();
    eventually("the stopped worker is killed", || !is_alive(worker));
    let text = server.stderr_text();
    assert!(!text.contains("was not"), "{text}");
}

#[test]
fn a_worker_is_killed_where_proc_does_not_show_it() {
    if !geteuid().is_root() {
        return println!("skipped: needs root");
    }
    for (options, user) in [("hidepid=0", ""), ("hidepid=2", NOBODY), ("hidepid=4", "")] {
        if !can_mount(options, user) {
            println!("skipped: {options} cannot be mounted here");
            continue;
        }
        println!("{options} {user}");
        let server = ours(&["--max-connections=1", "memory", "1M"]);
        let shell = format!("chown 65534 {{dir}}; {}", with_proc(options, user));
        let server = server.through_shell(&shell).start();
        a_stopped_worker_is_killed_for_a_newcomer(&server);
    }
}

/// The template is stopped after it has made the worker and before it reaps it: the listener cannot
/// learn of its end.
#[test]
fn an_end_that_was_ordered_and_does_not_happen_is_an_error_line() {
    let server = ours(&["--max-connections=1", "memory", "1M"]).start();
    let _silent = server.connect();
    eventually("there is a worker", || server.workers().len() == 1);
    let template = Pid::from_raw(server.template());
    kill(template, Signal::SIGSTOP).expect("a process of ours");
    let _newcomer = server.connect();
    let line = server.wait_for_stderr("has not ended");
    assert!(line.contains("error: ") && line.contains("worker "), "{line}");
    kill(template, Signal::SIGCONT).expect("a process of ours");
    std::thread::sleep(Duration::from_millis(10));
}
