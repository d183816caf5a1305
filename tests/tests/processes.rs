//! The process picture: a listener, a template, and a worker for every client, which ends when its
//! client goes. Nothing is left behind: no process, no descriptor, no memory file. Ours only;
//! Debian's nbdkit is one process.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nbd_protocol::constants::NbdError;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::processes::{descriptors, eventually};
use nbdkit_tests::{Ask, Server};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

/// One process of the server, from /proc.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    pid: i32,
    parent: i32,
    state: char,
    executable: String,
}

fn process(pid: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let executable = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let executable =
        executable.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    Some(Process { pid, parent, state, executable: executable.unwrap_or_default() })
}

/// All descendants of `ancestor`.
fn descendants(ancestor: i32) -> BTreeSet<Process> {
    let all: Vec<Process> = std::fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(process)
        .collect();
    let mut found = BTreeSet::new();
    let mut parents = vec![ancestor];
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|process| process.parent == parent) {
            found.insert(process.clone());
            parents.push(process.pid);
        }
    }
    found
}

fn listener(server: &Server) -> i32 {
    server.pid().as_raw()
}

/// The template and the workers of a running server.
fn family(server: &Server) -> (Process, Vec<Process>) {
    let all = descendants(listener(server));
    // The spawner is the listener's child too.
    let is_template =
        |it: &&Process| it.parent == listener(server) && it.executable == "nbdkit-worker";
    let template = all.iter().find(is_template).expect("a template").clone();
    let workers = all.into_iter().filter(|process| process.parent == template.pid).collect();
    (template, workers)
}

/// Whoever is not root may not look at the descriptors of confined processes, not even of their
/// own.
fn start(arguments: &[&str]) -> Server {
    let options: &[&str] = if geteuid().is_root() { &[] } else { &["--sandbox=off"] };
    Server::nbdkit(options).args(arguments).binary(Binary::ours()).start()
}

#[test]
fn every_client_has_a_process_of_its_own() {
    let server = start(&["memory", "1M"]);
    let mut clients: Vec<_> = (0..3).map(|_| server.connected("")).collect();
    let (template, workers) = family(&server);
    assert_eq!(process(listener(&server)).expect("alive").executable, "nbdkit");
    assert_eq!(template.executable, "nbdkit-worker");
    assert_eq!(workers.len(), 3, "{workers:?}");
    assert!(workers.iter().all(|worker| worker.executable == "nbdkit-worker"));
    // What one writes the others read, though it is another process that wrote it.
    assert_eq!(clients[0].call(&Ask::write(100, *b"shared")).expect("a reply").error, None);
    for client in &mut clients {
        assert_eq!(client.call(&Ask::read(100, 6)).expect("a reply").data, b"shared");
    }
    drop(clients);
    eventually("workers end with their clients", || family(&server).1.is_empty());
}

#[test]
fn the_listener_holds_no_client_after_the_hand_over() {
    let server = start(&["--park-idle=0", "memory", "1M"]);
    // Whoever is served finds the server completely started.
    let _first = server.connected("");
    let (template, workers) = family(&server);
    let handed_over = |worker: i32| {
        // The worker must have a socket that neither listener nor template has.
        eventually("nobody else has the client's socket", || {
            client_socket_is_only_in(worker, &[listener(&server), template.pid])
        });
        descriptors(listener(&server)).len()
    };
    let with_one = handed_over(workers[0].pid);
    let second = server.connected("");
    let (_, both) = family(&server);
    let new = both.iter().find(|it| it.pid != workers[0].pid).expect("another worker");
    // The two descriptors more that the listener has are the worker's control channel and the
    // handle on its process.
    assert_eq!(handed_over(new.pid), with_one + 2);
    drop(second);
    eventually("the channel goes with the worker", || {
        descriptors(listener(&server)).len() == with_one
    });
}

/// The worker has two sockets of its own, control channel and client; the others have only the
/// first one's other end.
fn client_socket_is_only_in(worker: i32, others: &[i32]) -> bool {
    let sockets = |pid| -> BTreeSet<PathBuf> {
        descriptors(pid)
            .into_iter()
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .collect()
    };
    let elsewhere: BTreeSet<PathBuf> = others.iter().flat_map(|pid| sockets(*pid)).collect();
    sockets(worker).difference(&elsewhere).count() == 2
}

#[test]
fn two_hundred_clients_leave_nothing_behind() {
    let server = start(&["--filter=cow", "memory", "16M"]);
    // A client that is served has found the server completely started. The listener has three
    // descriptors for it: the control channel, the handle on the process, and, since it may be
    // parked, its socket.
    let mut first = server.connected("");
    let (template, _) = family(&server);
    let open = || (descriptors(listener(&server)).len(), descriptors(template.pid).len());
    let (listener_serving, template_serving) = open();
    let before = (listener_serving - 3, template_serving);
    first.disconnect().expect("sent");
    eventually("the listener closes what it had for the first worker", || open() == before);
    for round in 0..200 {
        let mut client = server.connected("");
        assert_eq!(
            client.call(&Ask::write(round * 4096, vec![1; 4096])).expect("a reply").error,
            None
        );
        if round % 2 == 0 {
            client.disconnect().expect("sent");
        }
    }
    eventually("all workers end", || family(&server).1.is_empty());
    let zombies: Vec<_> =
        descendants(listener(&server)).into_iter().filter(|p| p.state == 'Z').collect();
    assert_eq!(zombies, []);
    eventually("listener and template have the descriptors of before", || open() == before);
}

#[test]
fn a_killed_worker_takes_only_its_own_client_with_it() {
    let server = start(&["memory", "1M"]);
    let mut survivor = server.connected("");
    let (_, first) = family(&server);
    let mut victim = server.connected("");
    let (_, both) = family(&server);
    let is_new = |worker: &&Process| first.iter().all(|known| known.pid != worker.pid);
    let killed = both.iter().find(is_new).expect("a second worker");
    assert_eq!(victim.call(&Ask::write(0, *b"before")).expect("a reply").error, None);
    kill(Pid::from_raw(killed.pid), Signal::SIGKILL).expect("killed");
    victim.expect_close().expect("closed");
    assert_eq!(survivor.call(&Ask::read(0, 6)).expect("a reply").data, b"before");
    assert_eq!(server.connected("").call(&Ask::read(0, 6)).expect("a reply").data, b"before");
    let text = server.wait_for_stderr("killed by signal 9");
    assert!(text.contains("[2]"), "the report names the connection: {text}");
}

#[test]
fn killing_workers_under_load_harms_nobody_else() {
    let server = start(&["--filter=cow", "memory", "4M"]);
    let mut survivor = server.connected("");
    let (_, mine) = family(&server);
    for round in 0..20_u64 {
        let mut victim = server.connected("");
        for block in 0..8 {
            victim.send(&Ask::write(block * 65536, vec![round as u8; 65536])).expect("sent");
        }
        let (_, all) = family(&server);
        for worker in all.iter().filter(|worker| mine.iter().all(|known| known.pid != worker.pid)) {
            let _ = kill(Pid::from_raw(worker.pid), Signal::SIGKILL);
        }
        let data = vec![round as u8; 4096];
        assert_eq!(survivor.call(&Ask::write(2 << 20, data.clone())).expect("a reply").error, None);
        assert_eq!(survivor.call(&Ask::flush()).expect("a reply").error, None);
        assert_eq!(survivor.call(&Ask::read(2 << 20, 4096)).expect("a reply").data, data);
    }
}

#[test]
fn the_template_is_made_anew_when_it_dies() {
    let server = start(&["null", "1M"]);
    let mut client = server.connected("");
    let (template, _) = family(&server);
    kill(Pid::from_raw(template.pid), Signal::SIGKILL).expect("killed");
    eventually("there is another template", || {
        descendants(listener(&server)).iter().any(|process| {
            process.parent == listener(&server)
                && process.executable == "nbdkit-worker"
                && process.pid != template.pid
                && process.state != 'Z'
        })
    });
    assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").data, [0; 512]);
    assert_eq!(server.connected("").call(&Ask::read(0, 512)).expect("a reply").data, [0; 512]);
}

#[test]
fn nothing_outlives_a_killed_listener() {
    let mut server = start(&["memory", "1M"]);
    let mut client = server.connected("");
    let everyone = descendants(listener(&server));
    assert_eq!(everyone.len(), 2);
    server.signal(Signal::SIGKILL);
    let _ = server.wait();
    client.expect_close().expect("closed");
    eventually("template and worker end", || {
        everyone.iter().all(|known| process(known.pid).is_none_or(|now| now.state == 'Z'))
    });
}

/// A client has disconnected, and its requests are still waited for: nbdkit-delay-filter(1).
#[test]
fn a_killed_listener_takes_with_it_what_waits_for_the_stack() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let mut server = start(&[isolation, "--filter=delay", "memory", "1M", "delay-read=3600"]);
        let mut client = server.connected("");
        client.send(&Ask::read(0, 1)).expect("sent");
        client.send(&Ask::read(1, 1)).expect("sent");
        client.disconnect().expect("sent");
        let everyone = descendants(listener(&server));
        assert!(!everyone.is_empty());
        drop(client);
        server.signal(Signal::SIGKILL);
        let _ = server.wait();
        eventually("all others end", || {
            everyone.iter().all(|known| process(known.pid).is_none_or(|now| now.state == 'Z'))
        });
    }
}

/// What waits in the name of a client is waited for as long as its requests are served.
#[test]
fn stopping_the_server_finishes_running_requests() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        for (delay, error) in [("500ms", None), ("3600", Some(NbdError::Shutdown))] {
            let delay = format!("wdelay={delay}");
            let mut server = start(&[isolation, "--filter=delay", "memory", "1M", &delay]);
            // Behind another server, which waits for it.
            let mut upstream = None;
            if error.is_none() {
                let socket = format!("socket={}", server.socket().display());
                let proxy = start(&[isolation, "nbd", &socket]);
                upstream = Some(std::mem::replace(&mut server, proxy));
            }
            let mut client = server.connected("");
            client.send(&Ask::write(0, *b"late")).expect("sent");
            std::thread::sleep(Duration::from_millis(100));
            for server in upstream.iter_mut().chain([&mut server]) {
                server.signal(Signal::SIGTERM);
            }
            let reply = client.receive().expect("every request is answered");
            assert_eq!(reply.nbd_error(), error, "{isolation} {delay}");
            for server in upstream.iter_mut().chain([&mut server]) {
                assert!(server.wait().success());
            }
        }
    }
}

/// Its worker may be told to end before it has begun to listen for that.
#[test]
fn a_client_that_has_just_come_is_not_killed_when_the_server_stops() {
    for round in 0..40 {
        let mut server = start(&["memory", "1M"]);
        let _client = server.connect();
        std::thread::sleep(Duration::from_micros(200) * (round % 20));
        server.signal(Signal::SIGTERM);
        let log = server.stderr_text_after_end();
        assert!(!log.contains("did not finish"), "{round}: {log}");
    }
}

/// A client that connects again if it is disconnected must not see an error: the machine's root
/// disk is on it.
#[test]
fn no_request_of_a_client_that_pauses_fails_when_the_server_stops() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let mut server = start(&[isolation, "memory", "1M"]);
        let mut client = server.connected("");
        for round in 0.. {
            let asked = client.send(&Ask::write(0, [7; 4096]));
            // Some in a row, then a pause.
            if round % 8 == 7 {
                std::thread::sleep(Duration::from_millis(60));
            }
            if round == 20 {
                server.signal(Signal::SIGTERM);
            }
            match asked.and_then(|_| client.receive()) {
                Ok(reply) => assert_eq!(reply.error, None, "{isolation} {round}"),
                Err(_) => break,
            }
            assert!(round < 1000, "{isolation}: it is not disconnected");
        }
        assert!(server.wait().success());
    }
}

/// Whether a client that always has eight writes in flight can send until it reads that the server
/// stops. None if it was not scheduled for so long that the server had to take it for a quiet one.
fn can_send_until_told(isolation: &str) -> Option<bool> {
    const QUIET: Duration = Duration::from_millis(20);
    let mut server = start(&[isolation, "memory", "1M"]);
    let mut client = server.connected("");
    let write = Ask::write(0, [7; 4096]);
    for _ in 0..8 {
        client.send(&write).expect("the server reads");
    }
    let (mut owed, mut answered, mut stops) = (8, 0, false);
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    let mut sends = true;
    while sends && owed > 0 {
        let reply = client.receive().expect("every request is answered");
        owed -= 1;
        answered += 1;
        if answered == 1000 {
            server.signal(Signal::SIGTERM);
        }
        stops |= reply.nbd_error() == Some(NbdError::Shutdown);
        if !stops {
            assert_eq!(reply.error, None);
            sends = client.send(&write).is_ok();
            owed += 1;
        }
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    if sends {
        client.expect_close().expect("closed");
        assert!(server.wait().success());
    } else if longest >= QUIET {
        return None;
    }
    Some(sends)
}

/// A client that is in the middle of its work, as the kernel's is: a send that failed would have it
/// close its socket, and lose the replies that it has not read yet.
#[test]
fn a_client_can_send_until_it_has_read_that_the_server_stops() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        for _ in 0..2 {
            let outcome = (0..20).find_map(|_| can_send_until_told(isolation));
            assert_eq!(outcome, Some(true), "{isolation}");
        }
    }
}

#[test]
fn the_programs_run_as_the_user_that_was_asked_for() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: changing the user needs root");
        return;
    }
    let server = start(&["-u", "nobody", "-g", "nogroup", "memory", "1M"]);
    let client = server.connected("");
    let nobody = nix::unistd::User::from_name("nobody").expect("looked up").expect("nobody exists");
    let (template, workers) = family(&server);
    for pid in workers.iter().map(|worker| worker.pid).chain([template.pid]) {
        assert_eq!(
            std::fs::metadata(format!("/proc/{pid}")).expect("alive").uid(),
            nobody.uid.as_raw()
        );
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("alive");
        let groups =
            status.lines().find_map(|line| line.strip_prefix("Groups:")).expect("a line of groups");
        let gid = nix::unistd::Group::from_name("nogroup").expect("looked up").expect("exists").gid;
        assert_eq!(groups.trim(), gid.to_string());
    }
    drop(client);
}

#[test]
fn an_idle_connection_keeps_one_socket() {
    let server = start(&["null", "1M"]);
    let mut client = server.connected("");
    let ours = client.transport().as_raw_fd();
    assert!(ours > 2);
    let (_, workers) = family(&server);
    let threads =
        std::fs::read_dir(format!("/proc/{}/task", workers[0].pid)).expect("alive").count();
    assert_eq!(threads, 1, "nothing that may wait, no thread but one");
}

#[test]
fn a_worker_gives_back_what_an_idle_client_does_not_need_and_serves_it_again() {
    // A disk that takes no memory itself.
    let server = start(&["null", "64M"]);
    let mut client = server.connected("");
    let (_, workers) = family(&server);
    for round in 0..3 {
        let written = vec![round; 4 << 20];
        assert_eq!(client.call(&Ask::write(0, written)).expect("a reply").error, None);
        assert_eq!(client.call(&Ask::read(0, 4 << 20)).expect("a reply").data, [0; 4 << 20]);
        eventually("it has little memory of its own", || anonymous_memory(workers[0].pid) < 1024);
    }
}

/// Memory of a process that is no file's, also what it shares with the template, KiB.
/// proc_pid_smaps(5).
fn anonymous_memory(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("alive");
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("a line");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// What clients wrote is in memory that only the dead template could hand on: a new one would offer
/// another disk under the same name.
#[test]
fn a_template_that_holds_data_is_not_made_anew() {
    let mut server = start(&["memory", "1M"]);
    let mut client = server.connected("");
    assert_eq!(client.call(&Ask::write(0, *b"kept")).expect("a reply").error, None);
    let (template, _) = family(&server);
    kill(Pid::from_raw(template.pid), Signal::SIGKILL).expect("killed");
    let _ = server.wait_for_stderr("no more clients are served");
    assert!(UnixStream::connect(server.socket()).is_err(), "nobody listens any more");
    assert_eq!(client.call(&Ask::read(0, 4)).expect("a reply").data, b"kept");
    client.disconnect().expect("sent");
    assert_eq!(server.wait().code(), Some(1));
}

#[test]
fn a_worker_has_no_channel_but_its_own() {
    let server = start(&["null", "1M"]);
    let _client = server.connected("");
    let (template, workers) = family(&server);
    let sockets = |pid| -> BTreeSet<PathBuf> {
        let targets = descriptors(pid).into_iter();
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).collect()
    };
    assert_eq!(sockets(template.pid).intersection(&sockets(workers[0].pid)).count(), 0);
}

#[test]
fn a_serving_listener_keeps_the_right_to_signal_and_nothing_else() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: only root has capabilities to give up");
        return;
    }
    let server = start(&["-u", "nobody", "null", "1M"]);
    let mut client = server.connected("");
    assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").data, [0; 512]);
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", listener(&server))).expect("alive");
    let set = |name: &str| {
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of status");
        u64::from_str_radix(line.trim(), 16).expect("a mask")
    };
    let cap_kill = 1 << 5;
    for (name, most) in
        [("CapEff:", cap_kill), ("CapPrm:", cap_kill), ("CapInh:", 0), ("CapAmb:", 0)]
    {
        assert_eq!(set(name) & !most, 0, "{name}");
    }
    // That is enough to replace a template of root's making, and to end workers of another user.
    let (template, _) = family(&server);
    kill(Pid::from_raw(template.pid), Signal::SIGKILL).expect("killed");
    eventually("there is another template", || {
        descendants(listener(&server)).iter().any(|process| {
            process.parent == listener(&server)
                && process.executable == "nbdkit-worker"
                && process.pid != template.pid
                && process.state != 'Z'
        })
    });
    assert_eq!(server.connected("").call(&Ask::read(0, 512)).expect("a reply").data, [0; 512]);
}

/// Where mounts do not propagate, as in many containers.
const WITH_A_FILE_SYSTEM: &str = r#"exec unshare -m --propagation private sh -c '
    mkdir "{dir}/stick" && mount -t tmpfs none "{dir}/stick" && echo data >"{dir}/stick/file" &&
    exec "$0" "$@"' "$0" "$@""#;

/// inotify(7): IN_UNMOUNT is sent when the file system is gone, not when one of its mounts is.
#[test]
fn a_file_system_that_is_unmounted_is_released_while_a_client_has_another_disk() {
    let arguments: [&[&str]; 2] = [&["file", "{dir}/disk"], &["--sandbox=compat", "null", "1M"]];
    for arguments in arguments {
        let builder = Server::nbdkit(arguments).binary(Binary::ours());
        std::fs::write(builder.dir().join("disk"), vec![0; 1 << 20]).expect("written");
        let builder = builder.through_shell(WITH_A_FILE_SYSTEM);
        let server = match builder.try_start() {
            Ok(server) => server,
            Err(finished) if finished.stderr.contains("not permitted") => {
                return eprintln!("SKIPPED: mounting needs root: {}", finished.stderr);
            }
            Err(finished) => panic!("{}", finished.stderr),
        };
        let mut client = server.connected("");
        let pid = server.pid().to_string();
        let stick = server.dir().join("stick");
        let seen_by_server = format!("/proc/{pid}/root{}/file", stick.display());
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
        inotify
            .add_watch(seen_by_server.as_str(), AddWatchFlags::IN_DELETE_SELF)
            .expect("the server sees it");
        let mut nsenter = std::process::Command::new("nsenter");
        let unmounted = nsenter.args(["-t", &pid, "-m", "umount"]).arg(&stick).status();
        assert!(unmounted.expect("util-linux").success());
        let is_gone = || {
            let events = inotify.read_events().unwrap_or_default();
            events.iter().any(|event| event.mask.contains(AddWatchFlags::IN_UNMOUNT))
        };
        eventually("the file system is released", is_gone);
        assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").data, [0; 512]);
        assert_eq!(server.connected("").call(&Ask::read(0, 512)).expect("a reply").data, [0; 512]);
    }
}
