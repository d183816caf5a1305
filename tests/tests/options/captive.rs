//! `--run` and `--exit-with-parent`. nbdkit-captive(1).

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nbdkit_tests::Ask;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::processes::{eventually, is_alive};
use nbdkit_tests::server::free_port;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{
    Foreground, Paths, assert_serves, connect, debian_lacks, line_in, nbdkit, pid_in, run,
};

/// Every variable that nbdkit-captive(1) lists, one a line, and whether `tls` is set at all.
const VARIABLES: &str =
    r#"--run=printf '%s\n' "$uri" "$nbd" "$port" "$unixsocket" "$exportname" "${tls-unset}""#;

fn variables(arguments: &[&str]) -> Vec<String> {
    let finished = run([arguments, &["null", VARIABLES]].concat());
    assert!(finished.status.success(), "{finished:?}");
    assert_eq!(finished.stderr, "");
    finished.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn variables_of_a_unix_socket() {
    let paths = Paths::new();
    let socket = paths.text("sock");
    let uri = format!("nbd+unix://?socket={socket}");
    assert_eq!(variables(&["-U", &socket]), [&uri, &uri, "", &socket, "", "unset"]);
}

#[test]
fn variables_of_a_private_socket() {
    let found = variables(&["-U", "-"]);
    let socket = &found[3];
    assert!(socket.starts_with("/tmp/nbdkit") && socket.ends_with("/socket"), "{socket}");
    let uri = format!("nbd+unix://?socket={socket}");
    assert_eq!(found, [&uri, &uri, "", socket, "", "unset"]);
}

#[test]
fn variables_of_a_tcp_port() {
    let port = free_port().to_string();
    let uri = format!("nbd://localhost:{port}");
    let found = variables(&["-i", "127.0.0.1", "-p", &port]);
    assert_eq!(found, [&uri, &uri, &port, "", "", "unset"]);
}

#[test]
fn variables_with_an_export_name() {
    let paths = Paths::new();
    let socket = paths.text("sock");
    for option in ["-e", "--export", "--export-name", "--exportname"] {
        let _ = std::fs::remove_file(&socket);
        let uri = format!("nbd+unix:///a%20%22b%22%24c?socket={socket}");
        let found = variables(&["-U", &socket, option, r#"a "b"$c"#]);
        assert_eq!(found, [&uri, &uri, "", &socket, r#"a "b"$c"#, "unset"], "{option}");
    }
}

#[test]
fn an_export_name_is_data_to_the_shell() {
    for name in ["$(echo forged)", "`echo forged`", "'; echo forged; '", "a\nb", "\\", "!", "~"] {
        let finished = run(["-U", "-", "-e", name, "null", r#"--run=printf '%s' "$exportname""#]);
        assert_eq!(finished.stdout, name, "{finished:?}");
    }
}

#[test]
fn the_variables_are_not_exported() {
    let command = r#"--run=sh -c 'echo "${uri-no}${nbd-no}${unixsocket-no}"'"#;
    assert_eq!(run(["-U", "-", "null", command]).stdout, "nonono\n");
}

#[test]
fn a_command_without_an_address_gets_a_private_socket() {
    if debian_lacks("-U - implied by --run (1.36)") {
        return;
    }
    let socket = &variables(&[])[3];
    assert!(socket.starts_with("/tmp/nbdkit"), "{socket}");
}

#[test]
fn the_uri_leads_to_the_server() {
    // The command may connect at once: the server accepts when it runs.
    let finished = run(["-U", "-", "memory", "1M", r#"--run=nbdinfo --size "$uri""#]);
    if finished.status.code() == Some(127) {
        eprintln!("SKIPPED: there is no nbdinfo");
        return;
    }
    assert_eq!(finished.stdout, "1048576\n", "{finished:?}");
}

#[test]
fn the_exit_status_is_the_commands() {
    for (command, status) in [("true", 0), ("exit 7", 7), ("exit 255", 255), ("false", 1)] {
        let finished = run(["-U", "-", "null", "--run", command]);
        assert_eq!(finished.status.code(), Some(status), "{command}: {finished:?}");
        assert_eq!(finished.stderr, "", "{command}");
    }
}

#[test]
fn a_command_killed_by_a_signal_gives_128_and_its_number() {
    for (signal, status) in [("TERM", 143), ("KILL", 137), ("HUP", 129), ("SEGV", 139)] {
        let command = format!("kill -{signal} $$");
        let finished = run(["-U", "-", "null", "--run", &command]);
        assert_eq!(finished.status.code(), Some(status), "{finished:?}");
        let expected = format!("external command was killed by signal {}", status - 128);
        assert!(finished.stderr.contains(&expected), "{finished:?}");
    }
}

#[test]
fn a_command_that_does_not_exist_is_the_shells_127() {
    let finished = run(["-U", "-", "null", "--run", "/nonexistent/command"]);
    assert_eq!(finished.status.code(), Some(127), "{finished:?}");
    assert!(finished.stderr.contains("/nonexistent/command"), "{finished:?}");
}

#[test]
fn a_command_that_is_no_shell_syntax_fails() {
    let finished = run(["-U", "-", "null", "--run", "if ("]);
    assert!(!finished.status.success(), "{finished:?}");
}

#[test]
fn the_command_does_not_run_when_the_plugin_does_not_start() {
    let paths = Paths::new();
    let command = format!("touch {}", paths.text("ran"));
    for plugin in [
        &["file", "/nonexistent/disk.img"][..],
        &["eval", "get_ready=exit 1", "get_size=echo 1"],
        &["nosuchplugin"],
    ] {
        let finished = run([&["-U", "-", "--run", &command], plugin].concat());
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        assert!(!paths.path("ran").exists(), "{plugin:?}");
    }
}

#[test]
fn the_command_has_the_callers_standard_streams() {
    let mut command = nbdkit(["-U", "-", "null", "--run", "cat; echo to stderr >&2"]);
    let mut server = {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    server.stdin.take().unwrap().write_all(b"through\n").unwrap();
    let output = server.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "through\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "to stderr\n");
    assert!(output.status.success());
}

#[test]
fn the_command_keeps_the_callers_directory() {
    let paths = Paths::new();
    let mut command = nbdkit(["-U", "-", "null", "--run", "pwd"]);
    let finished =
        nbdkit_tests::command::run(command.current_dir(paths.dir.path()), crate::support::DEADLINE);
    assert_eq!(finished.stdout.trim_end(), paths.dir.path().to_str().unwrap());
}

#[test]
fn clients_are_cut_off_when_the_command_is_done() {
    if debian_lacks("an end while clients are connected: it waits for them") {
        return;
    }
    let paths = Paths::new();
    let command = format!("until test -e {}; do sleep 0.05; done", paths.text("stop"));
    let mut server =
        Foreground::nbdkit(["-U", &paths.text("sock"), "memory", "1M", "--run", &command]);
    eventually("the socket is there", || {
        std::os::unix::net::UnixStream::connect(paths.path("sock")).is_ok()
    });
    let mut client = connect(&paths.path("sock"));
    crate::support::open(&mut client);
    paths.write("stop", "");
    assert!(server.wait().success());
    client.expect_close().expect("closed");
}

#[test]
fn a_signal_to_the_server_waits_for_the_command() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let paths = Paths::new();
        let (pid, stop) = (paths.text("command"), paths.text("stop"));
        let command = format!("echo $$ > {pid}; until test -e {stop}; do sleep 0.02; done; exit 7");
        let mut server = Foreground::nbdkit(["-U", "-", "null", "--run", &command]);
        let command = pid_in(&paths.path("command"));
        server.signal(signal);
        // Time enough to end, if it would.
        std::thread::sleep(Duration::from_millis(300));
        assert!(is_alive(command) && server.try_wait().is_none(), "{signal}");
        paths.write("stop", "");
        assert_eq!(server.wait().code(), Some(7), "{signal}: {}", server.stderr());
        assert_eq!(server.stderr(), "", "{signal}");
    }
}

#[test]
fn a_command_that_a_signal_waits_for_still_has_its_server() {
    if debian_lacks("new clients after a signal: they wait until the command ends") {
        return;
    }
    let paths = Paths::new();
    let stop = paths.text("stop");
    let command = format!("until test -e {stop}; do sleep 0.02; done");
    let arguments = ["-v", "-U", &paths.text("sock"), "memory", "1M", "--run", &command];
    let mut server = Foreground::nbdkit(arguments);
    eventually("the socket", || paths.path("sock").exists());
    let mut client = connect(&paths.path("sock"));
    crate::support::open(&mut client);
    server.signal(Signal::SIGTERM);
    server.wait_for_stderr("ends with the command");
    assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").error, None);
    assert_serves(&mut connect(&paths.path("sock")));
    paths.write("stop", "");
    assert!(server.wait().success());
}

#[test]
fn a_signal_that_is_repeated_ends_server_and_command() {
    if debian_lacks("one process to signal with --run: the server is its child") {
        return;
    }
    let paths = Paths::new();
    let command = format!("echo $$ > {}; exec sleep 60", paths.text("command"));
    let mut server = Foreground::nbdkit(["-U", "-", "null", "--run", &command]);
    let command = pid_in(&paths.path("command"));
    let end = Instant::now() + crate::support::DEADLINE;
    while server.try_wait().is_none() {
        server.signal(Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(100));
        assert!(Instant::now() < end, "it waits for ever");
    }
    eventually("the command has ended, too", || !is_alive(command));
    // Which of several sensible statuses it is, is nobody's promise; that it is one, not a signal,
    // is.
    let status = server.wait();
    assert!(status.code().is_some(), "{status}");
}

/// The template is killed, and while the next one is being configured the command ends, and with it
/// the server.
#[test]
fn a_template_that_is_made_while_the_server_ends_changes_nothing() {
    if debian_lacks("a template") {
        return;
    }
    for sandbox in ["--sandbox=strict", "--sandbox=off"] {
        let paths = Paths::new();
        // What opens it waits until somebody reads from it.
        let log = paths.text("log");
        let command = format!(
            r#"echo "$unixsocket"
            called() {{
                for child in $(cat /proc/$PPID/task/$PPID/children); do
                    [ "$(cat /proc/$child/comm 2>/dev/null)" != $1 ] || echo $child
                done
            }}
            rm {log} && mkfifo {log} && kill -9 $(called nbdkit:template)
            until [ "$(called nbdkit-worker)" ]; do sleep 0.02; done
            (sleep 0.5; cat {log}) >/dev/null 2>&1 &
            exit 7"#
        );
        let log = format!("logfile={log}");
        let finished =
            run([sandbox, "-U", "-", "--filter=log", "null", "1M", &log, "--run", &command]);
        assert_eq!(finished.status.code(), Some(7), "{finished:?}");
        assert!(finished.stderr.contains("was killed by SIGKILL"), "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
        assert!(!Path::new(finished.stdout.trim_end()).exists(), "{finished:?}");
    }
}

#[test]
fn a_signal_to_the_whole_terminal_ends_server_and_command() {
    let paths = Paths::new();
    let command = format!("echo $$ > {}; exec sleep 60", paths.text("command"));
    let mut server = Foreground::nbdkit(["-U", &paths.text("sock"), "null", "--run", &command]);
    let command = pid_in(&paths.path("command"));
    server.signal_group(Signal::SIGINT);
    server.wait();
    eventually("the command has ended, too", || !is_alive(command));
    // The command's own end may be told, nothing else.
    for line in server.stderr().lines() {
        assert!(line.contains("external command was killed by signal 2"), "{line}");
    }
}

/// A shell that starts the server in the background with `--exit-with-parent`, waits for its pid
/// file, says so, and then lives until it is told to end by one line.
fn parent_of_server(paths: &Paths, options: &str) -> Foreground {
    let script = format!(
        r#""$0" {options} --exit-with-parent -P "$1/pid" null 2>"$1/stderr" &
        until test -s "$1/pid"; do sleep 0.02; done
        echo ready
        until test -e "$1/stop"; do sleep 0.02; done"#
    );
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(script).arg(Binary::under_test().path()).arg(paths.dir.path());
    let parent = Foreground::start(shell.stdin(Stdio::null()));
    assert_eq!(parent.stdout_lines(1), ["ready"]);
    parent
}

/// Ends what a failed test would leave behind.
struct Orphan(i32);

impl Drop for Orphan {
    fn drop(&mut self) {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", self.0));
        if name.is_ok_and(|name| name.starts_with("nbdkit")) {
            let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
        }
    }
}

#[test]
fn the_server_ends_with_a_parent_that_exits() {
    // A change of user undoes what ties a process to its parent: PR_SET_PDEATHSIG(2const).
    let changes = Binary::under_test().is_ours() && nix::unistd::geteuid().is_root();
    let options = ["", "--listener-user=daemon"];
    for option in &options[..1 + usize::from(changes)] {
        let paths = Paths::new();
        let mut parent = parent_of_server(&paths, &format!("{option} -U {}", paths.text("sock")));
        let server = Orphan(pid_in(&paths.path("pid")));
        assert_serves(&mut connect(&paths.path("sock")));
        paths.write("stop", "");
        assert!(parent.wait().success());
        eventually("the server ends", || !is_alive(server.0));
    }
}

#[test]
fn the_server_ends_with_a_parent_that_is_killed() {
    let paths = Paths::new();
    let mut parent = parent_of_server(&paths, &format!("-U {}", paths.text("sock")));
    let server = Orphan(pid_in(&paths.path("pid")));
    assert_serves(&mut connect(&paths.path("sock")));
    parent.signal(Signal::SIGKILL);
    parent.wait();
    eventually("the server ends", || !is_alive(server.0));
    assert_eq!(std::fs::read_to_string(paths.path("stderr")).unwrap(), "");
}

#[test]
fn a_server_that_ends_with_its_parent_removes_its_private_directory() {
    let paths = Paths::new();
    let _parent = parent_of_server(&paths, "-v -U -");
    let server = Orphan(pid_in(&paths.path("pid")));
    let log = line_in(&paths.path("stderr"));
    let start = log.find("/tmp/nbdkit").expect("the path in the log");
    let socket = log[start..].split_whitespace().next().unwrap();
    assert!(Path::new(socket).exists());
    paths.write("stop", "");
    eventually("the server ends", || !is_alive(server.0));
    assert!(!Path::new(socket).parent().unwrap().exists(), "{socket}");
}

/// The listener cannot remove it by itself once it is confined, and a listener that was killed does
/// nothing any more.
#[test]
fn a_private_directory_is_removed_however_the_server_ends() {
    let disk = Paths::new();
    let file = disk.write("disk", [0; 512]);
    let stacks: [&[&str]; 4] = [
        &["memory", "1M"],
        &["file", &file],
        &["--isolation=shared", "null", "1M"],
        &["--sandbox=off", "null", "1M"],
    ];
    let ours = Binary::under_test().is_ours();
    for stack in stacks {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
            // Neither nbdkit nor a server without a sandbox has another process for it.
            let nobody_left = stack[0] == "--sandbox=off" || !ours;
            if nobody_left && signal == Signal::SIGKILL || stack[0].starts_with("--") && !ours {
                continue;
            }
            let paths = Paths::new();
            let pid = paths.text("pid");
            let options = ["-v", "-U", "-", "-P", &pid];
            let mut server = Foreground::nbdkit([&["-f"][..], &options, stack].concat());
            let _ = pid_in(&paths.path("pid"));
            server.wait_for_stderr("/tmp/nbdkit");
            let log = server.stderr();
            let start = log.find("/tmp/nbdkit").expect("the path in the log");
            let socket = Path::new(log[start..].split_whitespace().next().unwrap()).to_owned();
            assert_serves(&mut connect(&socket));
            server.signal(signal);
            let _ = server.wait();
            let directory = socket.parent().unwrap();
            eventually(&format!("{stack:?}: {signal}: it is removed"), || !directory.exists());
            assert!(!server.stderr().contains("too soon"), "{}", server.stderr());
        }
    }
}

#[test]
fn a_server_with_a_parent_stays_in_the_foreground() {
    let paths = Paths::new();
    let mut server = Foreground::nbdkit([
        "--exit-with-parent",
        "-U",
        &paths.text("sock"),
        "-P",
        &paths.text("pid"),
        "null",
    ]);
    assert_eq!(pid_in(&paths.path("pid")), server.pid().as_raw());
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
}

#[test]
fn whether_a_server_can_follow_its_parent_can_be_asked() {
    // The way that nbdkit-captive(1) recommends.
    assert!(run(["--exit-with-parent", "--version"]).status.success());
    assert!(run(["--dump-config"]).stdout.contains("exit_with_parent=yes\n"));
}

/// nbdkit-log-filter(1): `Fork`, if the server forks.
#[test]
fn the_log_filter_notes_that_a_captive_server_forked() {
    let paths = Paths::new();
    let log = paths.path("log");
    let logfile = format!("logfile={}", log.display());
    let finished = run(["--filter=log", "null", "1M", &logfile, "--run", "exit 3"]);
    assert_eq!(finished.status.code(), Some(3), "{finished:?}");
    let text = std::fs::read_to_string(log).unwrap();
    let events: Vec<&str> = text.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert_eq!(events, ["Ready", "Fork"], "{text}");
}
