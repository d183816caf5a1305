//! `-s`: one client on standard input and output, as inetd(8) starts a server.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::mpsc;

use nbd_protocol::constants::{Command, CommandFlags, Opt};
use nbd_protocol::handshake::{InfoRequest, encode_option};
use nbd_protocol::transmission::Request;
use nbdkit_tests::{Ask, Single};

use crate::support::{DEADLINE, assert_refused, nbdkit, open};

/// All that a client of simple replies says: NBD_OPT_GO, one read, goodbye.
fn conversation() -> Vec<u8> {
    // Fixed newstyle, no zeroes.
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    let mut payload = Vec::new();
    InfoRequest::encode(&mut payload, "", &[]);
    encode_option(&mut bytes, Opt::GO, &payload);
    for (command, cookie, length) in [(Command::READ, 1, 8), (Command::DISC, 2, 0)] {
        let flags = CommandFlags::empty();
        bytes.extend(Request { flags, command, cookie, offset: 0, length }.encode());
    }
    bytes
}

/// Feeds the server's standard input by a pipe and gives its exit status and all it wrote to
/// another.
fn over_pipes(options: &[&str], bytes: &[u8]) -> (Option<i32>, Vec<u8>) {
    let mut child = nbdkit(options)
        .args(["pattern", "1M"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdin.write_all(bytes).unwrap();
    drop(stdin);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = Vec::new();
        let _ = stdout.read_to_end(&mut output);
        let _ = sender.send((child.wait().unwrap().code(), output));
    });
    receiver.recv_timeout(DEADLINE).expect("the server ends with its input")
}

#[test]
fn a_conversation_over_two_pipes() {
    for option in ["-s", "--single", "--stdin"] {
        let (status, output) = over_pipes(&[option], &conversation());
        assert_eq!(status, Some(0), "{option}");
        assert!(output.starts_with(b"NBDMAGICIHAVEOPT"), "{option}: {output:02x?}");
        // The last that comes is the simple reply: magic, no error, cookie 1, eight bytes of
        // pattern at offset 0.
        let reply = [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &1_u64.to_be_bytes(), &[0; 8]];
        assert!(output.ends_with(&reply.concat()), "{option}: {output:02x?}");
    }
}

#[test]
fn input_that_ends_at_once_ends_the_server() {
    let (status, output) = over_pipes(&["-s"], &[]);
    assert_eq!(status, Some(0));
    assert!(output.starts_with(b"NBDMAGIC"));
}

#[test]
fn input_that_ends_in_the_middle_of_a_request_ends_the_server() {
    let whole = conversation();
    let (_, output) = over_pipes(&["-s"], &whole[..whole.len() - 40]);
    assert!(output.starts_with(b"NBDMAGIC"));
}

#[test]
fn a_client_on_a_socket_pair_is_served_until_it_says_goodbye() {
    let (mut server, mut client) = Single::start(["memory", "1M"]);
    open(&mut client);
    assert_eq!(client.call(&Ask::write(0, *b"inetd")).expect("a reply").error, None);
    assert_eq!(client.call(&Ask::read(0, 5)).expect("a reply").data, b"inetd");
    client.disconnect().expect("sent");
    client.expect_close().expect("closed");
    assert!(server.wait().success());
}

#[test]
fn a_client_that_vanishes_ends_the_server() {
    let (mut server, mut client) = Single::start(["memory", "1M"]);
    open(&mut client);
    drop(client);
    server.wait();
}

#[test]
fn a_client_that_closes_its_direction_gets_its_replies_first() {
    let (mut server, mut client) =
        Single::start(["--filter=delay", "memory", "1M", "rdelay=300ms"]);
    open(&mut client);
    client.send(&Ask::read(0, 512)).expect("sent");
    client.half_close().expect("closed");
    // The end of the input ends the server, which may cut the delay short: data or ESHUTDOWN, but
    // an answer.
    client.receive().expect("a reply");
    client.expect_close().expect("closed");
    server.wait();
}

#[test]
fn a_plugin_that_does_not_start_is_status_1_and_nothing_on_standard_output() {
    let mut command = nbdkit(["-s", "file", "/nonexistent/disk.img"]);
    let finished = nbdkit_tests::command::run(&mut command, DEADLINE);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert_eq!(finished.stdout, "");
    assert!(finished.stderr.contains("/nonexistent/disk.img"), "{finished:?}");
}

#[test]
fn one_client_on_standard_input_excludes_other_places_to_listen() {
    for others in [&["-p", "10999"][..], &["-U", "-"], &["--run", "true"]] {
        let mut arguments = vec!["-s"];
        arguments.extend(others);
        arguments.push("null");
        assert_refused(&arguments, &["cannot be used"]);
    }
}
