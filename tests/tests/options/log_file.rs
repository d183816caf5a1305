//! Log files: the time and the client in each line, and SIGUSR1, which has the file opened anew.
//! nbdkit(1) of this server, "LOG".

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nbdkit_tests::processes::{descendants, eventually, is_alive, name};
use nbdkit_tests::{Ask, Server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::log::{COMPLAINING, COMPLAINT, fail_to_read};
use crate::support::{Paths, assert_serves, debian_lacks, needs_root, open};

/// What the listener logs when it has opened its file anew.
const OPENED: &str = "notice: the log file was opened anew";

fn text(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

fn wait_for(log: &Path, words: &str) {
    eventually(&format!("{words:?} in {}", log.display()), || text(log).contains(words));
}

/// The first line with these words, divided into time and text.
fn line_with(log: &Path, words: &str) -> (String, String) {
    wait_for(log, words);
    let text = text(log);
    let line = text.lines().find(|line| line.contains(words)).unwrap();
    let (time, line) = line.split_once(' ').unwrap();
    (time.to_owned(), line.to_owned())
}

/// Seconds since 1970, as date(1) understands a time.
fn seconds(time: &str) -> u64 {
    let output = Command::new("date").args(["-d", time, "+%s"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().expect(time)
}

#[test]
fn each_line_begins_with_the_local_time() {
    if debian_lacks("--log=/PATH") {
        return;
    }
    let paths = Paths::new();
    let log = paths.path("log");
    let option = format!("--log={}", paths.text("log"));
    let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let before = now();
    let builder = Server::nbdkit([&*option, "--sandbox=off"]).args(COMPLAINING);
    let mut server = builder.env("TZ", "<+0530>-5:30").start();
    fail_to_read(&server);
    server.stop();
    let text = text(&log);
    assert!(text.lines().count() >= 2, "{text}");
    for line in text.lines() {
        let (time, line) = line.split_once(' ').unwrap();
        // 2026-11-29T17:43:45.678+05:30
        let shape: String =
            time.chars().map(|it| if it.is_ascii_digit() { '0' } else { it }).collect();
        assert_eq!(shape, "0000-00-00T00:00:00.000+00:00", "{line}");
        assert!(time.ends_with("+05:30"), "{time}");
        assert!((before..=now()).contains(&seconds(time)), "{time}");
        assert!(line.starts_with("nbdkit: "), "{line}");
    }
}

/// Standard error has nbdkit's lines, without the client.
#[test]
fn each_line_about_a_connection_names_the_client() {
    if debian_lacks("--log=/PATH") {
        return;
    }
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let paths = Paths::new();
        let log = paths.path("log");
        let option = format!("--log={}", paths.text("log"));
        let server = Server::nbdkit([isolation, &option]).args(COMPLAINING).start();
        fail_to_read(&server);
        let (pid, uid) = (std::process::id(), nix::unistd::getuid());
        let (_, line) = line_with(&log, COMPLAINT);
        let head = format!("nbdkit: eval[1]: client pid {pid} uid {uid}: error: ");
        assert!(line.starts_with(&head), "{isolation}: {line}");

        let server = Server::nbdkit([isolation, &option]).args(COMPLAINING).tcp().start();
        let mut client = server.connect_tcp();
        let address = client.transport().local_addr().unwrap();
        open(&mut client);
        assert!(client.call(&Ask::read(0, 512)).expect("a reply").error.is_some());
        let (_, line) = line_with(&log, &format!("client {address}: error: "));
        assert!(line.contains(COMPLAINT), "{isolation}: {line}");
    }
}

/// Renames the log, signals, and waits for the new one.
fn rotate(server: &Server, paths: &Paths) {
    std::fs::rename(paths.path("log"), paths.path("log.1")).unwrap();
    server.signal(Signal::SIGUSR1);
    wait_for(&paths.path("log"), OPENED);
}

fn count(log: &Path) -> usize {
    text(log).matches(COMPLAINT).count()
}

/// Confined or not, as the user who started it or as another, with or without a template to be
/// replaced.
#[test]
fn a_renamed_log_is_opened_anew_on_sigusr1() {
    if debian_lacks("SIGUSR1 for the log") {
        return;
    }
    let mut cases = vec![&[][..], &["--sandbox=off"], &["-v"], &["--isolation=shared"]];
    if !needs_root("another user") {
        cases.push(&["--listener-user=daemon", "-u", "nobody"]);
    }
    for options in cases {
        let paths = Paths::new();
        let (log, old) = (paths.path("log"), paths.path("log.1"));
        let option = format!("--log={}", paths.text("log"));
        let server = Server::nbdkit(options).arg(&option).args(COMPLAINING).start();
        for round in 1..=3 {
            fail_to_read(&server);
            wait_for(&log, COMPLAINT);
            rotate(&server, &paths);
            fail_to_read(&server);
            wait_for(&log, COMPLAINT);
            // One of this round's, and one of the last round's before it was renamed.
            assert_eq!(count(&old), if round == 1 { 1 } else { 2 }, "{options:?}");
            assert!(!text(&log).contains("cannot"), "{}", text(&log));
        }
        let mode = std::fs::metadata(&log).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{options:?}");
        let open = nbdkit_tests::processes::descriptors(server.pid().as_raw());
        assert!(!open.iter().any(|path| path.starts_with(&old)), "the old file is closed");
    }
}

/// A server without a template to be replaced has a spawner for its log alone.
#[test]
fn a_log_is_opened_anew_where_no_template_is_replaced() {
    if debian_lacks("SIGUSR1 for the log") {
        return;
    }
    let paths = Paths::new();
    let option = format!("--log={}", paths.text("log"));
    let server = Server::nbdkit([&*option, "memory", "1M", "--isolation=shared"]).start();
    std::fs::write(paths.path("log"), "").unwrap();
    rotate(&server, &paths);
    rotate(&server, &paths);
    assert_serves(&mut server.connect());
}

#[test]
fn a_log_that_cannot_be_opened_anew_leaves_the_old_one_in_use() {
    if debian_lacks("SIGUSR1 for the log") {
        return;
    }
    for options in [&[][..], &["--sandbox=off"]] {
        let paths = Paths::new();
        let (log, old) = (paths.path("log"), paths.path("log.1"));
        let option = format!("--log={}", paths.text("log"));
        let server = Server::nbdkit(options).arg(&option).args(COMPLAINING).start();
        std::fs::rename(&log, &old).unwrap();
        std::fs::create_dir(&log).unwrap();
        server.signal(Signal::SIGUSR1);
        let (_, line) = line_with(&old, "anew");
        let expected = format!(
            "nbdkit: error: cannot open the log file {} anew, the old one is used: Is a directory",
            log.display()
        );
        assert_eq!(line, expected);
        fail_to_read(&server);
        wait_for(&old, COMPLAINT);
        std::fs::remove_dir(&log).unwrap();
        server.signal(Signal::SIGUSR1);
        wait_for(&log, OPENED);
    }
}

#[test]
fn without_a_spawner_the_old_log_stays_in_use() {
    if debian_lacks("SIGUSR1 for the log") {
        return;
    }
    let paths = Paths::new();
    let log = paths.path("log");
    let option = format!("--log={}", paths.text("log"));
    let server = Server::nbdkit([&*option, "null", "1M"]).start();
    let is_spawner = |pid: &i32| name(*pid).is_some_and(|name| name == "nbdkit:spawner");
    let mut spawner = None;
    eventually("there is a spawner", || {
        spawner = descendants(server.pid().as_raw()).into_iter().find(is_spawner);
        spawner.is_some()
    });
    kill(Pid::from_raw(spawner.unwrap()), Signal::SIGKILL).unwrap();
    wait_for(&log, "the spawner has ended");
    server.signal(Signal::SIGUSR1);
    wait_for(&log, "anew, the old one is used: the spawner has ended");
    assert_serves(&mut server.connect());
}

/// Sends the signal to every process of the server, as `systemctl kill` does by default.
#[test]
fn sigusr1_ends_nobody_whatever_the_log_is() {
    if debian_lacks("SIGUSR1 for the log") {
        return;
    }
    let paths = Paths::new();
    let option = format!("--log={}", paths.text("log"));
    for log in [&*option, "--log=stderr", "--log=null"] {
        let server = Server::nbdkit([log, "file", "{dir}/disk"]);
        std::fs::write(server.dir().join("disk"), [0; 4096]).unwrap();
        let server = server.start();
        let mut client = server.connect();
        open(&mut client);
        assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").error, None);
        let pid = server.pid().as_raw();
        let all = || descendants(pid).into_iter().chain([pid]);
        let names = |pids: &[i32]| pids.iter().map(|pid| name(*pid)).collect::<Vec<_>>();
        eventually("all processes are there", || all().count() >= 5);
        let all: Vec<i32> = all().collect();
        let before = names(&all);
        for pid in &all {
            for _ in 0..50 {
                kill(Pid::from_raw(*pid), Signal::SIGUSR1).unwrap();
            }
        }
        assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").error, None);
        assert_serves(&mut server.connect());
        assert!(all.iter().all(|pid| is_alive(*pid)), "{log}: {before:?}, now {:?}", names(&all));
    }
}

/// The file of the package, with another directory and another way to signal.
#[test]
fn logrotate_rotates_the_log() {
    if debian_lacks("SIGUSR1 for the log") || needs_root("logrotate") {
        return;
    }
    if Command::new("logrotate").arg("--version").output().is_err() {
        eprintln!("SKIPPED: logrotate is not installed");
        return;
    }
    let paths = Paths::new();
    let log = paths.path("log");
    let option = format!("--log={}", paths.text("log"));
    let server = Server::nbdkit([&option]).args(COMPLAINING).start();
    fail_to_read(&server);
    wait_for(&log, COMPLAINT);
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let given = std::fs::read_to_string(manifest.join("../packaging/nbdkit.logrotate")).unwrap();
    let signal = "systemctl kill --kill-whom=main --signal=SIGUSR1 'nbdkit@*.service'";
    let files = "/var/log/nbdkit/*.log";
    assert!(given.contains(signal) && given.contains(files), "{given}");
    let ours = given
        .replace(signal, &format!("kill -USR1 {}", server.pid()))
        .replace(files, &paths.text("log"));
    let rules = paths.write("rules", ours);
    let mut logrotate = Command::new("logrotate");
    logrotate.args(["--force", "--state", &paths.text("state"), &rules]);
    for _ in 0..2 {
        let output = logrotate.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        wait_for(&log, OPENED);
    }
    assert!(!text(&log).contains(COMPLAINT) && !text(&paths.path("log.1")).contains(COMPLAINT));
    assert!(paths.path("log.2.gz").exists());
}
