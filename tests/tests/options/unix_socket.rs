//! `-U SOCKET` and `-U -`, whose directory must not be left behind.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nbdkit_tests::Server;
use nbdkit_tests::processes::eventually;
use nix::sys::signal::Signal;

use crate::support::{
    Foreground, Paths, assert_refused, assert_serves, connect, debian_lacks, launch, nbdkit,
    needs_root, run,
};

/// Where a running server of `-U -` listens: its --run command told us.
fn private_socket(server: &Foreground) -> PathBuf {
    let socket = PathBuf::from(server.stdout_lines(1).remove(0));
    assert!(socket.starts_with("/tmp"), "{}", socket.display());
    socket
}

/// The directories of private sockets that are there now.
fn private_directories() -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir("/tmp").unwrap();
    let names = entries.filter_map(|entry| Some(entry.ok()?.path()));
    names.filter(|path| path.to_string_lossy().starts_with("/tmp/nbdkit")).collect()
}

/// Directories younger than `start`, made by this user, that nobody serves from: those that were
/// left behind. Other tests make directories in the same place at the same time, which is why one
/// look is not enough.
fn left_behind(before: &BTreeSet<PathBuf>, start: SystemTime) -> Vec<PathBuf> {
    let abandoned = |path: &Path| {
        let Ok(metadata) = std::fs::metadata(path) else { return false };
        let ours = metadata.uid() == nix::unistd::geteuid().as_raw();
        // A second of grace for the file system's coarser clock.
        let young = metadata.modified().unwrap() + std::time::Duration::from_secs(1) >= start;
        let served = UnixStream::connect(path.join("socket")).is_ok();
        // Scripts of sh and eval have directories of such names too, with files in them.
        let entries: Vec<_> = std::fs::read_dir(path).into_iter().flatten().flatten().collect();
        let bare = entries.iter().all(|entry| entry.file_name() == "socket");
        metadata.is_dir() && ours && young && !served && bare
    };
    let look = || -> BTreeSet<PathBuf> {
        private_directories().difference(before).filter(|path| abandoned(path)).cloned().collect()
    };
    let first = look();
    if first.is_empty() {
        return Vec::new();
    }
    std::thread::sleep(std::time::Duration::from_secs(2));
    first.intersection(&look()).cloned().collect()
}

#[test]
fn a_private_socket_is_in_a_directory_that_only_its_user_may_enter() {
    let server = Foreground::nbdkit(["-U", "-", "null", "--run=echo $unixsocket; exec sleep 60"]);
    let socket = private_socket(&server);
    let directory = std::fs::metadata(socket.parent().unwrap()).unwrap();
    assert_eq!(directory.permissions().mode() & 0o7777, 0o700);
    assert_eq!(directory.uid(), nix::unistd::geteuid().as_raw());
    assert_serves(&mut connect(&socket));
}

#[test]
fn two_private_sockets_are_different_ones() {
    let servers: Vec<_> = (0..2)
        .map(|_| Foreground::nbdkit(["-U", "-", "null", "--run=echo $unixsocket; exec sleep 60"]))
        .collect();
    assert_ne!(private_socket(&servers[0]), private_socket(&servers[1]));
}

#[test]
fn the_private_directory_goes_when_the_command_finishes() {
    for (command, status) in [("echo $unixsocket", 0), ("echo $unixsocket; exit 3", 3)] {
        let finished = run(["-U", "-", "null", "--run", command]);
        assert_eq!(finished.status.code(), Some(status), "{finished:?}");
        let socket = PathBuf::from(finished.stdout.trim_end());
        assert_ne!(finished.stdout, "");
        // Debian's server ends on its own, a moment after the process that the caller waits for.
        eventually("the directory is removed", || !socket.parent().unwrap().exists());
    }
}

#[test]
fn the_private_directory_goes_with_a_signal() {
    if debian_lacks("one process to signal with --run: the server is its child") {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let mut server =
            Foreground::nbdkit(["-U", "-", "null", "--run=echo $unixsocket; exec sleep 60"]);
        let socket = private_socket(&server);
        // The server alone would wait for its command.
        server.signal_group(signal);
        server.wait();
        assert!(!socket.parent().unwrap().exists(), "{signal} leaves {}", socket.display());
    }
}

#[test]
fn the_private_directory_goes_with_a_signal_without_a_command() {
    let paths = Paths::new();
    let mut server = Foreground::nbdkit(["-f", "-v", "-U", "-", "-P", &paths.text("pid"), "null"]);
    server.wait_for_stderr("/tmp/nbdkit");
    let stderr = server.stderr();
    let start = stderr.find("/tmp/nbdkit").unwrap();
    let socket: PathBuf = stderr[start..].split_whitespace().next().unwrap().into();
    let _ = crate::support::pid_in(&paths.path("pid"));
    assert!(socket.exists(), "{}", socket.display());
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    assert!(!socket.parent().unwrap().exists());
}

#[test]
fn the_private_directory_goes_with_its_daemon() {
    let paths = Paths::new();
    let finished = launch(&mut nbdkit(["-U", "-", "-P", &paths.text("pid"), "null"]));
    assert!(finished.status.success(), "{finished:?}");
    let daemon = crate::support::Daemon::of(&paths.path("pid"));
    let socket = listening_path(daemon.pid());
    assert_serves(&mut connect(&socket));
    daemon.stop();
    assert!(!socket.parent().unwrap().exists(), "{}", socket.display());
}

/// The path of the Unix socket that a process listens on, by /proc.
fn listening_path(pid: i32) -> PathBuf {
    let inodes: BTreeSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| {
            Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let path = table.lines().find_map(|line| {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut fields = line.split_whitespace().skip(6);
        let inode = fields.next()?;
        inodes.contains(inode).then(|| fields.next()).flatten()
    });
    PathBuf::from(path.expect("a socket with a path"))
}

#[test]
fn the_private_directory_goes_when_the_start_fails() {
    if debian_lacks("removal of the directory on every path (fixed in 1.43)") {
        return;
    }
    for arguments in [
        &["-U", "-", "file", "/nonexistent/disk.img"][..],
        &["-f", "-U", "-", "file", "/nonexistent/disk.img"],
        &["-f", "-U", "-", "-P", "/nonexistent/pid", "null"],
        &["-U", "-", "-P", "/nonexistent/pid", "null"],
        &["-f", "-U", "-", "-u", "nosuchuser", "null"],
        &["-f", "-U", "-", "eval", "get_ready=exit 1", "get_size=echo 1M"],
        &["-f", "-U", "-", "eval", "after_fork=exit 1", "get_size=echo 1M", "pread=exit 1"],
        &["-U", "-", "nosuchplugin"],
        &["file", "/nonexistent/disk.img", "--run", "exit 0"],
    ] {
        let (before, start) = (private_directories(), SystemTime::now());
        let finished = run(arguments);
        assert!(!finished.status.success(), "{arguments:?}: {finished:?}");
        // Other tests' servers have such directories meanwhile, but not for ever.
        let left = left_behind(&before, start);
        eventually(&format!("{left:?} go away: {arguments:?}"), || {
            left.iter().all(|path| !path.exists())
        });
    }
}

#[test]
fn the_private_directory_goes_though_the_server_changed_its_user() {
    if needs_root("-u") || debian_lacks("a process that may still remove root's directory") {
        return;
    }
    let finished = run(["-U", "-", "-u", "nobody", "null", "--run", "echo $unixsocket"]);
    assert!(finished.status.success(), "{finished:?}");
    assert!(!Path::new(finished.stdout.trim_end()).parent().unwrap().exists());
}

#[test]
fn a_path_in_use_is_refused_and_left_as_it_is() {
    let paths = Paths::new();
    let file = paths.write("file", "precious\n");
    let _listener = UnixListener::bind(paths.path("live")).unwrap();
    drop(UnixListener::bind(paths.path("stale")).unwrap());
    for name in ["file", "live", "stale"] {
        for options in [&["-f"][..], &[]] {
            let path = paths.text(name);
            let mut arguments = options.to_vec();
            arguments.extend(["-U", &path, "null"]);
            assert_refused(&arguments, &[&path, "Address already in use"]);
            assert!(paths.path(name).exists());
        }
    }
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious\n");
    assert!(UnixStream::connect(paths.path("live")).is_ok());
}

#[test]
fn a_path_that_cannot_be_a_socket_is_refused() {
    let paths = Paths::new();
    assert_refused(["-f", "-U", "/nonexistent/sock", "null"], &["/nonexistent/sock"]);
    let long = paths.text(&"x".repeat(108));
    assert_refused(["-f", "-U", &long, "null"], &["path too long", "107"]);
    assert_refused(["-f", "-U", "", "null"], &["empty path"]);
}

#[test]
fn the_longest_possible_path_works() {
    let dir = nbdkit_tests::TempDir::new();
    let room = 107 - dir.path().as_os_str().len() - 1;
    let socket = dir.join(&"s".repeat(room));
    let mut server = Foreground::nbdkit(["-f", "-U", socket.to_str().unwrap(), "null"]);
    eventually("the socket is there", || UnixStream::connect(&socket).is_ok());
    assert_serves(&mut connect(&socket));
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
}

#[test]
fn the_umask_decides_who_may_connect() {
    if debian_lacks("respect for the umask: it sets its own") {
        return;
    }
    let paths = Paths::new();
    let socket = paths.text("sock");
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", r#"umask 077; exec "$0" "$@""#]);
    shell.arg(nbdkit_tests::binary::Binary::under_test().path());
    shell.args(["-f", "-U", &socket, "null"]);
    let _server = Foreground::start(shell.stdin(std::process::Stdio::null()));
    eventually("the socket is there", || UnixStream::connect(&socket).is_ok());
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
}

#[test]
fn the_long_spelling_is_the_same() {
    let server = Server::nbdkit(["null"]).without_unix_socket().arg("--unix={dir}/sock").start();
    assert_serves(&mut server.connect());
}
