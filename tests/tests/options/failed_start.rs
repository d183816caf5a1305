//! What a start that fails leaves behind: nothing of its own, and all that was there. Limits on the
//! size of files, which are errors and not the end.

use std::os::unix::fs::FileTypeExt;
use std::process::Stdio;

use nbd_protocol::constants::NbdError;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::{Ask, Server};
use nix::sys::signal::Signal;

use crate::support::{Foreground, Paths, connect, debian_lacks, nbdkit, open, run};

#[test]
fn the_socket_and_the_pid_file_of_a_start_that_fails_are_gone() {
    if debian_lacks("a start that removes what it has made") {
        return;
    }
    for failing in ["after_fork=echo EIO no >&2; exit 1", "after_fork=kill -9 $PPID"] {
        for background in [&["-f"][..], &[]] {
            let paths = Paths::new();
            let (socket, pid) = (paths.text("sock"), paths.text("pid"));
            let arguments = ["-U", &socket, "-P", &pid, "eval", "get_size=echo 1M", failing];
            let finished = run([background, &arguments].concat());
            assert_eq!(finished.status.code(), Some(1), "{failing}: {finished:?}");
            assert!(!paths.path("sock").exists() && !paths.path("pid").exists(), "{failing}");
        }
    }
    let paths = Paths::new();
    let socket = paths.text("sock");
    let finished = run(["-f", "-U", &socket, "-P", "/nonexistent/pid", "null"]);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(!paths.path("sock").exists());
}

#[test]
fn the_socket_of_a_start_that_is_interrupted_is_gone() {
    if debian_lacks("a start that removes what it has made") {
        return;
    }
    let paths = Paths::new();
    let slow = ["eval", "get_size=echo 1M", "after_fork=sleep 60"];
    let socket = paths.text("sock");
    let mut server = Foreground::nbdkit([&["-f", "-U", &socket][..], &slow].concat());
    eventually("the socket", || paths.path("sock").exists());
    server.signal(Signal::SIGTERM);
    server.wait();
    assert!(!paths.path("sock").exists());
}

#[test]
fn what_a_start_that_fails_has_not_made_stays() {
    let paths = Paths::new();
    let (socket, pid) = (paths.text("sock"), paths.text("pid"));
    paths.write("pid", "1\n");
    let _other = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for plugin in [&["null"][..], &["file", "/nonexistent/disk"]] {
        let finished = run([&["-f", "-U", &socket, "-P", &pid], plugin].concat());
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        let there = std::fs::symlink_metadata(&socket).unwrap();
        assert!(there.file_type().is_socket());
        assert_eq!(std::fs::read_to_string(&pid).unwrap(), "1\n");
    }
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok());
}

/// Half a MiB in blocks of 512 bytes, which is what POSIX's shell counts in.
const LIMITED: &str = r#"ulimit -f 1024 && exec "$0" "$@""#;

#[test]
fn a_write_past_the_limit_of_a_file_is_an_error_of_that_request() {
    if debian_lacks("a server that survives SIGXFSZ") {
        return;
    }
    for sandbox in ["--sandbox=strict", "--sandbox=compat"] {
        let builder = Server::nbdkit([sandbox, "file", "{dir}/disk"]).through_shell(LIMITED);
        std::fs::File::create(builder.dir().join("disk")).unwrap().set_len(4 << 20).unwrap();
        let mut server = builder.start();
        let mut client = server.connect();
        open(&mut client);
        let write = |offset| Ask::write(offset, vec![b'x'; 4096]);
        assert_eq!(client.call(&write(0)).expect("a reply").error, None);
        // EFBIG is what the protocol calls ENOSPC.
        let refused = client.call(&write(2 << 20)).expect("a reply").nbd_error();
        assert_eq!(refused, Some(NbdError::NoSpc), "{sandbox}");
        assert_eq!(client.call(&Ask::read(0, 1)).expect("a reply").data, b"x");
        assert!(server.stop().success());
    }
}

#[test]
fn a_log_that_may_not_grow_is_not_the_end_of_the_server() {
    if debian_lacks("--log=FILE") {
        return;
    }
    let paths = Paths::new();
    let log = paths.write("log", vec![b'\n'; 512 << 10]);
    let (socket, option) = (paths.text("sock"), format!("--log={log}"));
    let failing = ["eval", "get_size=echo 1M", "pread=echo EIO complaint >&2; exit 1"];
    let mut shell = std::process::Command::new("/bin/sh");
    shell.arg("-c").arg(LIMITED).arg(nbdkit([""; 0]).get_program());
    shell.args([&["-f", "-U", &socket, &option][..], &failing].concat());
    let _server = Foreground::start(shell.stdin(Stdio::null()));
    eventually("the socket", || paths.path("sock").exists());
    for _ in 0..2 {
        let mut client = connect(&paths.path("sock"));
        open(&mut client);
        assert!(client.call(&Ask::read(0, 512)).expect("a reply").error.is_some());
    }
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 512 << 10);
}

/// Signals are bits, from 1: SIGXFSZ is 25. proc_pid_status(5). An ignored signal is inherited by a
/// program, a handler is not.
#[test]
fn programs_meet_the_limit_as_they_would_without_the_server() {
    let paths = Paths::new();
    let look = "grep -E '^Sig(Ign|Blk)' /proc/self/status";
    let script = format!("get_ready={look} > {}", paths.text("signals"));
    let command = run(["-U", "-", "eval", "get_size=echo 1M", &script, "--run", look]);
    assert!(command.status.success(), "{command:?}");
    for text in [command.stdout, std::fs::read_to_string(paths.path("signals")).unwrap()] {
        assert_eq!(text.lines().count(), 2, "{text}");
        for line in text.lines() {
            let mask = u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
            assert_eq!(mask & (1 << 24), 0, "{line}");
        }
    }
}
