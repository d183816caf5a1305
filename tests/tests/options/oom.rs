//! Whom the kernel kills first when memory is short: /proc/PID/oom_score_adj of each process of a
//! running server. Debian's nbdkit is one process.

use std::fs;

use nbdkit_tests::Server;
use nbdkit_tests::processes::{children, eventually};
use nix::unistd::geteuid;

use crate::support::{debian_lacks, needs_root};

const USER: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups";

/// The processes below one: their names, and their values.
fn scores_below(pid: i32, found: &mut Vec<(String, i32)>) {
    let read = |pid: i32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    for child in children(pid) {
        if let (Ok(name), Ok(score)) = (read(child, "comm"), read(child, "oom_score_adj")) {
            let name = name.trim().trim_start_matches("nbdkit:").to_owned();
            found.push((name, score.trim().parse().unwrap()));
        }
        scores_below(child, found);
    }
}

/// What all have while a client is served, the listener first. A template may be about to make
/// another worker.
fn scores(server: &Server) -> Vec<(String, i32)> {
    let pid = server.pid().as_raw();
    let own = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    let mut found = vec![("listener".to_owned(), own.trim().parse().unwrap())];
    scores_below(pid, &mut found);
    found.sort();
    found
}

/// Starts a server that opens a file, by a shell with this `before`, and gives it two clients.
fn assert_scores(before: &str, arguments: &[&str], expected: [(&str, i32); 5]) {
    let builder = Server::nbdkit(arguments).args(["file", "{dir}/disk"]);
    fs::write(builder.dir().join("disk"), [0; 4096]).unwrap();
    let shell = format!(r#"chmod -R a+rwX "{{dir}}"; {before} "$0" "$@""#);
    let server = builder.through_shell(&shell).start();
    let mut clients = [server.connect(), server.connect()];
    for client in &mut clients {
        let _ = client.handshake().unwrap();
    }
    let [broker, listener, spawner, template, worker] = expected;
    let expected = [broker, listener, spawner, template, worker, worker];
    let expected: Vec<_> = expected.map(|(name, score)| (name.to_owned(), score)).into();
    eventually(&format!("{expected:?}, but {:?}", scores(&server)), || scores(&server) == expected);
}

fn relative_to(base: i32, template: i32, worker: i32) -> [(&'static str, i32); 5] {
    [
        ("broker", template),
        ("listener", base),
        ("spawner", base),
        ("template", template),
        ("worker", worker),
    ]
}

/// What this process, and thus a server that it starts, has.
fn own() -> i32 {
    fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap()
}

#[test]
fn a_worker_is_killed_before_the_template_and_that_before_the_listener() {
    if debian_lacks("processes of its own for clients") {
        return;
    }
    let users = if geteuid().is_root() { &["", USER][..] } else { &[""][..] };
    for user in users {
        for (base, template, worker) in [(0, 100, 200), (500, 600, 700), (950, 975, 1000)] {
            if base < own() {
                eprintln!("SKIPPED: this process has {} already", own());
                continue;
            }
            let shell = format!("echo {base} >/proc/self/oom_score_adj; exec {user}");
            assert_scores(&shell, &[], relative_to(base, template, worker));
        }
    }
}

/// Whether this user may lower the value of a process.
fn may_protect() -> bool {
    let mut shell = std::process::Command::new("sh");
    let output = shell.args(["-c", "echo -1000 >/proc/self/oom_score_adj"]).output();
    output.unwrap().status.success()
}

/// bash(1) has `exec -a`.
const AS_ROOT_STORAGE_DAEMON: &str = r#"bash -c 'exec -a @nbdkit "$0" "$@"'"#;

#[test]
fn a_server_of_swap_space_or_of_the_root_disk_is_killed_last() {
    if debian_lacks("processes of its own for clients") || needs_root("--swap") {
        return;
    }
    let score = if may_protect() { -1000 } else { own() };
    assert_scores("exec", &["--swap"], relative_to(score, score, score));
    assert_scores(&format!("exec {AS_ROOT_STORAGE_DAEMON}"), &[], relative_to(score, score, score));
}

#[test]
fn a_server_that_may_not_be_protected_says_so_once() {
    if debian_lacks("protection from the OOM killer") || needs_root("changing the user") {
        return;
    }
    let shell = format!(r#"chmod a+rwX "{{dir}}"; exec {USER} {AS_ROOT_STORAGE_DAEMON} "$0" "$@""#);
    let server = Server::nbdkit(["-v", "null"]).through_shell(&shell).start();
    let mut client = server.connect();
    let _ = client.handshake().unwrap();
    let text = server.stderr_text();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("oom_score_adj")).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let words = "notice: /proc/self/oom_score_adj: Permission denied: the kernel may kill";
    assert!(lines[0].contains(words), "{lines:?}");
}

/// The command of `--run` is no part of the server.
#[test]
fn the_command_of_run_keeps_the_score_that_the_server_was_started_with() {
    if debian_lacks("protection from the OOM killer") || needs_root("--swap") {
        return;
    }
    let run = ["--swap", "-U", "-", "null", "--run", "sleep 0.1; cat /proc/self/oom_score_adj"];
    let finished = crate::support::run(run);
    assert_eq!(finished.stdout.trim(), own().to_string(), "{finished:?}");
}

#[test]
fn without_proc_there_is_no_order_and_clients_are_served() {
    if debian_lacks("processes of its own for clients") || needs_root("a /proc of its own") {
        return;
    }
    let without_proc = r#"exec unshare -m sh -c 'umount -l /proc && exec "$0" "$@"'"#;
    assert_scores(without_proc, &[], relative_to(own(), own(), own()));
}

/// A worker that was taken over must not have its template killed in its place.
#[test]
fn a_worker_does_not_hold_the_score_of_its_template() {
    if debian_lacks("processes of its own for clients") || needs_root("looking into processes") {
        return;
    }
    let server = Server::nbdkit(["null"]).start();
    let mut client = server.connect();
    let _ = client.handshake().unwrap();
    let holders = |pid: i32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        targets.filter(|target| target.ends_with("oom_score_adj")).count()
    };
    let (template, worker) = (server.template(), server.workers()[0]);
    assert_eq!((holders(template), holders(worker)), (1, 0));
}
