//! Accidents: processes killed in the middle of their work, disks that are full or too short. What
//! was flushed is kept, other clients go on, nothing is left behind, and the client learns what
//! happened.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use nbd_protocol::constants::NbdError;
use nbdkit_tests::client::Headers;
use nbdkit_tests::processes::{children, descendants, eventually, is_alive};
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, Server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::bystander::{Bystander, Work};
use super::processes::{kill_9, worker_of};
use super::{Connection, KIB, MIB, open, succeed};

/// A server of a file of 64 MiB, and whatever else it is to be started with.
fn file_server(more: &[&str]) -> Server {
    let arguments = [more, &["file", "{dir}/disk"]].concat();
    let builder = ours(&arguments);
    let file = std::fs::File::create(builder.dir().join("disk")).expect("created");
    file.set_len(64 * MIB).expect("resized");
    builder.start()
}

/// How many sockets the listener has open.
fn sockets_of(server: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", server.pid()))
        .expect("alive")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("read").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Writes and flushes 64 KiB at each of ten offsets from `start` on; then a load of writes that
/// nobody waits for, after `start` + 1 MiB.
fn write_and_go_on(client: &mut Connection, start: u64, value: u8) {
    for block in 0..10 {
        succeed(client, &Ask::write(start + block * 64 * KIB, vec![value; 65536]));
    }
    succeed(client, &Ask::flush());
    for block in 0..20 {
        client
            .send(&Ask::write(start + MIB + block * 64 * KIB, vec![!value; 65536]))
            .expect("sent");
    }
}

fn assert_flushed(server: &Server, start: u64, value: u8) {
    let file = std::fs::File::open(server.dir().join("disk")).expect("there");
    let mut data = vec![0; 640 << 10];
    file.read_exact_at(&mut data, start).expect("read");
    assert!(data.iter().all(|byte| *byte == value), "flushed data is on the disk");
}

#[test]
fn a_worker_killed_under_load_loses_nothing_that_was_flushed() {
    let mut server = file_server(&[]);
    let bystander = Bystander::start(&server, "kill -9 of workers", Work::Writes(60 * MIB));
    for round in 0..10 {
        let (worker, mut client) = worker_of(&server, || open(&server, Headers::Structured));
        let value = u8::try_from(round + 1).expect("small");
        write_and_go_on(&mut client, round * 4 * MIB, value);
        kill_9(worker);
        while client.receive().is_ok() {}
        assert_flushed(&server, round * 4 * MIB, value);
    }
    bystander.finish();
    for round in 0..10 {
        assert_flushed(&server, round * 4 * MIB, u8::try_from(round + 1).expect("small"));
    }
    eventually("no worker is left", || server.workers().is_empty());
    assert_eq!(names_in(server.dir().path()), ["disk", "pid", "sock"]);
    assert!(server.stop().success());
    // Like nbdkit's, these two stay.
    assert_eq!(names_in(server.dir().path()), ["disk", "pid", "sock"]);
}

#[test]
fn a_template_killed_under_load_is_replaced_and_its_workers_go_on() {
    let mut server = file_server(&[]);
    let mut client = open(&server, Headers::Structured);
    for round in 0..3 {
        let bystander =
            Bystander::start(&server, "kill -9 of the template", Work::ReadsZeroes(60 * MIB));
        let old = server.template();
        write_and_go_on(&mut client, round * 4 * MIB, 7);
        kill_9(old);
        for _ in 0..20 {
            assert_eq!(client.receive().expect("a reply").error, None);
        }
        assert_flushed(&server, round * 4 * MIB, 7);
        // Whoever comes meanwhile waits for the new one.
        succeed(&mut open(&server, Headers::Simple), &Ask::read(0, 512));
        bystander.finish();
    }
    client.disconnect().expect("sent");
    let everyone = children(server.pid().as_raw());
    assert!(server.stop().success());
    eventually("all have ended", || everyone.iter().all(|pid| !is_alive(*pid)));
    assert_eq!(names_in(server.dir().path()), ["disk", "pid", "sock"]);
}

/// As job control, a debugger and the freezer of control groups do it. epoll_wait(2) and receives
/// with a timeout end with EINTR then, though no signal is handled. signal(7).
#[test]
fn processes_that_are_stopped_and_continued_under_load_go_on() {
    let servers: [&[&str]; 4] =
        [&[], &["--isolation=shared"], &["--filter=cow"], &["--filter=noparallel"]];
    for arguments in servers {
        let mut server = file_server(arguments);
        let bystander = Bystander::start(&server, "stops and continuations", Work::Writes(MIB));
        for _ in 0..200 {
            for pid in [vec![server.pid().as_raw()], descendants(server.pid().as_raw())].concat() {
                // A worker may have ended meanwhile.
                let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
                std::thread::sleep(Duration::from_micros(200));
                let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        bystander.finish();
        assert!(server.stop().success(), "{arguments:?}");
    }
}

/// It has their sockets and has not come to making workers.
#[test]
fn clients_that_a_template_takes_with_it_are_served_by_the_next() {
    let mut server = file_server(&[]);
    let (old, idle) = (server.template(), sockets_of(&server));
    kill(Pid::from_raw(old), Signal::SIGSTOP).expect("a process of ours");
    let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
    // Each client's and its control channel's; it may have been about to make those to the spawner.
    eventually("they are handed over", || sockets_of(&server) >= idle + 8);
    drop(clients.remove(2));
    kill_9(old);
    for client in &mut clients {
        client.handshake().expect("a greeting");
        client.go("", &[]).expect("an export");
        succeed(client, &Ask::read(0, 512));
    }
    eventually("it has closed its sockets", || sockets_of(&server) < idle + 8);
    drop(clients);
    eventually("no worker is left", || server.workers().is_empty());
    assert!(server.stop().success());
}

#[test]
fn a_listener_killed_under_load_leaves_no_process_and_loses_nothing_that_was_flushed() {
    let mut server = file_server(&[]);
    let mut client = open(&server, Headers::Structured);
    write_and_go_on(&mut client, 0, 9);
    let template = server.template();
    let everyone = [server.workers(), vec![template]].concat();
    assert_eq!(everyone.len(), 2);
    server.signal(Signal::SIGKILL);
    let _ = server.wait();
    while client.receive().is_ok() {}
    assert_flushed(&server, 0, 9);
    eventually("all have ended", || everyone.iter().all(|pid| !is_alive(*pid)));
    // The names of socket and pid file stay, as after any kill -9; a new server takes the socket's
    // place.
    assert_eq!(names_in(server.dir().path()), ["disk", "pid", "sock"]);
}

#[test]
fn temporary_directories_of_scripts_and_private_sockets_go_with_the_server() {
    for killed in ["worker", "nothing"] {
        let builder = ours(&["eval", "get_size=echo 1M", "pread=head -c $3 /dev/zero"]);
        let tmp = builder.dir().join("tmp");
        let builder = builder.env("TMPDIR", tmp.clone());
        std::fs::create_dir(&tmp).expect("made");
        let mut server = builder.start();
        let (worker, mut client) = worker_of(&server, || open(&server, Headers::Simple));
        succeed(&mut client, &Ask::read(0, 512));
        if killed == "worker" {
            kill_9(worker);
            client.expect_close().expect("closed");
        }
        assert!(server.stop().success());
        assert_eq!(names_in(&tmp), [""; 0], "{killed} killed");
    }
}

/// Writes 64 KiB after 64 KiB until that fails, and says how.
fn fill(client: &mut Connection, blocks: u64) -> Option<NbdError> {
    (0..blocks).find_map(|block| {
        let data = vec![block as u8 | 1; 65536];
        client.call(&Ask::write(block * 64 * KIB, data)).expect("a reply").nbd_error()
    })
}

/// Mounts 2 MiB of tmpfs where nobody else sees it.
const SMALL_DISK: &str = r#"exec unshare -m sh -c 'mkdir "{dir}/small" && mount -t tmpfs -o size=2m none "{dir}/small" &&
    truncate -s 8M "{dir}/small/disk" && exec "$0" "$@"' "$0" "$@""#;

fn may_mount() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let may = root
        && std::process::Command::new("unshare")
            .args(["-m", "mount", "-t", "tmpfs", "none", "/mnt"])
            .status()
            .is_ok_and(|status| status.success());
    if !may {
        eprintln!("SKIPPED: mounting needs root and a mount namespace");
    }
    may
}

#[test]
fn a_full_disk_under_the_file_plugin_is_enospc_and_what_was_written_stays() {
    if !may_mount() {
        return;
    }
    let server = ours(&["file", "{dir}/small/disk"]).through_shell(SMALL_DISK).start();
    let mut client = open(&server, Headers::Structured);
    assert_eq!(fill(&mut client, 128), Some(NbdError::NoSpc));
    assert_eq!(succeed(&mut client, &Ask::read(0, 65536)), vec![1; 65536]);
    succeed(&mut client, &Ask::flush());
    // Room comes back when something is given up.
    succeed(&mut client, &Ask::trim(0, MIB));
    succeed(&mut client, &Ask::write(0, vec![5; 65536]));
}

#[test]
fn a_full_disk_under_the_cow_overlay_is_enospc_and_what_was_written_stays() {
    if !may_mount() {
        return;
    }
    let builder = ours(&["--filter=cow", "memory", "8M"]).through_shell(SMALL_DISK);
    let tmp = builder.dir().join("small");
    let server = builder.env("TMPDIR", tmp).start();
    let mut client = open(&server, Headers::Structured);
    assert_eq!(fill(&mut client, 128), Some(NbdError::NoSpc));
    assert_eq!(succeed(&mut client, &Ask::read(0, 65536)), vec![1; 65536]);
    assert_eq!(succeed(&mut client, &Ask::read(7 * MIB, 512)), [0; 512]);
}

/// setrlimit(2): EFBIG, and SIGXFSZ, which must not end the worker.
#[test]
fn a_limit_on_file_sizes_is_enospc() {
    let builder = ours(&["file", "{dir}/disk"]);
    let file = std::fs::File::create(builder.dir().join("disk")).expect("created");
    file.set_len(8 * MIB).expect("resized");
    // In blocks of 512 bytes.
    let server = builder.through_shell(r#"ulimit -f 2048; exec "$0" "$@""#).start();
    let mut client = open(&server, Headers::Structured);
    succeed(&mut client, &Ask::write(0, vec![1; 65536]));
    let reply = client.call(&Ask::write(4 * MIB, vec![1; 65536])).expect("a reply");
    assert_eq!(reply.nbd_error(), Some(NbdError::NoSpc), "{reply}");
    assert_eq!(succeed(&mut client, &Ask::read(0, 65536)), vec![1; 65536]);
}

#[test]
fn a_file_that_shrank_under_the_server_is_eio() {
    let server = file_server(&[]);
    let mut client = open(&server, Headers::Structured);
    let file =
        std::fs::OpenOptions::new().write(true).open(server.dir().join("disk")).expect("there");
    file.set_len(MIB).expect("resized");
    for length in [512, 64 * KIB, 256 * KIB, 8 * MIB] {
        let reply = client.call(&Ask::read(32 * MIB, length)).expect("a reply");
        assert_eq!(reply.nbd_error(), Some(NbdError::Io), "{length} bytes");
        let reply = client.call(&Ask::read(MIB - 256, length)).expect("a reply");
        assert_eq!(reply.nbd_error(), Some(NbdError::Io), "{length} bytes across the end");
    }
    assert_eq!(succeed(&mut client, &Ask::read(0, 512)), [0; 512]);
}

/// Errno by name, from a script.
#[test]
fn errors_of_a_plugin_arrive_as_what_they_are() {
    for (word, expected) in [
        ("EIO", NbdError::Io),
        ("ENOSPC", NbdError::NoSpc),
        ("EDQUOT", NbdError::NoSpc),
        ("EFBIG", NbdError::NoSpc),
        ("ENOMEM", NbdError::NoMem),
        ("EROFS", NbdError::Perm),
        ("ESHUTDOWN", NbdError::Shutdown),
    ] {
        let script = format!("pwrite=echo {word} no >&2; exit 1");
        let server =
            ours(&["eval", "get_size=echo 1M", "pread=head -c $3 /dev/zero", &script]).start();
        let mut client = open(&server, Headers::Structured);
        let reply = client.call(&Ask::write(0, vec![1; 512])).expect("a reply");
        assert_eq!(reply.nbd_error(), Some(expected), "{word}: {reply}");
        succeed(&mut client, &Ask::read(0, 512));
    }
}
