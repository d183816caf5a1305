//! Filters that do something beside the clients, in a process of its own: pause and exitwhen.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nbdkit_tests::processes::{children, children_called, descriptors, eventually, status};
use nbdkit_tests::server::ours;
use nbdkit_tests::tempdir::TempDir;
use nbdkit_tests::{Ask, Server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long what must not come is waited for.
const AWHILE: Duration = Duration::from_millis(300);

fn read() -> Ask {
    Ask::read(0, 512)
}

fn watcher(server: &Server) -> i32 {
    let mut watcher = None;
    eventually("there is a watcher", || {
        watcher = children_called(server.template(), "nbdkit:watcher").pop();
        watcher.is_some()
    });
    watcher.expect("just seen")
}

/// A connection to a control socket, whose answers come within a minute.
fn control(path: &Path) -> UnixStream {
    let control = UnixStream::connect(path).expect("a control socket");
    control.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    control
}

fn send(mut control: &UnixStream, commands: &[u8]) {
    control.write_all(commands).expect("a command");
}

fn receive(mut control: &UnixStream, count: usize) -> String {
    let mut answer = vec![0; count];
    control.read_exact(&mut answer).expect("an answer");
    String::from_utf8(answer).expect("text")
}

fn tell(path: &Path, commands: &[u8]) -> String {
    let mut control = control(path);
    send(&control, commands);
    control.shutdown(Shutdown::Write).expect("the end");
    let mut answers = String::new();
    control.read_to_string(&mut answers).expect("answers");
    answers
}

struct Paused {
    server: Server,
    path: PathBuf,
    dir: TempDir,
}

fn paused(filters_and_plugin: &[&str]) -> Paused {
    let dir = TempDir::new();
    let path = dir.join("control");
    let parameter = format!("pause-control={}", path.display());
    let arguments = [&["--filter=pause"], filters_and_plugin, &[&parameter]].concat();
    Paused { server: ours(&arguments).start(), path, dir }
}

#[test]
fn requests_of_all_clients_wait_until_they_may_go_on() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let Paused { mut server, path, dir: _dir } = paused(&[isolation, "memory", "1M"]);
        let mut clients = [server.connected(""), server.connected("")];
        assert_eq!(tell(&path, b"p\n"), "P");
        for client in &mut clients {
            let timeout = client.transport().read_timeout().expect("a timeout");
            client.transport().set_read_timeout(Some(AWHILE)).expect("a timeout");
            for ask in [read(), Ask::write(0, vec![1; 512]), Ask::flush(), Ask::trim(0, 512)] {
                client.send(&ask).expect("sent");
            }
            client.receive_raw(1).expect_err("an answer to a request that waits");
            client.transport().set_read_timeout(timeout).expect("a timeout");
        }
        assert_eq!(tell(&path, b"r"), "R");
        for client in &mut clients {
            for _ in 0..4 {
                assert_eq!(client.receive().expect("a reply").error, None);
            }
            assert_eq!(client.call(&read()).expect("a reply").error, None);
        }
        assert_eq!(tell(&path, b" rr\tpp\nxPRr"), "RRPPXXXR");
        server.stop();
        assert!(!path.exists(), "the control socket is left");
    }
}

#[test]
fn a_pause_waits_for_requests_under_way_and_not_for_those_of_the_dead() {
    for killed in [false, true] {
        let delay = if killed { "rdelay=1000" } else { "rdelay=1" };
        let Paused { server, path, dir: _dir } =
            paused(&["--filter=delay", "memory", "1M", delay, "-v"]);
        let mut client = server.connected("");
        let cookie = client.send(&read()).expect("sent");
        let _ = server.wait_for_stderr("delay: pread");
        let control = control(&path);
        send(&control, b"p");
        let _ = server.wait_for_stderr("pausing, waiting for requests to complete");
        if killed {
            control.set_nonblocking(true).expect("a flag");
            std::thread::sleep(AWHILE);
            (&control).read_exact(&mut [0]).expect_err("an answer while a request is under way");
            control.set_nonblocking(false).expect("a flag");
            kill(Pid::from_raw(server.workers()[0]), Signal::SIGKILL).expect("killed");
            assert_eq!(receive(&control, 1), "P");
        } else {
            // The reply was sent first, but the request is completed before that.
            assert_eq!(receive(&control, 1), "P");
            assert_eq!(client.receive().expect("a reply").cookie, cookie);
        }
        assert_eq!(tell_on(&control, b"r"), "R");
    }
}

fn tell_on(control: &UnixStream, command: &[u8]) -> String {
    send(control, command);
    receive(control, command.len())
}

#[test]
fn a_client_or_a_server_that_goes_does_not_wait_for_the_end_of_a_pause() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let Paused { mut server, path, dir: _dir } = paused(&[isolation, "memory", "1M", "-v"]);
        assert_eq!(tell(&path, b"p"), "P");
        let mut client = server.connected("");
        client.send(&read()).expect("sent");
        let _ = server.wait_for_stderr("memory: open");
        drop(client);
        let _ = server.wait_for_stderr("connection ended");
        let mut client = server.connected("");
        client.send(&read()).expect("sent");
        assert!(server.stop().success());
        assert!(!path.exists());
    }
}

#[test]
fn a_socket_that_was_left_is_replaced_and_a_file_is_not() {
    let dir = TempDir::new();
    let path = dir.join("control");
    let parameter = format!("pause-control={}", path.display());
    drop(UnixListener::bind(&path).expect("a socket"));
    drop(ours(&["--filter=pause", "null", &parameter]).start());
    std::fs::write(&path, "precious").expect("a file");
    let finished = ours(&["--filter=pause", "null", &parameter]).try_start();
    let stderr = finished.expect_err("refused").stderr;
    assert!(stderr.contains("control: Address already in use"), "{stderr}");
    assert_eq!(std::fs::read(&path).expect("the file"), b"precious");
    for (arguments, expected) in [
        (&["null"][..], "pause-control socket was not set"),
        (&["null", "pause-control="], "cannot make an empty path absolute"),
        (&["null", "pause-control=/nonexistent/x"], "/nonexistent/x: No such file or directory"),
    ] {
        let arguments = [&["--filter=pause"], arguments].concat();
        let finished = ours(&arguments).try_start().expect_err("refused");
        assert!(finished.stderr.contains(expected), "{}", finished.stderr);
        assert_eq!((finished.stderr.lines().count(), finished.status.code()), (1, Some(1)));
    }
    let long = format!("pause-control=/{}", "a".repeat(107));
    let finished = ours(&["--filter=pause", "null", &long]).try_start().expect_err("refused");
    assert!(finished.stderr.contains("too long: length 108 > max 107"), "{}", finished.stderr);
}

#[test]
fn a_watcher_is_confined_and_has_no_client_and_no_disk() {
    let dir = TempDir::new();
    let disk = dir.join("disk");
    std::fs::write(&disk, vec![0; 4096]).expect("a disk");
    let file = format!("file={}", disk.display());
    let Paused { server, path, dir: _dir } = paused(&["file", &file]);
    let mut client = server.connected("");
    assert_eq!(client.call(&read()).expect("a reply").error, None);
    let watcher = watcher(&server);
    eventually("the watcher is confined", || status(watcher, "Seccomp:") == 2);
    assert_eq!(status(watcher, "NoNewPrivs:"), 1);
    let open = descriptors(watcher);
    assert!(!open.contains(&disk), "{open:?}");
    let sockets = |pid: i32| {
        let open = descriptors(pid).into_iter();
        open.filter(|it| it.to_string_lossy().starts_with("socket:")).collect::<Vec<_>>()
    };
    // The control socket and the channel to the template, of which workers have neither.
    assert_eq!(sockets(watcher).len(), 2, "{open:?}");
    let workers: Vec<_> = server.workers().into_iter().flat_map(sockets).collect();
    assert!(sockets(watcher).iter().all(|socket| !workers.contains(socket)));
    kill(Pid::from_raw(watcher), Signal::SIGKILL).expect("killed");
    let log = server.wait_for_stderr("has ended");
    assert!(log.contains(&format!("the watcher of the pause filter (pid {watcher}) has ended")));
    // Clients are served all the same.
    assert_eq!(client.call(&read()).expect("a reply").error, None);
    assert!(path.exists());
}

#[test]
fn the_server_waits_for_another_client_for_a_grace_period() {
    // The first server would wait for longer than the test may take, the second not at all long.
    let long = ours(&["--filter=exitlast", "null", "exitlast-grace=1000", "-v"]).start();
    let watcher = watcher(&long);
    eventually("the watcher is confined", || status(watcher, "Seccomp:") == 2);
    for _ in 0..2 {
        long.connected("").disconnect().expect("goodbye");
        eventually("the worker ends", || long.workers().is_empty());
    }
    assert!(!long.stderr_text().contains("exiting on last client"));
    long.connected("").disconnect().expect("goodbye");
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let arguments = [isolation, "--filter=exitlast", "null", "exitlast-grace=10ms"];
        let mut server = ours(&arguments).start();
        let mut stays = server.connected("");
        server.connected("").disconnect().expect("goodbye");
        std::thread::sleep(AWHILE);
        assert_eq!(stays.call(&Ask::flush()).expect("a reply").error, None);
        stays.disconnect().expect("goodbye");
        assert_eq!(server.wait().code(), Some(0));
    }
    let mut server = ours(&["--filter=exitlast", "null", "exitlast-grace=10ms"]).start();
    let _client = server.connected("");
    kill(Pid::from_raw(server.workers()[0]), Signal::SIGKILL).expect("killed");
    assert_eq!(server.wait().code(), Some(0));
}

/// Of a server that runs with one event.
fn waiting_for(event: &str) -> Server {
    ours(&["--filter=exitwhen", "memory", "1M", event]).start()
}

/// The event happens while a client is there: that is served on, others are refused, and the server
/// ends after it.
fn check(mut server: Server, happen: impl FnOnce()) {
    let mut client = server.connected("");
    happen();
    eventually("clients are refused", || server.connect().greeting().is_err());
    assert_eq!(client.call(&read()).expect("a reply").error, None);
    assert_eq!(server.try_wait(), None, "ended with a client");
    client.disconnect().expect("goodbye");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn the_server_ends_after_its_clients_when_a_file_comes_or_goes() {
    let dir = TempDir::new();
    let [comes, goes] = ["comes", "goes"].map(|name| dir.join(name));
    let created = format!("exit-when-file-created={}", comes.display());
    check(waiting_for(&created), || std::fs::write(&comes, "").expect("a file"));
    // It is there already.
    let mut late = waiting_for(&created);
    assert_eq!(late.wait().code(), Some(0));
    std::fs::write(&goes, "").expect("a file");
    let deleted = format!("exit-when-file-deleted={}", goes.display());
    check(waiting_for(&deleted), || std::fs::remove_file(&goes).expect("removed"));
}

#[test]
fn a_server_without_clients_ends_when_a_directory_comes_with_its_file() {
    let dir = TempDir::new();
    let path = dir.join("directory");
    let event = format!("exit-when-file-created={}/file", path.display());
    // Nothing announces a file in a directory that is not there.
    let arguments = ["--filter=exitwhen", "null", &event, "exit-when-poll=1"];
    let mut server = ours(&arguments).start();
    watcher(&server);
    std::fs::create_dir(&path).expect("a directory");
    std::fs::write(path.join("file"), "").expect("a file");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn the_server_ends_after_its_clients_when_a_process_ends() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        // It ends when its input does, with this test at the latest.
        let mut process =
            Command::new("/bin/cat").stdin(Stdio::piped()).spawn().expect("a process");
        let event = format!("exit-when-process-exits={}", process.id());
        let server = ours(&[isolation, "--filter=exitwhen", "memory", "1M", &event]).start();
        check(server, || {
            drop(process.stdin.take());
            process.wait().expect("reaped");
        });
    }
}

#[test]
fn the_server_ends_after_its_clients_when_a_pipe_is_closed() {
    let dir = TempDir::new();
    let fifo = dir.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    // Opened for both, so that neither open waits for the other end.
    let both = std::fs::File::options().read(true).write(true).open(&fifo).expect("the pipe");
    let script = format!("exec \"$0\" \"$@\" 5<{}", fifo.display());
    let server = ours(&["--filter=exitwhen", "memory", "1M", "exit-when-pipe-closed=5"]);
    check(server.through_shell(&script).start(), || drop(both));
}

#[test]
fn a_script_says_when_and_its_failures_are_logged() {
    let dir = TempDir::new();
    let path = dir.join("status");
    std::fs::write(&path, "0").expect("a file");
    let script = format!("exit-when-script=exit $(cat {})", path.display());
    let server = waiting_for(&script);
    let watcher = watcher(&server);
    eventually("the watcher is confined", || status(watcher, "Seccomp:") == 2);
    std::fs::write(&path, "3").expect("a file");
    let mut client = server.connected("");
    let _ = server.wait_for_stderr("exit-when-script: command failed with exit code 3");
    assert_eq!(client.call(&read()).expect("a reply").error, None);
    drop(client);
    check(server, || std::fs::write(&path, "88").expect("a file"));
}

#[test]
fn a_script_that_hangs_ends_with_the_server() {
    let dir = TempDir::new();
    let script = format!("exit-when-script=touch {0}/ran; sleep 600", dir.path().display());
    let mut server = waiting_for(&script);
    let watcher = watcher(&server);
    eventually("the script runs", || dir.join("ran").exists() && !children(watcher).is_empty());
    let running = children(watcher);
    assert!(server.stop().success());
    eventually("the script ends", || running.iter().all(|pid| children(*pid).is_empty()));
    eventually("it is gone", || running.iter().all(|pid| !nbdkit_tests::processes::is_alive(*pid)));
}

#[test]
fn events_that_cannot_be_stop_the_start() {
    for (event, expected) in [
        ("exit-when-pipe-closed=99", "exit-when-pipe-closed=99: invalid file descriptor"),
        ("exit-when-pipe-closed=1", "file descriptor must be > 2"),
        ("exit-when-process-exits=99999999", "process 99999999: No such process"),
        ("exit-when-process-exits=-1", "negative numbers are not allowed"),
        ("exit-when-file-created=", "cannot make an empty path absolute"),
        ("exit-when-poll=-1", "negative numbers are not allowed"),
        ("exit-when-poll=x", "exit-when-poll: could not parse number"),
    ] {
        let finished = ours(&["--filter=exitwhen", "null", event]).try_start();
        let finished = finished.expect_err(event);
        assert!(finished.stderr.contains(expected), "{}", finished.stderr);
        assert_eq!((finished.stderr.lines().count(), finished.status.code()), (1, Some(1)));
    }
}
