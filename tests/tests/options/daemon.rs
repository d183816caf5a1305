//! Into the background, and `-f` not; the pid file. nbdkit(1), nbdkit-service(1).

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nbdkit_tests::Server;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::processes::{eventually, is_alive};
use nix::sys::signal::Signal;

use crate::support::{
    DEADLINE, Daemon, Foreground, Paths, assert_refused, assert_serves, connect, debian_lacks,
    launch, nbdkit, needs_root, open, pid_in, run, stat,
};

/// Starts a daemon on `sock` with the pid file `pid`; the command must succeed and say nothing.
fn daemonise(paths: &Paths, arguments: &[&str]) -> Daemon {
    let mut whole = vec!["-U".to_owned(), paths.text("sock"), "-P".to_owned(), paths.text("pid")];
    whole.extend(arguments.iter().map(|&argument| argument.to_owned()));
    let finished = launch(&mut nbdkit(&whole));
    assert!(finished.status.success(), "{finished:?}");
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("", ""));
    Daemon::of(&paths.path("pid"))
}

#[test]
fn the_command_returns_only_when_the_server_accepts() {
    let paths = Paths::new();
    let began = Instant::now();
    // get_ready is before the fork, so the caller waits for it.
    let script = ["eval", "get_ready=sleep 0.7", "get_size=echo 1M", "pread=head -c $3 /dev/zero"];
    let files = ["-U", &paths.text("sock"), "-P", &paths.text("pid")];
    let finished = launch(&mut nbdkit([&files[..], &script].concat()));
    assert!(finished.status.success(), "{finished:?}");
    // No waiting, no second try: it accepts now.
    let mut client = connect(&paths.path("sock"));
    let _daemon = Daemon::of(&paths.path("pid"));
    assert_serves(&mut client);
    assert!(began.elapsed() > Duration::from_millis(700));
}

#[test]
fn every_one_of_twenty_daemons_accepts_when_its_command_returns() {
    for _ in 0..20 {
        let paths = Paths::new();
        let files = ["-U", &paths.text("sock"), "-P", &paths.text("pid")];
        let finished = launch(nbdkit(files).args(["memory", "1M"]));
        assert!(finished.status.success(), "{finished:?}");
        let mut client = connect(&paths.path("sock"));
        let _daemon = Daemon::of(&paths.path("pid"));
        assert_serves(&mut client);
    }
}

#[test]
fn a_failing_start_tells_the_plugins_reason_and_ends_with_status_1() {
    let paths = Paths::new();
    for (plugin, reason) in [
        (
            &["eval", "get_ready=echo nothing to serve >&2; exit 1", "get_size=echo 1"][..],
            "nothing to serve",
        ),
        (&["eval", "config_complete=echo no colour >&2; exit 1", "get_size=echo 1"], "no colour"),
        (&["file", "/nonexistent/disk.img"], "/nonexistent/disk.img"),
    ] {
        let sock = paths.text("sock");
        let pid = paths.text("pid");
        let mut arguments = vec!["-U", &sock, "-P", &pid];
        arguments.extend(plugin);
        assert_refused(&arguments, &[reason]);
        assert!(!paths.path("pid").exists(), "{plugin:?} left a pid file");
    }
}

#[test]
fn a_plugin_killed_while_it_starts_is_a_failed_command() {
    let paths = Paths::new();
    let sock = paths.text("sock");
    let finished = run(["-U", &sock, "eval", "get_ready=kill -KILL $PPID", "get_size=echo 1"]);
    assert!(!finished.status.success(), "{finished:?}");
    assert!(!paths.path("pid").exists());
}

#[test]
fn the_callers_standard_streams_are_released() {
    let paths = Paths::new();
    let mut child = nbdkit(["-U", &paths.text("sock"), "-P", &paths.text("pid"), "memory", "1M"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    assert!(child.wait().unwrap().success());
    let daemon = Daemon::of(&paths.path("pid"));

    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stdout.read_to_string(&mut text);
        let _ = stderr.read_to_string(&mut text);
        let _ = sender.send(text);
    });
    let text = receiver.recv_timeout(DEADLINE).expect("both pipes end when the command does");
    assert_eq!(text, "");
    // Nobody is left to read it. Rust's runtime ignores SIGPIPE.
    let broken = stdin.write_all(b"x").expect_err("a pipe without readers");
    assert_eq!(broken.kind(), std::io::ErrorKind::BrokenPipe);
    assert!(is_alive(daemon.pid()));
}

#[test]
fn the_daemon_keeps_neither_directory_nor_terminal() {
    let paths = Paths::new();
    let daemon = daemonise(&paths, &["memory", "1M"]);
    let cwd = std::fs::read_link(format!("/proc/{}/cwd", daemon.pid())).unwrap();
    assert_eq!(cwd.to_str(), Some("/"));
    // session, tty_nr, man proc(5).
    let fields = stat(daemon.pid()).expect("alive");
    assert_eq!(fields[4], "0", "it has a terminal");
    if !debian_lacks("a session of its own for the daemon") {
        assert_eq!(fields[3], daemon.pid().to_string(), "it leads no session");
    }
}

#[test]
fn the_daemon_survives_the_end_of_its_launcher() {
    let paths = Paths::new();
    let daemon = daemonise(&paths, &["memory", "1M"]);
    for _ in 0..2 {
        assert_serves(&mut connect(&paths.path("sock")));
        std::thread::sleep(Duration::from_millis(100));
    }
    daemon.stop();
}

#[test]
fn a_daemon_told_to_end_lets_clients_go_and_leaves_its_files() {
    if debian_lacks("an end while clients are connected: it waits for them") {
        return;
    }
    let paths = Paths::new();
    let daemon = daemonise(&paths, &["memory", "1M"]);
    let mut client = connect(&paths.path("sock"));
    open(&mut client);
    daemon.stop();
    client.expect_close().expect("closed");
    // nbdkit(1): "nbdkit does not delete the file when it exits", of the pid file and of the
    // socket.
    assert!(paths.path("sock").exists());
    assert!(paths.path("pid").exists());
}

#[test]
fn an_older_pid_file_is_overwritten() {
    let paths = Paths::new();
    paths.write("pid", "99999999 and a lot more of text\nin two lines\n");
    let mut server =
        Foreground::nbdkit(["-f", "-U", &paths.text("sock"), "-P", &paths.text("pid"), "null"]);
    let expected = format!("{}\n", server.pid());
    eventually("the pid is written", || {
        std::fs::read_to_string(paths.path("pid")).unwrap() == expected
    });
    assert!(server.try_wait().is_none());
}

#[test]
fn a_pid_file_that_cannot_be_written_ends_the_start() {
    let paths = Paths::new();
    for options in [&["-f"][..], &[]] {
        if options.is_empty() && debian_lacks("a pid file written before the command returns") {
            return;
        }
        let (sock, pid) = (paths.text("sock"), "/nonexistent/pid");
        let mut arguments = options.to_vec();
        arguments.extend(["-U", &sock, "-P", pid, "null"]);
        assert_refused(&arguments, &[pid, "No such file or directory"]);
        // The next attempt would find its socket in the way.
        let _ = std::fs::remove_file(&sock);
    }
}

/// Debian's nbdkit waits for a reader.
#[test]
fn a_pid_file_that_is_a_fifo_ends_the_start() {
    if debian_lacks("a start that does not wait for a FIFO") {
        return;
    }
    let paths = Paths::new();
    nix::unistd::mkfifo(&paths.path("pid"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (sock, pid) = (paths.text("sock"), paths.text("pid"));
    assert_refused(&["-f", "-U", &sock, "-P", &pid, "null"], &[&pid, "not a regular file"]);
}

/// Debian's nbdkit writes as the user of `-u`, who may not.
#[test]
fn a_pid_file_that_is_anothers_link_does_not_make_root_overwrite_its_target() {
    if !nix::unistd::geteuid().is_root() || debian_lacks("a pid file that root writes") {
        return;
    }
    let paths = Paths::new();
    paths.write("precious", "precious");
    let pid = paths.path("pid");
    std::os::unix::fs::symlink(paths.path("precious"), &pid).unwrap();
    std::os::unix::fs::lchown(&pid, Some(65534), Some(65534)).unwrap();
    let (sock, pid) = (paths.text("sock"), paths.text("pid"));
    let arguments = ["-f", "-u", "nobody", "-U", &sock, "-P", &pid, "null"];
    assert_refused(&arguments, &[&pid, "Too many levels of symbolic links"]);
    assert_eq!(std::fs::read_to_string(paths.path("precious")).unwrap(), "precious");
}

#[test]
fn relative_paths_are_the_callers() {
    let paths = Paths::new();
    std::fs::write(paths.path("disk"), vec![7; 4096]).unwrap();
    let mut command = nbdkit(["-U", "sock", "-P", "pid", "file", "disk"]);
    let finished = launch(command.current_dir(paths.dir.path()));
    assert!(finished.status.success(), "{finished:?}");
    let _daemon = Daemon::of(&paths.path("pid"));
    let mut client = connect(&paths.path("sock"));
    open(&mut client);
    assert_eq!(client.export().map(|(size, _)| size), Some(4096));
}

#[test]
fn in_the_foreground_the_command_is_the_server() {
    for option in ["-f", "--foreground", "--no-fork"] {
        let paths = Paths::new();
        let mut server = Foreground::nbdkit([
            option,
            "-U",
            &paths.text("sock"),
            "-P",
            &paths.text("pid"),
            "null",
        ]);
        assert_eq!(pid_in(&paths.path("pid")), server.pid().as_raw(), "{option}");
        assert_serves(&mut connect(&paths.path("sock")));
        assert!(server.try_wait().is_none(), "{option}");
        server.signal(Signal::SIGTERM);
        assert!(server.wait().success(), "{option}");
    }
}

#[test]
fn a_plugin_that_fails_after_the_fork_ends_a_server_in_the_foreground() {
    let finished = Server::nbdkit([
        "eval",
        "after_fork=echo too late >&2; exit 1",
        "get_size=echo 1M",
        "pread=exit 1",
    ])
    .try_start();
    match finished {
        Err(finished) => {
            assert_eq!(finished.status.code(), Some(1), "{finished:?}");
            assert!(finished.stderr.contains("too late"), "{finished:?}");
        }
        // The pid file is written before after_fork: the server may have been ready for a moment.
        Ok(mut server) => {
            assert_eq!(server.wait().code(), Some(1));
            assert!(server.stderr_text_after_end().contains("too late"));
        }
    }
}

#[test]
fn a_caller_without_standard_streams_gets_a_working_server() {
    if debian_lacks("a start without standard streams") {
        return;
    }
    for options in ["", "-f"] {
        let paths = Paths::new();
        let script =
            format!(r#"exec "$0" {options} -U "$1/sock" -P "$1/pid" memory 1M 0<&- 1>&- 2>&-"#);
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(script).arg(Binary::under_test().path()).arg(paths.dir.path());
        let mut child = shell.spawn().unwrap();
        let daemon = Daemon::of(&paths.path("pid"));
        for _ in 0..2 {
            assert_serves(&mut connect(&paths.path("sock")));
        }
        daemon.stop();
        assert!(child.wait().unwrap().success());
    }
}

/// Containers and rescue systems may have no /proc. nbdkit starts there.
#[test]
fn a_server_starts_and_serves_without_proc() {
    if needs_root("a mount namespace") {
        return;
    }
    let read = "--run=nbdcopy \"$uri\" - | wc -c";
    for arguments in [
        &["memory", "4K"][..],
        &["--filter=cow", "file", "{dir}/disk"],
        &["-u", "nobody", "memory", "4K"],
        &["eval", "get_size=echo 4K", "pread=head -c $3 /dev/zero"],
    ] {
        let paths = Paths::new();
        paths.write("disk", "x".repeat(4096));
        let disk = paths.text("disk");
        let mut server = Command::new("unshare");
        server.args(["-m", "sh", "-c", "umount -l /proc && exec \"$@\"", "sh"]);
        server.arg(Binary::under_test().path()).args(["-U", "-", read]);
        server.args(arguments.iter().map(|argument| argument.replace("{dir}/disk", &disk)));
        let finished = nbdkit_tests::command::run(&mut server, DEADLINE);
        assert_eq!(finished.stdout, "4096\n", "{arguments:?}: {finished:?}");
        assert_eq!(finished.stderr, "", "{arguments:?}");
        assert!(finished.status.success(), "{arguments:?}: {finished:?}");
    }
}
