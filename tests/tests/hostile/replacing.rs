//! A template that has ended and cannot be replaced at once: whoever is served goes on, whoever
//! comes gets an answer, the log says why without a flood, and all is well again when the reason is
//! gone.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nbdkit_tests::binary::Binary;
use nbdkit_tests::client::Headers;
use nbdkit_tests::processes::{children, children_called, descriptors, eventually, is_alive};
use nbdkit_tests::server::{Builder, ours, programs};
use nbdkit_tests::{Ask, Server, uninterrupted};
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo};

use super::processes::kill_9;
use super::{Connection, MIB, open, succeed};

/// How long anything may take here, but for what waits for a limit of the server's own.
const DEADLINE: Duration = Duration::from_secs(40);

/// Longer than clients wait for a template: SECURITY.md.
const ANSWER: Duration = Duration::from_secs(20);

/// An ordinary user, for setpriv(1).
const USER: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// What somebody who connects gets.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The first byte of a greeting.
    Greeting,
    /// The end of the connection.
    Disconnected,
}

fn answer(server: &Server) -> Answer {
    let mut stream = UnixStream::connect(server.socket()).expect("somebody listens");
    stream.set_read_timeout(Some(ANSWER)).expect("a socket");
    match uninterrupted(|| stream.read(&mut [0])) {
        Ok(1) => Answer::Greeting,
        Ok(_) => Answer::Disconnected,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Answer::Disconnected,
        Err(error) => panic!("no answer: {error}"),
    }
}

/// Reads and writes until `condition` holds, and at least for a while. Each request must succeed.
fn work_until(client: &mut Connection, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    for value in (0..=u8::MAX).cycle() {
        succeed(client, &Ask::write(0, vec![value; 4096]));
        assert_eq!(succeed(client, &Ask::read(0, 4096)), vec![value; 4096]);
        if condition() {
            return;
        }
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn work_for(client: &mut Connection, time: Duration) {
    let end = Instant::now() + time;
    work_until(client, "time goes by", || Instant::now() >= end);
}

fn count(server: &Server, needle: &str) -> usize {
    server.stderr_text().lines().filter(|line| line.contains(needle)).count()
}

fn spawner(server: &Server) -> i32 {
    let is_spawner = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "nbdkit:spawner\n")
    };
    let find = || children(server.pid().as_raw()).into_iter().find(is_spawner);
    // It takes its name a moment after the server is ready.
    eventually("there is a spawner", || find().is_some());
    find().expect("a spawner")
}

/// With a disk of 1 MiB in its directory. As an ordinary user, if limits of such a one are tested.
fn with_disk(arguments: &[&str], as_user: bool) -> Builder {
    let mut builder = ours(arguments);
    let dir = builder.dir().path().to_owned();
    fs::write(dir.join("disk"), vec![0; MIB as usize]).expect("written");
    for path in [dir.clone(), dir.join("disk")] {
        fs::set_permissions(path, Permissions::from_mode(0o777)).expect("ours");
    }
    if as_user && geteuid().is_root() {
        builder = builder
            .through_shell(r#"exec setpriv --reuid=65534 --regid=65534 --clear-groups "$0" "$@""#);
    }
    builder
}

/// Lets a process make no other, or as many as it might at the start: the soft limit is for that,
/// prlimit(1).
fn let_fork(pid: i32, may: bool) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("alive");
    let hard = limits.lines().find_map(|line| {
        line.strip_prefix("Max processes")?.split_whitespace().nth(1).map(str::to_owned)
    });
    let limit = if may { hard.expect("a limit") } else { "1".to_owned() };
    let mut command = Command::new("setpriv");
    if geteuid().is_root() {
        // Whose process it is may do that without a capability.
        command.args(USER);
    }
    let status =
        command.args(["prlimit", &format!("--pid={pid}"), &format!("--nproc={limit}:")]).status();
    assert!(status.expect("util-linux").success());
}

#[test]
fn a_moved_image_ends_nobody_and_is_served_again_when_it_is_back() {
    let mut server = with_disk(&["file", "{dir}/disk"], false).start();
    let (disk, elsewhere) = (server.dir().join("disk"), server.dir().join("elsewhere"));
    let mut client = open(&server, Headers::Structured);
    fs::rename(&disk, &elsewhere).expect("renamed");
    kill_9(server.template());
    let asking = std::thread::scope(|scope| {
        let asking = scope.spawn(|| answer(&server));
        work_until(&mut client, "the newcomer has an answer", || asking.is_finished());
        asking.join().expect("an answer")
    });
    assert_eq!(asking, Answer::Disconnected);
    work_for(&mut client, Duration::from_secs(3));
    // Whoever comes now is told at once.
    let begun = Instant::now();
    assert_eq!(answer(&server), Answer::Disconnected);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let text = server.stderr_text();
    let line = text.lines().find(|line| line.contains("cannot replace the template"));
    let line = line.expect("a line says why");
    assert!(line.contains("No such file or directory") && line.contains("retry in 1 s"), "{line}");
    // The death, two lines for each of four or five attempts, one for each newcomer.
    assert!(text.lines().count() < 20, "{text}");
    fs::rename(&elsewhere, &disk).expect("renamed");
    work_until(&mut client, "newcomers are served again", || answer(&server) == Answer::Greeting);
    succeed(&mut open(&server, Headers::Simple), &Ask::read(0, 4096));
    succeed(&mut client, &Ask::flush());
    assert!(server.stop().success());
}

/// With a spawner, without one, and where one process serves all.
#[test]
fn without_clients_too_the_server_waits_for_its_image() {
    std::thread::scope(|scope| {
        for option in ["--isolation=connection", "--sandbox=off", "--isolation=shared"] {
            scope.spawn(move || waits_for_its_image(option));
        }
    });
}

fn waits_for_its_image(option: &str) {
    let mut server = with_disk(&[option, "file", "{dir}/disk"], false).start();
    let mut client = open(&server, Headers::Simple);
    let (disk, elsewhere) = (server.dir().join("disk"), server.dir().join("elsewhere"));
    fs::rename(&disk, &elsewhere).expect("renamed");
    kill_9(server.template());
    if option == "--isolation=shared" {
        client.expect_close().expect("closed");
    }
    drop(client);
    eventually("several attempts fail", || count(&server, "cannot replace the template") >= 3);
    // Of another size: it is the next client's.
    fs::write(&disk, vec![7; 2 * MIB as usize]).expect("written");
    eventually("newcomers are served again", || answer(&server) == Answer::Greeting);
    let read = Ask::read(2 * MIB - 512, 512);
    assert_eq!(succeed(&mut open(&server, Headers::Simple), &read), [7; 512], "{option}");
    assert!(server.stop().success());
}

/// The programs of a running server are replaced, as dpkg does it. A worker of another build would
/// be refused.
#[test]
fn an_upgrade_leaves_a_server_the_worker_of_its_own_build() {
    let built = programs();
    let copies = nbdkit_tests::TempDir::new();
    for name in ["nbdkit", "nbdkit-worker", "nbdkit-spawner"] {
        fs::copy(built.join(name), copies.join(name)).expect("copied");
    }
    let stack = ["file", "{dir}/disk"];
    let binary = Binary::Ours(copies.join("nbdkit"));
    let mut server = with_disk(&stack, false).binary(binary).start();
    let mut client = open(&server, Headers::Structured);
    let worker = copies.join("nbdkit-worker");
    eventually("the spawner has the program open", || {
        let spawners = children_called(server.pid().as_raw(), "nbdkit:spawner");
        // Others than root may not look at it.
        spawners.into_iter().any(|pid| match fs::read_dir(format!("/proc/{pid}/fd")) {
            Ok(_) => descriptors(pid).contains(&worker),
            Err(_) => true,
        })
    });
    fs::copy("/bin/false", copies.join("newer")).expect("copied");
    fs::rename(copies.join("newer"), worker).expect("renamed");
    kill_9(server.template());
    work_until(&mut client, "newcomers are served", || answer(&server) == Answer::Greeting);
    succeed(&mut open(&server, Headers::Simple), &Ask::read(0, 4096));
    assert_eq!(count(&server, "cannot replace the template"), 0);
    assert!(server.stop().success());
}

/// fork(2): EAGAIN.
#[test]
fn a_limit_on_processes_ends_nobody() {
    let server = with_disk(&["file", "{dir}/disk"], true).start();
    let mut client = open(&server, Headers::Structured);
    let old = server.template();
    let_fork(old, false);
    assert_eq!(answer(&server), Answer::Disconnected, "the template cannot fork");
    let _ = server.wait_for_stderr("fork: Resource temporarily unavailable");
    work_for(&mut client, Duration::from_millis(100));
    let_fork(old, true);
    assert_eq!(answer(&server), Answer::Greeting);

    let spawner = spawner(&server);
    let_fork(spawner, false);
    kill_9(old);
    let failed =
        || count(&server, "cannot replace the template: cannot start a template: Resource");
    work_until(&mut client, "three attempts fail", || failed() >= 3);
    work_for(&mut client, Duration::from_secs(1));
    let_fork(spawner, true);
    work_until(&mut client, "newcomers are served again", || answer(&server) == Answer::Greeting);
    assert!(failed() < 8);
}

/// The file of the log filter, which is opened when that is configured, has become a FIFO that
/// nobody reads.
#[test]
fn a_configuration_that_hangs_the_second_time_is_given_up() {
    let log = "logfile={dir}/log";
    let mut server = with_disk(&["--filter=log", "file", "{dir}/disk", log], false).start();
    let path = server.dir().join("log");
    let mut client = open(&server, Headers::Structured);
    fs::remove_file(&path).expect("removed");
    mkfifo(&path, Mode::from_bits_truncate(0o666)).expect("made");
    kill_9(server.template());
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| answer(&server));
        work_until(&mut client, "the newcomer has an answer", || asking.is_finished());
        assert_eq!(asking.join().expect("an answer"), Answer::Disconnected);
    });
    let limit = "was not ready in 30 seconds and is killed; retry in";
    work_until(&mut client, "it is given up", || count(&server, limit) == 1);
    fs::remove_file(&path).expect("removed");
    // The next attempt may have begun.
    let fifo_is_gone = || answer(&server) == Answer::Greeting;
    work_until(&mut client, "newcomers are served again", fifo_is_gone);
    assert!(server.stop().success());
}

#[test]
fn a_template_that_dies_again_and_again_is_no_longer_replaced_and_clients_go_on() {
    let mut server = with_disk(&["-v", "file", "{dir}/disk"], false).start();
    let mut client = open(&server, Headers::Structured);
    let worker = server.workers()[0];
    for death in 0..6 {
        work_until(&mut client, "another template serves", || {
            count(&server, "notice: the template was replaced") == death
        });
        kill_9(server.template());
    }
    work_until(&mut client, "that is too often", || {
        count(&server, "the template ended too often: it is replaced in ") == 1
    });
    work_for(&mut client, Duration::from_secs(3));
    assert_eq!(answer(&server), Answer::Disconnected);
    assert!(is_alive(worker));
    succeed(&mut client, &Ask::flush());
    assert!(server.stop().success());
}

#[test]
fn a_template_that_dies_again_and_again_without_a_client_ends_the_server() {
    let mut server = with_disk(&["-v", "file", "{dir}/disk"], false).start();
    for death in 0..6 {
        eventually("another template serves", || {
            count(&server, "notice: the template was replaced") == death
        });
        kill_9(server.template());
    }
    assert_eq!(server.wait().code(), Some(1));
    let text = server.stderr_text_after_end();
    assert!(text.contains("ended too often and is not replaced again"), "{text}");
}

#[test]
fn without_a_spawner_the_server_ends_with_its_last_client() {
    let mut server = with_disk(&["file", "{dir}/disk"], false).start();
    let mut client = open(&server, Headers::Structured);
    kill_9(spawner(&server));
    let _ = server.wait_for_stderr("the spawner has ended");
    assert_eq!(answer(&server), Answer::Greeting);
    kill_9(server.template());
    let _ = server.wait_for_stderr("no more clients are served");
    work_for(&mut client, Duration::from_secs(3));
    assert!(UnixStream::connect(server.socket()).is_err(), "nobody listens any more");
    client.disconnect().expect("sent");
    assert_eq!(server.wait().code(), Some(1));
}

/// What scripts leave behind is killed when the template ends; the spawner is not theirs.
#[test]
fn a_template_that_runs_scripts_is_replaced_more_than_once() {
    let script = "logscript=true";
    let server = with_disk(&["--filter=log", "file", "{dir}/disk", script], false).start();
    for _ in 0..2 {
        kill_9(server.template());
        assert_eq!(answer(&server), Answer::Greeting);
        assert!(Path::new(&format!("/proc/{}", spawner(&server))).exists());
    }
}

/// Nor is what was noted before: a log that began anew would hide how the template ended.
#[test]
fn a_replaced_template_goes_on_with_the_files_that_filters_write() {
    let parameters = ["logfile={dir}/log", "statsfile={dir}/stats"];
    let stack = ["--filter=log", "--filter=stats", "file", "{dir}/disk"];
    let mut server = with_disk(&[&stack[..], &parameters].concat(), false).start();
    let log = || fs::read_to_string(server.dir().join("log")).expect("a log");
    let mut client = open(&server, Headers::Simple);
    succeed(&mut client, &Ask::read(0, 512));
    eventually("the read is in the log", || log().contains("Read"));
    let before = log();
    kill_9(server.template());
    assert_eq!(answer(&server), Answer::Greeting);
    let after = log();
    assert!(after.len() > before.len() && after.starts_with(&before), "{before}\nand then {after}");
    succeed(&mut client, &Ask::read(0, 512));
    drop(client);
    assert!(server.stop().success());
}
