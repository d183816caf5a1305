//! Scripts end with the call that nobody waits for any more, with their worker and with the server,
//! and with them whatever they have left in the background. Ours only: nbdkit leaves them running.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nbd_protocol::constants::{Opt, Rep};
use nbdkit_tests::binary::Binary;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::{Ask, Client, Server, TempDir};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::write_script;

/// A server, a client that waits for a script, and the processes of that script.
struct Waiting {
    server: Server,
    client: Option<Client<UnixStream>>,
    dir: PathBuf,
}

/// How long the script would wait before it writes, seconds: longer than any test.
const LONG: &str = "600";

fn start(options: &[&str]) -> Waiting {
    let builder = Server::nbdkit(options).binary(Binary::ours()).args(["sh", "{dir}/script"]);
    let dir = builder.dir().path().to_owned();
    // A child, a grandchild whose parent has gone, one with a session of its own and its child:
    // each tells its number.
    let cases = format!(
        "get_size) echo 1M ;;
        thread_model) echo parallel ;;
        pread)
            (sleep {LONG} & echo $! >{d}/grandchild) </dev/null >/dev/null 2>&1
            (setsid sh -c 'sleep {LONG} & echo $! >{d}/inner; echo $$ >{d}/session; wait; echo late >{d}/late' &) </dev/null >/dev/null 2>&1
            echo $PPID >{d}/worker
            sleep {LONG} & echo $! >{d}/child
            echo $$ >{d}/shell; wait; echo late >{d}/late; head -c $3 /dev/zero ;;",
        d = dir.display()
    );
    write_script(builder.dir(), "script", "/bin/sh", &cases);
    let server = builder.start();
    let mut client = server.connected("");
    client.send(&Ask::read(0, 512)).expect("sent");
    let waiting = Waiting { server, client: Some(client), dir };
    eventually("the script waits", || waiting.alive().len() == 5);
    waiting
}

impl Waiting {
    fn pid(&self, name: &str) -> Option<Pid> {
        pid_in(&self.dir.join(name))
    }

    /// The processes of the script that are there, zombies of a parent that is not ours aside.
    fn alive(&self) -> Vec<&'static str> {
        let lives = |name: &&str| self.pid(name).is_some_and(|pid| lives(pid, &self.dir));
        ["grandchild", "session", "inner", "child", "shell"].into_iter().filter(lives).collect()
    }

    fn assert_ends(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        while !self.alive().is_empty() {
            assert!(Instant::now() < end, "still there: {:?}", self.alive());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!self.dir.join("late").exists());
    }
}

/// The process whose number is in a file.
fn pid_in(path: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(path).ok()?;
    text.strip_suffix('\n')?.parse().ok().map(Pid::from_raw)
}

/// Whether a process runs; the number may be another's by now.
fn lives(pid: Pid, dir: &Path) -> bool {
    if kill(pid, None) == Err(Errno::ESRCH) {
        return false;
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let zombie = stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).into_owned();
    !zombie && (command.contains(LONG) || command.contains(&*dir.to_string_lossy()))
}

#[test]
fn scripts_end_with_a_killed_worker_and_other_clients_go_on() {
    for options in [
        &["--sandbox=programs"][..],
        &["--sandbox=strict", "--allow-path={dir}:rw"],
        &["--sandbox=off"],
    ] {
        let waiting = start(options);
        let worker = waiting.pid("worker").expect("written");
        let mut other = waiting.server.connect();
        other.handshake().expect("a greeting");
        kill(worker, Signal::SIGKILL).expect("it is there");
        waiting.assert_ends();
        assert_eq!(other.go("", &[]).expect("a reply").end.reply, Rep::ACK);
    }
}

/// The listener gives clients five seconds; the script gets no more, however clients are divided
/// over processes.
#[test]
fn scripts_end_with_a_stopped_server_which_does_not_wait_for_them() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let mut waiting = start(&[isolation]);
        let began = Instant::now();
        waiting.server.signal(Signal::SIGTERM);
        assert!(waiting.server.wait().success());
        let took = began.elapsed();
        assert!(waiting.alive().is_empty(), "{isolation}: {:?}", waiting.alive());
        assert!(!waiting.dir.join("late").exists());
        // The 30 seconds that the template has for cleaning up are not added.
        assert!(took < Duration::from_secs(20), "{isolation}: {took:?}");
    }
}

#[test]
fn scripts_end_with_a_killed_listener() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let mut waiting = start(&[isolation]);
        waiting.server.signal(Signal::SIGKILL);
        waiting.server.wait();
        waiting.assert_ends();
    }
}

/// Its template would have killed what a script left; now the listener does.
#[test]
fn scripts_end_with_a_killed_template_that_ran_them() {
    let waiting = start(&["--isolation=shared"]);
    kill(waiting.pid("worker").expect("written"), Signal::SIGKILL).expect("it is there");
    waiting.assert_ends();
}

/// Workers outlive their template, and what their scripts leave does not outlive them.
#[test]
fn scripts_end_with_a_worker_whose_template_was_killed_before() {
    let waiting = start(&[]);
    let mut other = waiting.server.connected("");
    let worker = waiting.pid("worker").expect("written");
    let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).expect("alive");
    let parent = stat.rsplit(')').next().and_then(|rest| rest.split(' ').nth(2)?.parse().ok());
    kill(Pid::from_raw(parent.expect("a template")), Signal::SIGKILL).expect("it is there");
    let _ = waiting.server.wait_for_stderr("the template cannot be replaced");
    assert_eq!(waiting.alive().len(), 5, "their worker is there");
    kill(worker, Signal::SIGKILL).expect("it is there");
    waiting.assert_ends();
    // Without a script: it cannot be written.
    let written = other.call(&Ask::write(0, *b"x")).expect("another worker goes on");
    assert!(written.error.is_some());
}

/// A request that has begun is finished, as in nbdkit, where the client that asked has gone.
#[test]
fn a_script_goes_on_when_its_client_vanishes_and_ends_with_the_server() {
    let mut waiting = start(&[]);
    drop(waiting.client.take());
    assert!(waiting.alive().contains(&"shell"));
    // A second signal skips the patience, if it is not taken for part of the first.
    waiting.server.signal(Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(1200));
    if waiting.server.try_wait().is_none() {
        waiting.server.signal(Signal::SIGTERM);
    }
    waiting.server.wait();
    waiting.assert_ends();
}

/// What a script of the configuration phase starts serves all clients, and ends with the server,
/// also with --run.
#[test]
fn what_get_ready_starts_lives_as_long_as_the_server() {
    for run in [false, true] {
        let mut builder = Server::nbdkit([] as [&str; 0]).binary(Binary::ours());
        if run {
            // The server waits for the command when it is told to stop.
            builder = builder.args(["--run", "while ! [ -e {dir}/over ]; do sleep 0.1; done"]);
        }
        let builder = builder.args(["sh", "{dir}/script"]);
        let dir = builder.dir().path().to_owned();
        let cases = format!(
            "get_size) echo 1M ;;
            get_ready) (sleep {LONG} & echo $! >{d}/helper) </dev/null >/dev/null 2>&1 ;;
            open) (sleep {LONG} & echo $! >{d}/opened) </dev/null >/dev/null 2>&1 ;;
            pread) head -c $3 /dev/zero ;;",
            d = dir.display()
        );
        write_script(builder.dir(), "script", "/bin/sh", &cases);
        let server = builder.start();
        let client = server.connected("");
        let mut waiting = Waiting { server, client: Some(client), dir };
        let (helper, opened) =
            (waiting.pid("helper").expect("it"), waiting.pid("opened").expect("it"));
        assert!(lives(helper, &waiting.dir) && lives(opened, &waiting.dir));
        drop(waiting.client.take());
        eventually("the client's ends", || !lives(opened, &waiting.dir));
        assert!(lives(helper, &waiting.dir), "it is everybody's");
        std::fs::write(waiting.dir.join("over"), "").expect("written");
        let _ = waiting.server.stop();
        assert!(!lives(helper, &waiting.dir));
    }
}

/// A start that is given up leaves nothing behind.
#[test]
fn scripts_of_the_configuration_phase_end_with_a_start_that_is_interrupted() {
    let dir = TempDir::new();
    let d = dir.path().display();
    let cases = format!(
        "get_size) echo 1M ;;
        config_complete)
            (setsid sleep {LONG} & echo $! >{d}/session) </dev/null >/dev/null 2>&1
            sleep {LONG} & echo $! >{d}/child
            echo $$ >{d}/shell; wait; echo late >{d}/late ;;"
    );
    write_script(&dir, "script", "/bin/sh", &cases);
    let mut nbdkit = Command::new(Binary::ours().path());
    let nbdkit = nbdkit.args(["-f", "-U", "-", "sh"]).arg(dir.join("script"));
    let mut nbdkit = nbdkit.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
    let pid = |name: &str| pid_in(&dir.join(name));
    eventually("the script waits", || pid("shell").is_some());
    kill(Pid::from_raw(nbdkit.id().cast_signed()), Signal::SIGTERM).expect("it is there");
    nbdkit.wait().expect("reaped");
    eventually("their ends", || {
        ["session", "child", "shell"].iter().all(|name| !lives(pid(name).expect("it"), dir.path()))
    });
    assert!(!dir.join("late").exists());
}

/// With -s, too, the one client's script is not waited for.
#[test]
fn scripts_end_with_a_stopped_server_of_one_client() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let dir = TempDir::new();
        let cases =
            format!("get_size) echo $$ >{}/shell; sleep {LONG} & wait ;;", dir.path().display());
        write_script(&dir, "script", "/bin/sh", &cases);
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut nbdkit = Command::new(Binary::ours().path());
        let nbdkit = nbdkit.args(["-s", isolation, "sh"]).arg(dir.join("script"));
        let streams = (theirs.try_clone().expect("a copy").into(), theirs.into());
        let (stdin, stdout): (OwnedFd, OwnedFd) = streams;
        let nbdkit = nbdkit.stdin(stdin).stdout(stdout).stderr(Stdio::null());
        let mut child = nbdkit.spawn().expect("started");
        let mut client = Client::new(ours);
        client.handshake().expect("a greeting");
        client.send_option(Opt::EXPORT_NAME, b"").expect("sent");
        let shell = || pid_in(&dir.join("shell"));
        eventually("the script waits", || shell().is_some());
        let began = Instant::now();
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it is there");
        child.wait().expect("reaped");
        assert!(began.elapsed() < Duration::from_secs(20), "{isolation}: {:?}", began.elapsed());
        assert!(!lives(shell().expect("it"), dir.path()), "{isolation}");
    }
}
