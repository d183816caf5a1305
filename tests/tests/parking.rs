//! Clients that are idle give up their processes, and do not notice. Ours only.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nbd_protocol::constants::CommandFlags;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::client::Client;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::{Ask, Server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A server whose clients are parked after a second and a quarter.
fn start(arguments: &[&str]) -> Server {
    Server::nbdkit(["--park-idle=1"]).args(arguments).binary(Binary::ours()).start()
}

/// A server of a file that begins with "old".
fn of_file(arguments: &[&str]) -> (Server, PathBuf) {
    let builder = Server::nbdkit(["--park-idle=1"]).args(arguments).arg("file");
    let path = builder.dir().path().join("disk");
    std::fs::write(&path, [&b"old"[..], &[0; 1 << 20]].concat()).expect("written");
    (builder.arg(&path).binary(Binary::ours()).start(), path)
}

fn parked(server: &Server) {
    eventually("all clients are parked", || server.workers().is_empty());
}

/// Longer than it takes to be parked.
fn wait() {
    std::thread::sleep(Duration::from_millis(2500));
}

fn read(client: &mut Client<UnixStream>, length: u64) -> Vec<u8> {
    let reply = client.call(&Ask::read(0, length)).expect("a reply");
    assert_eq!(reply.error, None);
    reply.data
}

fn done(client: &mut Client<UnixStream>, ask: &Ask) {
    assert_eq!(client.call(ask).expect("a reply").error, None, "{ask:?}");
}

#[test]
fn an_idle_client_has_no_process_and_its_next_request_is_served_as_if_it_had() {
    let server = start(&["--filter=cow", "--filter=offset", "memory", "1M", "offset=512"]);
    let mut clients: Vec<_> = (0..20).map(|_| server.connected("")).collect();
    done(&mut clients[7], &Ask::write(0, *b"mine"));
    done(&mut clients[7], &Ask::flush());
    parked(&server);
    // All at once: each has its own reply.
    for client in &mut clients {
        client.send(&Ask::read(0, 4)).expect("sent");
    }
    for client in &mut clients {
        assert_eq!(client.receive().expect("a reply").data, b"mine");
    }
    parked(&server);
    assert_eq!(read(&mut clients[0], 4), b"mine");
    // A client that leaves while it is parked leaves nothing behind.
    drop(clients);
    parked(&server);
    assert_eq!(read(&mut server.connected(""), 4), b"mine");
}

#[test]
fn a_parked_client_keeps_its_file_when_another_takes_its_place() {
    // More clients than the template keeps descriptions of the file for.
    for count in [1, 20] {
        let (server, path) = of_file(&[]);
        let mut clients: Vec<_> = (0..count).map(|_| server.connected("")).collect();
        parked(&server);
        let other = path.with_extension("new");
        std::fs::write(&other, [&b"new"[..], &[0; 1 << 20]].concat()).expect("written");
        std::fs::rename(&other, &path).expect("renamed");
        let mut new = server.connected("");
        for client in &mut clients {
            assert_eq!(read(client, 3), b"old");
        }
        done(&mut clients[0], &Ask::write(0, *b"OLD").flags(CommandFlags::FUA));
        assert_eq!(read(&mut new, 3), b"new");
        // The template has never had the new one open.
        eventually("all others are parked", || server.workers().len() == 1);
        std::fs::remove_file(&path).expect("removed");
        assert_eq!((read(&mut clients[0], 3), read(&mut new, 3)), (b"OLD".into(), b"new".into()));
    }
}

/// Whether the template has a file open that is not at its path any more.
fn template_holds_removed_file(server: &Server) -> bool {
    nbdkit_tests::processes::descriptors(server.template())
        .iter()
        .any(|target| target.to_string_lossy().contains("disk (deleted)"))
}

#[test]
fn a_removed_file_is_given_up_with_its_last_client() {
    let (server, path) = of_file(&[]);
    let (mut first, second) = (server.connected(""), server.connected(""));
    parked(&server);
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(read(&mut first, 3), b"old");
    assert!(template_holds_removed_file(&server));
    drop(second);
    assert_eq!(read(&mut first, 3), b"old");
    drop(first);
    eventually("the file is closed", || !template_holds_removed_file(&server));
}

#[test]
fn a_client_with_unflushed_writes_keeps_its_process() {
    let (server, _) = of_file(&[]);
    let mut client = server.connected("");
    for ask in [Ask::write(0, *b"x"), Ask::trim(0, 4096), Ask::write_zeroes(0, 4096)] {
        done(&mut client, &ask);
        wait();
        assert_eq!(server.workers().len(), 1, "{ask:?}");
        done(&mut client, &Ask::flush());
        parked(&server);
    }
    // A large one is spliced.
    done(&mut client, &Ask::write(0, vec![1; 512 << 10]));
    wait();
    assert_eq!(server.workers().len(), 1);
    drop(client);
    let mut client = server.connected("");
    done(&mut client, &Ask::write(0, *b"x").flags(CommandFlags::FUA));
    parked(&server);
}

#[test]
fn who_does_not_want_it_and_stacks_that_cannot_do_it_keep_their_processes() {
    let log = "--filter=log";
    for arguments in [
        &["--park-idle=0", "memory", "1M"][..],
        &[log, "memory", "1M", "logfile=/dev/null"],
        &["info", "time"],
        &["--filter=noparallel", "memory", "1M", "serialize=connections"],
        &["--max-connections=1", "memory", "1M"],
    ] {
        let server = start(arguments);
        let mut client = server.connected("");
        wait();
        assert_eq!(server.workers().len(), 1, "{arguments:?}");
        read(&mut client, 1);
    }
}

#[test]
fn the_end_of_the_server_is_the_end_of_parked_clients() {
    let mut server = start(&["--log-connections", "memory", "1M"]);
    let mut client = server.connected("x");
    assert_eq!(read(&mut client, 1000).len(), 1000);
    parked(&server);
    assert_eq!(read(&mut client, 24).len(), 24);
    parked(&server);
    let begin = Instant::now();
    assert_eq!(server.stop().code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(4));
    client.expect_close().expect("closed");
    let text = server.stderr_text_after_end();
    let line = "connection ended: shutdown";
    let notice = text.lines().find(|it| it.contains(line)).expect(line);
    assert!(notice.contains("1024 bytes read, 0 written"), "{notice}");
}

#[test]
fn a_parked_client_outlives_the_template_if_the_next_one_serves_the_same_disk() {
    let (server, _) = of_file(&[]);
    let mut client = server.connected("");
    parked(&server);
    let before = server.template();
    kill(Pid::from_raw(before), Signal::SIGKILL).expect("killed");
    assert_eq!(read(&mut client, 3), b"old");
    assert_ne!(server.template(), before);
    let server = start(&["memory", "1M"]);
    let mut client = server.connected("");
    parked(&server);
    kill(Pid::from_raw(server.template()), Signal::SIGKILL).expect("killed");
    client.expect_close().expect("closed");
}

#[test]
fn a_client_that_has_part_of_a_request_in_flight_is_not_lost() {
    let server = start(&["memory", "1M"]);
    let mut client = server.connected("");
    parked(&server);
    let request = nbd_protocol::transmission::Request {
        flags: CommandFlags::empty(),
        command: nbd_protocol::constants::Command::READ,
        cookie: 9,
        offset: 0,
        length: 4,
    };
    let bytes = request.encode();
    client.send_raw(&bytes[..5]).expect("sent");
    wait();
    client.send_raw(&bytes[5..]).expect("sent");
    assert_eq!(client.receive_raw(16 + 4).expect("a reply")[8..16], 9_u64.to_be_bytes());
}
