//! `--listener-user`: whose process the listener is once it serves. nbdkit(1) of this server.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::command;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::{Server, TempDir};
use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};

use crate::support::{
    DEADLINE, Foreground, Paths, assert_refused, assert_serves, connect, debian_lacks, needs_root,
    pid_in, run,
};

/// A user that every Debian has, and that this suite does not make servers serve as.
fn daemon() -> User {
    User::from_name("daemon").unwrap().expect("there is a daemon")
}

fn is_skipped() -> bool {
    debian_lacks("--listener-user") || needs_root("--listener-user")
}

/// /proc/PID/status, by field. proc_pid_status(5).
fn status(pid: i32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("alive");
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().replace('\t', " ")))
    };
    text.lines().filter_map(field).collect()
}

/// The default user of this build, if there is one.
fn default_user() -> Option<User> {
    let config = run(["--dump-config"]).stdout;
    let line = config.lines().find_map(|line| line.strip_prefix("listener_user="));
    User::from_name(line.expect("a line")).unwrap()
}

/// The ids and the effective capabilities of a serving listener.
fn ids(options: &[&str]) -> (String, String) {
    let server = Server::nbdkit(options).arg("null").arg("1M").start();
    assert_serves(&mut server.connect());
    let status = status(server.pid().as_raw());
    (status["Uid"].clone(), status["CapEff"].clone())
}

const KILL: &str = "0000000000000020";
const NOTHING: &str = "0000000000000000";

#[test]
fn a_listener_leaves_root_for_good_and_keeps_the_right_to_signal() {
    if is_skipped() {
        return;
    }
    let (uid, gid) = (daemon().uid, daemon().gid);
    for name in ["daemon", &uid.to_string()] {
        let option = format!("--listener-user={name}");
        let server = Server::nbdkit([&*option, "null", "1M"]).start();
        assert_serves(&mut server.connect());
        let pid = server.pid().as_raw();
        let status = status(pid);
        let four = |id: u32| [id; 4].map(|id| id.to_string()).join(" ");
        for (field, expected) in [
            ("Uid", four(uid.as_raw())),
            ("Gid", four(gid.as_raw())),
            ("Groups", String::new()),
            ("CapInh", NOTHING.to_owned()),
            ("CapPrm", KILL.to_owned()),
            ("CapEff", KILL.to_owned()),
            ("CapBnd", NOTHING.to_owned()),
            ("CapAmb", NOTHING.to_owned()),
            ("NoNewPrivs", "1".to_owned()),
            ("Seccomp", "2".to_owned()),
        ] {
            assert_eq!(status[field], expected, "{field}");
        }
        // Not dumpable: ptrace(2), "Ptrace access mode checking"; proc(5) says whose its files are
        // then.
        let owner = std::fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid();
        assert_eq!(owner, 0);
        let look = format!("cat /proc/{pid}/environ");
        let mut look = as_daemon(&["sh", "-c", &look]);
        assert!(!command::run(&mut look, DEADLINE).status.success(), "its own user may not look");
        let mut look = as_daemon(&["sh", "-c", "cat /proc/$$/environ"]);
        assert!(command::run(&mut look, DEADLINE).status.success(), "but at others of that user");
    }
}

fn as_daemon(arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    let ids = [format!("--reuid={}", daemon().uid), format!("--regid={}", daemon().gid)];
    command.args(ids).arg("--clear-groups").args(arguments);
    command
}

#[test]
fn root_can_be_kept_and_is_without_a_sandbox() {
    if is_skipped() {
        return;
    }
    let root = ("0 0 0 0".to_owned(), KILL.to_owned());
    for options in [
        &["--listener-user=root"][..],
        &["--listener-user=0"],
        &["--listener-user=daemon", "--sandbox=off"],
    ] {
        assert_eq!(ids(options), root, "{options:?}");
    }
}

#[test]
fn a_user_that_it_cannot_become_is_one_line() {
    if debian_lacks("--listener-user") {
        return;
    }
    let nobody = ["-f", "-U", "-", "--listener-user=no such user", "null"];
    assert_refused(nobody, &["--listener-user", "no such user", "not a valid user name or uid"]);
    if needs_root("the rest") {
        return;
    }
    let same = ["-f", "-U", "-", "-u", "daemon", "--listener-user=daemon", "null"];
    assert_refused(same, &["--listener-user", "the user that serves"]);
    // Another uid, or root without what it takes.
    let binary = Binary::under_test();
    let user = format!("--reuid={}", daemon().uid);
    let dropped = "--bounding-set=-setuid";
    for (how, said) in [(&*user, "root has started"), (dropped, "CAP_SETUID")] {
        let mut server = Command::new("setpriv");
        server.args([how, "--clear-groups"]).arg(binary.path());
        server.args(["-f", "-U", "-", "--listener-user=mail", "null"]);
        let finished = command::run(&mut server, DEADLINE);
        assert_eq!(finished.status.code(), Some(1), "{how}: {finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
        assert!(finished.stderr.contains(said), "{how}: {finished:?}");
    }
}

/// A user namespace in which only root is mapped: user_namespaces(7).
#[test]
fn where_the_user_is_not_mapped_the_default_stays_root_and_a_demand_is_an_error() {
    if is_skipped() {
        return;
    }
    let unshare = |options: &[&str]| {
        let mut server = Command::new("unshare");
        server.arg("-Ur").arg(Binary::under_test().path()).args(["-v", "-U", "-"]).args(options);
        command::run(server.args(["null", "1M", "--run", "exit 7"]), DEADLINE)
    };
    let default = unshare(&[]);
    if default.stderr.contains("unshare failed") {
        return eprintln!("SKIPPED: takes user namespaces");
    }
    assert_eq!(default.status.code(), Some(7), "{default:?}");
    assert!(default.stderr.contains("stays root"), "{default:?}");
    let demanded = unshare(&["--listener-user=daemon"]);
    assert_eq!(demanded.status.code(), Some(1), "{demanded:?}");
    let said = "error: --listener-user option: cannot change to daemon: ";
    assert!(demanded.stderr.contains(said), "{demanded:?}");
}

/// Where there is no such user, root stays root: a service's log says so, whoever types the command
/// sees nothing new.
#[test]
fn a_service_whose_listener_stays_root_says_so() {
    if is_skipped() {
        return;
    }
    if let Some(user) = default_user() {
        let uid = user.uid.to_string();
        assert_eq!(ids(&[]).0, [&*uid; 4].join(" "));
        return println!("SKIPPED: there is a user {}", user.name);
    }
    assert_eq!(ids(&[]).0, "0 0 0 0");
    let said = |options: &[&str], service: bool| {
        let paths = Paths::new();
        let manager = UnixDatagram::bind(paths.path("notify")).unwrap();
        let log = format!("--log={}", paths.text("log"));
        let mut builder = Server::nbdkit([&[&*log][..], options, &["null"]].concat());
        if service {
            builder = builder.env("NOTIFY_SOCKET", paths.path("notify"));
        }
        assert!(builder.start().stop().success());
        drop(manager);
        std::fs::read_to_string(paths.path("log")).unwrap()
    };
    let line = "notice: there is no user nbdkit-listener: the listener stays root";
    assert!(said(&[], true).contains(line));
    assert_eq!(said(&[], false), "");
    assert_eq!(said(&["--listener-user=root"], true), "");
    assert_eq!(said(&["--listener-user=daemon"], true), "");
}

/// The listener is another user's than the template, the command and whoever started it.
#[test]
fn a_listener_of_another_user_ends_what_is_roots() {
    if is_skipped() {
        return;
    }
    let paths = Paths::new();
    let command = format!("echo $$ > {}; exec sleep 60", paths.text("command"));
    let sock = paths.text("sock");
    let arguments = ["--listener-user=daemon", "-U", &sock, "null", "--run", &command];
    let mut server = Foreground::nbdkit(arguments);
    let command = pid_in(&paths.path("command"));
    assert_serves(&mut connect(&paths.path("sock")));
    let uid = |pid: i32| status(pid)["Uid"].split(' ').next().map(str::to_owned);
    assert_eq!(uid(command).as_deref(), Some("0"));
    assert_eq!(uid(server.pid().as_raw()), Some(daemon().uid.to_string()));
    // Two signals: the command is not waited for.
    server.signal(Signal::SIGTERM);
    std::thread::sleep(std::time::Duration::from_millis(1200));
    server.signal(Signal::SIGTERM);
    let _ = server.wait();
    let gone = || !std::path::Path::new(&format!("/proc/{command}")).exists();
    eventually("the command was ended", gone);
}

/// Log files and pid files are opened before.
#[test]
fn files_that_only_root_may_write_are_written() {
    if is_skipped() {
        return;
    }
    let directory = TempDir::new();
    let log = format!("--log={}", directory.join("log").display());
    let server = Server::nbdkit(["--listener-user=daemon", &log, "memory", "1M"]).start();
    assert_serves(&mut server.connect());
    let mut server = server;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.template()), Signal::SIGKILL)
        .expect("ours");
    assert_eq!(server.wait().code(), Some(1));
    let log = std::fs::read_to_string(directory.join("log")).unwrap();
    assert!(log.contains("was killed by SIGKILL"), "{log}");
}

/// An ordinary user's stays that user's, without a word.
#[test]
fn an_ordinary_user_has_nothing_to_leave() {
    if debian_lacks("--listener-user") || needs_root("another user") {
        return;
    }
    let paths = Paths::new();
    std::os::unix::fs::chown(paths.dir.path(), Some(daemon().uid.as_raw()), None).unwrap();
    let pid = paths.text("pid");
    let mut server = as_daemon(&[]);
    server.arg(Binary::under_test().path());
    server.args(["-f", "-v", "-U", &paths.text("sock"), "-P", &pid, "null", "1M"]);
    let mut server = Foreground::start(&mut server);
    let listener = pid_in(&paths.path("pid"));
    assert_serves(&mut connect(&paths.path("sock")));
    assert_eq!(status(listener)["CapEff"], NOTHING);
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    assert!(!server.stderr().contains("stays root"), "{}", server.stderr());
    assert!(geteuid().is_root());
}
