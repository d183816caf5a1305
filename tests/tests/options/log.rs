//! `--log`, `-v`, `-D`, `--name`: what is said, where, and with whose name. nbdkit-service(1),
//! "Logging".

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::processes::{eventually, is_alive};
use nbdkit_tests::{Ask, Server, uninterrupted};

use crate::support::{
    DEADLINE, Daemon, Paths, assert_refused, assert_serves, connect, debian_lacks, launch, nbdkit,
    needs_root, open, run,
};

/// A plugin whose reads fail with this complaint.
pub(crate) const COMPLAINING: [&str; 3] =
    ["eval", "get_size=echo 1M", "pread=echo EIO the head is stuck >&2; exit 1"];
pub(crate) const COMPLAINT: &str = "the head is stuck";

/// Serves one client, to whom the plugin's complaint happens, and gives everything on standard
/// error.
fn complain(options: &[&str]) -> String {
    let mut server = Server::nbdkit(options).args(COMPLAINING).start();
    fail_to_read(&server);
    assert!(server.stop().success());
    server.stderr_text_after_end()
}

pub(crate) fn fail_to_read(server: &Server) {
    let mut client = server.connect();
    open(&mut client);
    assert!(client.call(&Ask::read(0, 512)).expect("a reply").error.is_some());
    client.disconnect().expect("sent");
    client.expect_close().expect("closed");
}

#[test]
fn in_the_foreground_errors_go_to_standard_error() {
    for options in [&[][..], &["--log=stderr"]] {
        let stderr = complain(options);
        let line = stderr.lines().find(|line| line.contains(COMPLAINT)).expect("the complaint");
        assert!(line.starts_with("nbdkit: eval") && line.contains("error: "), "{line}");
    }
}

#[test]
fn the_null_log_swallows_errors() {
    assert_eq!(complain(&["--log=null"]), "");
}

#[test]
fn a_log_file_is_appended_to() {
    if debian_lacks("--log=/PATH") {
        return;
    }
    let paths = Paths::new();
    let log = paths.write("log", "from last week\n");
    let option = format!("--log={log}");
    for _ in 0..2 {
        assert_eq!(complain(&[&option]), "");
    }
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.starts_with("from last week\n"), "{text}");
    assert_eq!(text.matches(COMPLAINT).count(), 2, "{text}");
}

#[test]
fn a_daemon_logs_to_a_file_that_it_was_told_of() {
    if debian_lacks("--log=/PATH") {
        return;
    }
    let paths = Paths::new();
    let log = format!("--log={}", paths.text("log"));
    let options = ["-U", &paths.text("sock"), "-P", &paths.text("pid"), &log];
    let finished = launch(&mut nbdkit([&options[..], &COMPLAINING].concat()));
    assert!(finished.status.success(), "{finished:?}");
    let _daemon = Daemon::of(&paths.path("pid"));
    let mut client = connect(&paths.path("sock"));
    open(&mut client);
    assert!(client.call(&Ask::read(0, 512)).expect("a reply").error.is_some());
    eventually("the complaint is in the file", || {
        std::fs::read_to_string(paths.path("log")).unwrap().contains(COMPLAINT)
    });
}

#[test]
fn destinations_that_are_none_are_refused() {
    for value in ["foo", "", "STDERR", "std", "relative/path"] {
        let option = format!("--log={value}");
        assert_refused(["-f", "-U", "-", &option, "null"], &["--log must be"]);
    }
}

#[test]
fn a_log_file_that_cannot_be_opened_ends_the_start() {
    if debian_lacks("--log=/PATH") {
        return;
    }
    let path = "/nonexistent/log";
    assert_refused(["-f", "-U", "-", "--log=/nonexistent/log", "null"], &[path]);
}

#[test]
fn debug_lines_go_to_standard_error_whatever_the_log_is() {
    let stderr = complain(&["-v", "--log=null"]);
    assert!(stderr.contains("debug: "), "{stderr}");
    let error = stderr.lines().find(|line| line.contains("error: ") && line.contains(COMPLAINT));
    assert_eq!(error, None);
}

/// A server with /dev/log in a mount namespace of its own, where a socket of ours takes the
/// messages.
fn with_system_log(paths: &Paths, arguments: &[&str]) -> (UnixDatagram, Command) {
    let socket = paths.bind_service("devlog");
    let script = r#"
        mount -t tmpfs tmpfs /dev &&
        mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/zero c 1 5 &&
        mknod -m 666 /dev/urandom c 1 9 && mkdir -m 1777 /dev/shm && ln -s "$0" /dev/log &&
        exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["-m", "/bin/sh", "-c", script]).arg(paths.path("devlog"));
    command.arg(Binary::under_test().path()).args(arguments);
    (socket, command)
}

/// Waits for a message to the system log with these words in it.
fn system_log_message(socket: &UnixDatagram, words: &str) -> String {
    let mut bytes = [0; 4096];
    let mut heard = String::new();
    loop {
        match uninterrupted(|| socket.recv(&mut bytes)) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                if text.contains(words) {
                    return text;
                }
                heard.push_str(&text);
            }
            Err(error) => panic!("no {words:?} in the system log ({error}): {heard}"),
        }
    }
}

#[test]
fn a_daemon_logs_to_the_system_log() {
    if needs_root("a /dev/log of one's own") {
        return;
    }
    let paths = Paths::new();
    let (log, daemon) = complaining_daemon(&paths);
    let _daemon = daemon();
    cause_a_complaint(&paths);
    let message = system_log_message(&log, COMPLAINT);
    // Priority 3, error, of some facility: RFC 3164.
    let priority: u8 = message[1..message.find('>').unwrap()].parse().unwrap();
    assert_eq!(priority & 7, 3, "{message}");
    assert!(message.contains("nbdkit"), "{message}");
}

/// A notice is for logs: on standard error it takes `-v`.
#[test]
fn what_is_no_error_is_a_notice() {
    if debian_lacks("--sandbox") {
        return;
    }
    let noticed = "without a sandbox";
    let said = |options: &[&str]| {
        let mut server = Server::nbdkit(options).args(["--sandbox=off", "null"]).start();
        assert!(server.stop().success());
        server.stderr_text_after_end()
    };
    assert_eq!(said(&[]), "");
    let verbose = said(&["-v"]);
    let line = verbose.lines().find(|line| line.contains(noticed)).expect("said with -v");
    assert!(line.starts_with("nbdkit: notice: "), "{line}");
    let paths = Paths::new();
    let log = paths.text("log");
    assert_eq!(said(&[&format!("--log={log}")]), "");
    assert!(std::fs::read_to_string(&log).unwrap().contains(noticed));
}

/// What is noticed while the terminal is still there reaches the log of the time after it, at
/// priority 5, notice.
#[test]
fn a_daemon_keeps_its_notices_for_the_system_log() {
    if debian_lacks("--sandbox") || needs_root("a /dev/log of one's own") {
        return;
    }
    let paths = Paths::new();
    let (sock, pid) = (paths.text("sock"), paths.text("pid"));
    let arguments = ["-U", &sock, "-P", &pid, "--sandbox=off", "null"];
    let (log, mut command) = with_system_log(&paths, &arguments);
    let finished = launch(&mut command);
    assert!(finished.status.success() && finished.stderr.is_empty(), "{finished:?}");
    let _daemon = Daemon::of(&paths.path("pid"));
    let message = system_log_message(&log, "without a sandbox");
    let priority: u8 = message[1..message.find('>').unwrap()].parse().unwrap();
    assert_eq!(priority & 7, 5, "{message}");
}

#[test]
fn the_system_log_can_be_asked_for_in_the_foreground() {
    if needs_root("a /dev/log of one's own") {
        return;
    }
    let paths = Paths::new();
    let (sock, pid) = (paths.text("sock"), paths.text("pid"));
    let arguments = [&["-f", "--log=syslog", "-U", &sock, "-P", &pid][..], &COMPLAINING].concat();
    let (log, mut command) = with_system_log(&paths, &arguments);
    let server = crate::support::Foreground::start(command.stdin(Stdio::null()));
    let _ = crate::support::pid_in(&paths.path("pid"));
    let mut client = connect(&paths.path("sock"));
    open(&mut client);
    assert!(client.call(&Ask::read(0, 512)).expect("a reply").error.is_some());
    let _ = system_log_message(&log, COMPLAINT);
    assert_eq!(server.stderr(), "");
}

/// A socket for the system log, and what starts a server in the background that complains to it.
fn complaining_daemon(paths: &Paths) -> (UnixDatagram, impl FnOnce() -> Daemon) {
    let (sock, pid) = (paths.text("sock"), paths.text("pid"));
    let arguments = [&["-U", &sock, "-P", &pid][..], &COMPLAINING].concat();
    let (log, mut command) = with_system_log(paths, &arguments);
    let start = move || {
        let finished = launch(&mut command);
        assert!(finished.status.success(), "{finished:?}");
        Daemon::of(Path::new(&pid))
    };
    (log, start)
}

/// Has a client cause an error line.
fn cause_a_complaint(paths: &Paths) {
    let mut client = connect(&paths.path("sock"));
    open(&mut client);
    assert!(client.call(&Ask::read(0, 512)).expect("a reply").error.is_some());
}

/// The listener is confined by then, and makes no sockets any more.
#[test]
fn a_system_log_that_is_restarted_gets_lines_again() {
    if needs_root("a /dev/log of one's own") {
        return;
    }
    let paths = Paths::new();
    let (mut log, daemon) = complaining_daemon(&paths);
    let _daemon = daemon();
    for _ in 0..3 {
        cause_a_complaint(&paths);
        let _ = system_log_message(&log, COMPLAINT);
        drop(log);
        paths.await_closed("devlog");
        // Nobody is there for this one.
        cause_a_complaint(&paths);
        std::fs::remove_file(paths.path("devlog")).unwrap();
        log = paths.bind_service("devlog");
    }
}

/// syslog(3): the socket may be a stream, too. Messages end in NUL.
#[test]
fn a_system_log_with_a_stream_socket_gets_lines() {
    if needs_root("a /dev/log of one's own") {
        return;
    }
    let paths = Paths::new();
    let (log, daemon) = complaining_daemon(&paths);
    drop(log);
    std::fs::remove_file(paths.path("devlog")).unwrap();
    let log = std::os::unix::net::UnixListener::bind(paths.path("devlog")).unwrap();
    let _daemon = daemon();
    cause_a_complaint(&paths);
    let (connection, _) = log.accept().unwrap();
    connection.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut messages = std::io::BufReader::new(connection);
    let mut message = Vec::new();
    while !String::from_utf8_lossy(&message).contains(COMPLAINT) {
        message.clear();
        let length = std::io::BufRead::read_until(&mut messages, 0, &mut message).unwrap();
        assert!(length != 0 && message.ends_with(b"\0"), "{message:?}");
    }
}

#[test]
fn a_daemon_without_a_system_log_serves_all_the_same() {
    if needs_root("a /dev without a log") {
        return;
    }
    let paths = Paths::new();
    let (sock, pid) = (paths.text("sock"), paths.text("pid"));
    let arguments = [&["-U", &sock, "-P", &pid][..], &COMPLAINING].concat();
    let (log, mut command) = with_system_log(&paths, &arguments);
    drop(log);
    let finished = launch(&mut command);
    assert!(finished.status.success(), "{finished:?}");
    let _daemon = Daemon::of(&paths.path("pid"));
    for _ in 0..3 {
        let mut client = connect(&paths.path("sock"));
        open(&mut client);
        assert!(client.call(&Ask::read(0, 512)).expect("a reply").error.is_some());
    }
}

#[test]
fn verbose_lines_follow_a_server_through_its_life() {
    for option in ["-v", "--verbose"] {
        let mut server = Server::nbdkit([option, "--filter=offset", "memory", "1M"]).start();
        let mut client = server.connect();
        open(&mut client);
        assert_eq!(client.call(&Ask::write(512, *b"abcd")).expect("a reply").error, None);
        client.disconnect().expect("sent");
        client.expect_close().expect("closed");
        let _ = server.wait_for_stderr("memory[1]: debug: memory: close");
        server.stop();
        let stderr = server.stderr_text_after_end();
        for words in [
            "nbdkit: debug: nbdkit ",
            "debug: memory: config key=size, value=1M",
            "memory: config_complete",
            "debug: using thread model: parallel",
            "memory: get_ready",
            "memory: after_fork",
            "memory[1]: debug: memory: open readonly=0",
            "pwrite count=4 offset=512",
            "memory: cleanup",
        ] {
            assert!(stderr.contains(words), "{option}: no {words:?} in\n{stderr}");
        }
    }
}

#[test]
fn nothing_is_said_without_verbose() {
    let mut server = Server::nbdkit(["--filter=offset", "memory", "1M"]).start();
    assert_serves(&mut server.connect());
    server.stop();
    assert_eq!(server.stderr_text_after_end(), "");
}

/// The debug lines of a server with these options that served one client.
fn debug_lines(options: &[&str]) -> String {
    let mut server = Server::nbdkit(options).args(["-v", "memory", "1M"]).start();
    assert_serves(&mut server.connect());
    server.stop();
    server.stderr_text_after_end()
}

#[test]
fn debug_flags_silence_paths_of_the_server() {
    let (data, control) = ("pread count=512", "open readonly=");
    for (options, has_data, has_control) in [
        (&[][..], true, true),
        (&["-D", "nbdkit.backend.datapath=0"], false, true),
        (&["--debug=nbdkit.backend.datapath=0"], false, true),
        (&["-D", "nbdkit.backend.controlpath=0"], true, false),
        (&["-D", "nbdkit.backend.datapath=0", "-D", "nbdkit.backend.controlpath=0"], false, false),
        (&["-D", "nbdkit.backend.datapath=1"], true, true),
    ] {
        let lines = debug_lines(options);
        assert_eq!(lines.contains(data), has_data, "{options:?}:\n{lines}");
        assert_eq!(lines.contains(control), has_control, "{options:?}:\n{lines}");
    }
}

#[test]
fn the_environment_is_printed_only_when_asked_for() {
    if debian_lacks("-D nbdkit.environ") {
        return;
    }
    let environment = |options: &[&str]| {
        let mut server =
            Server::nbdkit(options).args(["-v", "null"]).env("NBDKIT_SECRET", "hunter2").start();
        server.stop();
        server.stderr_text_after_end()
    };
    assert!(!environment(&[]).contains("hunter2"));
    assert!(environment(&["-D", "nbdkit.environ=1"]).contains("NBDKIT_SECRET=hunter2"));
}

#[test]
fn debug_flags_that_are_none_are_refused() {
    for flag in ["foo", "foo.bar", "foo.bar=", ".bar=1", "foo.=1", "null=1", "a=b.c=1", ""] {
        assert_refused(["-f", "-U", "-", "-D", flag, "null"], &["NAME.FLAG=N"]);
    }
}

#[test]
fn debug_flags_of_others_do_not_stop_the_start() {
    let server = Server::nbdkit(["-D", "nosuch.flag=1", "-D", "null.flag=1", "null"]).start();
    assert_serves(&mut server.connect());
}

#[test]
fn a_name_introduces_every_message() {
    if debian_lacks("--name") {
        return;
    }
    let stderr = complain(&["--name=disk 7", "-v"]);
    assert!(stderr.contains(COMPLAINT), "{stderr}");
    for line in stderr.lines() {
        assert!(line.starts_with("nbdkit[disk 7]: "), "{line}");
    }
    let finished = run(["--name=disk7", "-U", "-", "file", "/nonexistent/x"]);
    assert!(finished.stderr.starts_with("nbdkit[disk7]: error: "), "{finished:?}");
}

/// What a client would have to smuggle into a log to forge a line or to move a terminal's cursor.
const HOSTILE: &str = "evil\nnbdkit: error: forged\r\x1b[31mred\x07\x08\u{9b}31m\u{202e}";

fn assert_escaped(stderr: &str) {
    for (number, line) in stderr.lines().enumerate() {
        assert!(!line.starts_with("nbdkit: error: forged"), "line {number} is forged:\n{stderr}");
        let control = line.chars().find(|c| c.is_control() || *c == '\u{202e}');
        assert_eq!(control, None, "in {line:?}");
    }
}

#[test]
fn control_characters_in_export_names_are_escaped_in_debug_lines() {
    if debian_lacks("escapes in debug lines (1.36)") {
        return;
    }
    let mut server = Server::nbdkit(["-v", "memory", "1M"]).start();
    for how in 0..3 {
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        // Whatever it answers, it writes a line.
        let _ = match how {
            0 => client.go(HOSTILE, &[]).map(drop),
            1 => client.info(HOSTILE, &[]).map(drop),
            _ => client.export_name(HOSTILE).map(drop),
        };
    }
    assert_serves(&mut server.connect());
    server.stop();
    let stderr = server.stderr_text_after_end();
    assert!(stderr.contains("evil"), "{stderr}");
    assert_escaped(&stderr);
}

#[test]
fn control_characters_in_export_names_are_escaped_in_errors() {
    if debian_lacks("escapes in messages") {
        return;
    }
    let mut server = Server::nbdkit(["file", "dir={dir}"]).start();
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    let answer = client.go(HOSTILE, &[]).expect("a reply");
    assert!(answer.end.reply.is_error());
    drop(client);
    server.stop();
    let stderr = server.stderr_text_after_end();
    assert!(stderr.contains("evil"), "{stderr}");
    assert_escaped(&stderr);
}

#[test]
fn control_characters_in_a_scripts_complaint_are_escaped() {
    if debian_lacks("escapes in messages") {
        return;
    }
    let script = r#"pread=printf 'EIO one\033[31m\rnbdkit: error: forged' >&2; exit 1"#;
    let mut server = Server::nbdkit(["eval", "get_size=echo 1M", script]).start();
    fail_to_read(&server);
    server.stop();
    let stderr = server.stderr_text_after_end();
    assert!(stderr.contains("forged"), "{stderr}");
    assert_escaped(&stderr);
}

#[test]
fn a_closed_standard_error_does_not_stop_the_server() {
    let paths = Paths::new();
    let arguments = ["-f", "-v", "-U", &paths.text("sock"), "-P", &paths.text("pid")];
    let mut command = nbdkit([&arguments[..], &COMPLAINING].concat());
    // A reader that goes away.
    let (reader, writer) = std::io::pipe().unwrap();
    let mut server =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    // The command, which still holds the pipe's other end, would be its reader.
    drop(command);
    let pid = crate::support::pid_in(&paths.path("pid"));
    let _daemon = Daemon::of(&paths.path("pid"));
    drop(reader);
    for _ in 0..3 {
        let mut client = connect(&paths.path("sock"));
        open(&mut client);
        assert!(client.call(&Ask::read(0, 512)).expect("a reply").error.is_some());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(is_alive(pid));
    _daemon.stop();
    assert!(server.wait().unwrap().success());
}

/// Lines about a connection begin with the plugin's name, whichever layer they come from: people
/// look for that.
#[test]
fn a_filter_speaks_in_the_plugin_s_name() {
    let arguments = ["-v", "--filter=error", "memory", "1M", "error-pread-rate=100%"];
    let mut server = Server::nbdkit(arguments).start();
    let mut client = server.connect();
    open(&mut client);
    assert!(client.call(&Ask::read(0, 512)).expect("a reply").error.is_some());
    client.disconnect().expect("sent");
    client.expect_close().expect("closed");
    server.stop();
    let stderr = server.stderr_text_after_end();
    let of = |text: &str| stderr.lines().find(|line| line.contains(text)).map(str::to_owned);
    let injected = of("injecting EIO").unwrap_or_else(|| panic!("no injected error in\n{stderr}"));
    assert!(injected.starts_with("nbdkit: memory"), "{injected}");
    for line in ["error-inject: get_size", "memory: get_size"] {
        let line =
            of(&format!("debug: {line}")).unwrap_or_else(|| panic!("no {line} in\n{stderr}"));
        assert!(line.starts_with("nbdkit: memory"), "{line}");
    }
}

/// nbdkit(1), `-D`: a flag that nothing has is most likely misspelt, which is said, and the server
/// starts.
#[test]
fn debug_flags_that_nothing_has_are_warned_about() {
    let unknown = |name: &str, variable: &str| {
        format!("-D {name}.zz: {name} does not contain a global variable called {variable}")
    };
    for (arguments, name, warning) in [
        (&["null"][..], "null", Some(unknown("null", "null_debug_zz"))),
        (&["--filter=offset", "null"], "offset", Some(unknown("offset", "offset_debug_zz"))),
        (&["null"], "nbdkit", Some(unknown("nbdkit", "nbdkit_debug_zz"))),
        (&["null"], "memory", Some("debug flag -D memory.zz was not used".to_owned())),
    ] {
        let flag = format!("{name}.zz=1");
        let finished = run([&["-U", "-", "-D", &flag], arguments, &["--run", "exit 5"]].concat());
        assert_eq!(finished.status.code(), Some(5), "{finished:?}");
        let lines: Vec<&str> = finished.stderr.lines().collect();
        let expected = warning.map(|warning| format!("nbdkit: warning: {warning}"));
        assert_eq!(lines, Vec::from_iter(expected.as_deref()), "{arguments:?} {flag}");
    }
    for known in ["nbdkit.backend.datapath=0", "file.zero=1", "nbdkit.tls.session=1"] {
        let finished = run(["-U", "-", "-D", known, "file", "/dev/null", "--run=true"]);
        assert!(!finished.stderr.contains("warning"), "{known}: {finished:?}");
    }
}
