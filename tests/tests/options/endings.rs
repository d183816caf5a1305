//! What the log says of a client that does not say goodbye: what was being done, and what became of
//! the socket.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::process::Command as Program;
use std::time::{Duration, Instant};

use nbd_protocol::constants::{Command, CommandFlags, NbdError, Opt, Rep};
use nbd_protocol::handshake::encode_option;
use nbd_protocol::transmission::Request;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::{Ask, Client, Server, command};
use nix::sys::signal::Signal;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;

use crate::support::{DEADLINE, debian_lacks, needs_root, open};

/// How a client goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It closes its socket in order.
    Closed,
    /// Its machine answers with a reset.
    Reset,
}

/// How far it has come.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// It has had the greeting.
    Greeted,
    /// It has sent its flags: fixed newstyle, no zeroes.
    Negotiating,
    /// An export is being served.
    Transmission,
}

/// What the server logs of a client that comes so far, sends `last` and goes. `expected`: what will
/// be in it.
fn log_of(phase: Phase, last: &[u8], end: End, expected: Option<&str>) -> String {
    let mut server = Server::nbdkit(["memory", "64M"]).tcp().start();
    let mut client: Client<TcpStream> = server.connect_tcp();
    match phase {
        Phase::Greeted => drop(client.greeting().unwrap()),
        Phase::Negotiating => drop(client.handshake().unwrap()),
        Phase::Transmission => open(&mut client),
    }
    let socket = client.transport();
    socket.write_all(last).unwrap();
    match end {
        Closed => socket.shutdown(Shutdown::Write).unwrap(),
        Reset => {
            // close(2) then sends a reset, behind which the server still finds what was sent
            // before. socket(7)
            let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&*socket, Linger, &at_once).unwrap();
        }
    }
    if end == Closed {
        client.expect_close().unwrap();
    }
    drop(client);
    if let Some(expected) = expected {
        let _ = server.wait_for_stderr(expected);
    }
    server.stop();
    server.stderr_text_after_end()
}

use End::{Closed, Reset};

/// The first bytes of an option.
fn option(payload: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_option(&mut bytes, Opt::GO, &vec![0; payload]);
    bytes
}

/// A write and the first bytes of its payload.
fn write(length: u64, sent: usize) -> Vec<u8> {
    let (flags, command) = (CommandFlags::empty(), Command::WRITE);
    let mut bytes = Request { flags, command, cookie: 1, offset: 0, length }.encode().to_vec();
    bytes.resize(bytes.len() + sent, 7);
    bytes
}

#[test]
fn every_end_of_a_socket_is_logged_with_its_own_reason() {
    let ordinary =
        [(Phase::Greeted, vec![]), (Phase::Negotiating, vec![]), (Phase::Transmission, vec![])];
    for (phase, last) in ordinary {
        assert_eq!(log_of(phase, &last, Closed, None), "", "{phase:?}");
    }
    let ends = [
        (Phase::Greeted, vec![], Reset, "reading initial client flags: "),
        (Phase::Greeted, vec![0, 0], Closed, "reading initial client flags: "),
        (Phase::Greeted, vec![0, 0], Reset, "reading initial client flags: "),
        (Phase::Negotiating, vec![], Reset, "reading option: "),
        (Phase::Negotiating, option(0)[..9].to_vec(), Closed, "reading option: "),
        (Phase::Negotiating, option(0)[..9].to_vec(), Reset, "reading option: "),
        (Phase::Negotiating, option(50)[..30].to_vec(), Closed, "read: NBD_OPT_GO: "),
        (Phase::Negotiating, option(50)[..30].to_vec(), Reset, "read: NBD_OPT_GO: "),
        (Phase::Transmission, vec![], Reset, "read request: "),
        (Phase::Transmission, write(1, 0)[..9].to_vec(), Closed, "read request: "),
        (Phase::Transmission, write(1, 0)[..9].to_vec(), Reset, "read request: "),
        (Phase::Transmission, write(4096, 9), Closed, "read data: NBD_CMD_WRITE: "),
        (Phase::Transmission, write(4096, 9), Reset, "read data: NBD_CMD_WRITE: "),
        (Phase::Transmission, write(1 << 20, 5000), Closed, "read data: NBD_CMD_WRITE: "),
        (Phase::Transmission, write(1 << 20, 5000), Reset, "read data: NBD_CMD_WRITE: "),
    ];
    for (phase, last, end, doing) in ends {
        let log = log_of(phase, &last, end, Some(doing));
        let reason = match end {
            Reset => "Connection reset by peer",
            Closed if Binary::under_test().is_ours() => "the client closed the connection",
            Closed => "Bad message",
        };
        let context = format!("{phase:?}, {} bytes, {end:?}:\n{log}", last.len());
        assert_eq!(log.lines().count(), 1, "{context}");
        for words in ["error: ", doing, reason] {
            assert!(log.contains(words), "{words:?}: {context}");
        }
    }
}

/// Two clients, in the handshake and in transmission, whose network is taken away.
const LOST: &str = r#"
    ip link set lo up
    sysctl -q -w net.ipv4.tcp_keepalive_time=1 net.ipv4.tcp_keepalive_intvl=1 \
        net.ipv4.tcp_keepalive_probes=2
    "$1" -f --keepalive -i 127.0.0.1 -p 20000 --run '
        exec python3 -c "
import socket, struct, subprocess, time
silent = socket.create_connection((\"127.0.0.1\", 20000))
silent.recv(18, socket.MSG_WAITALL)
served = socket.create_connection((\"127.0.0.1\", 20000))
served.recv(18, socket.MSG_WAITALL)
served.sendall(struct.pack(\">I8sIIIH\", 3, b\"IHAVEOPT\", 7, 6, 0, 0))
served.recv(52, socket.MSG_WAITALL)
# Acknowledges what the server has sent, so that it waits with keepalive and does not send again.
silent.sendall(b\"\\0\")
served.sendall(b\"\\x25\")
subprocess.check_call([\"ip\", \"link\", \"set\", \"lo\", \"down\"])
time.sleep(8)
"' memory 1M
"#;

#[test]
fn a_client_lost_to_keepalive_timed_out_and_had_no_deadline() {
    if debian_lacks("--keepalive") || needs_root("a network namespace") {
        return;
    }
    let mut lost = Program::new("unshare");
    lost.args(["-n", "sh", "-c", LOST, "sh"]).arg(Binary::under_test().path());
    let finished = command::run(&mut lost, DEADLINE);
    for doing in ["reading initial client flags", "read request"] {
        let line = format!("error: {doing}: Connection timed out");
        assert!(finished.stderr.contains(&line), "no {line:?} in {finished:?}");
    }
    assert!(!finished.stderr.contains("not finished in time"), "{finished:?}");
}

#[test]
fn delay_close_keeps_a_client_that_said_goodbye_and_half_closed() {
    for half_close in [false, true] {
        let server = Server::nbdkit(["--filter=delay", "memory", "1M", "delay-close=1"]).start();
        let mut client = server.connect();
        open(&mut client);
        let start = Instant::now();
        client.disconnect().unwrap();
        if half_close {
            client.half_close().unwrap();
        }
        client.expect_close().unwrap();
        assert!(start.elapsed() >= Duration::from_millis(950), "half-closed: {half_close}");
    }
}

#[test]
fn delay_close_does_not_hold_a_client_that_vanished() {
    if debian_lacks("a delayed close that a reset ends") {
        return;
    }
    let options = ["--filter=exitlast", "--filter=delay", "memory", "1M", "delay-close=1000"];
    for goodbye in [false, true] {
        let mut server = Server::nbdkit(options).tcp().start();
        let mut client = server.connect_tcp();
        open(&mut client);
        if goodbye {
            client.disconnect().unwrap();
        }
        let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&*client.transport(), Linger, &at_once).unwrap();
        drop(client);
        eventually(&format!("the end, goodbye: {goodbye}"), || server.try_wait().is_some());
    }
}

/// A request whose layers fail for good, and which is retried in a minute.
fn retrying(filters: &[&str]) -> (Server, Client<std::os::unix::net::UnixStream>) {
    let filters = filters.iter().copied().chain(["--filter=retry", "--filter=error"]);
    let parameters = ["memory", "1M", "error-pread-rate=100%", "retry-delay=60"];
    let server = Server::nbdkit(["-v"].into_iter().chain(filters).chain(parameters)).start();
    let mut client = server.connect();
    open(&mut client);
    client.send(&Ask::read(0, 512)).expect("sent");
    let _ = server.wait_for_stderr("retry 1: waiting 60 seconds before retrying");
    (server, client)
}

#[test]
fn a_request_that_waits_to_be_retried_ends_with_its_client_and_with_the_server() {
    if debian_lacks("an end while clients are connected: it waits for them") {
        return;
    }
    let (mut server, client) = retrying(&["--filter=exitlast"]);
    let start = Instant::now();
    drop(client);
    assert!(server.wait().success());
    assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());

    // As long as its client's requests are served, it is waited for: a second.
    let (mut server, mut client) = retrying(&[]);
    let start = Instant::now();
    server.signal(Signal::SIGTERM);
    let reply = client.receive().expect("every request is answered");
    assert_eq!(reply.nbd_error(), Some(NbdError::Shutdown));
    assert!(server.wait().success());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn exitlast_lets_a_client_ask_before_it_opens() {
    if debian_lacks("an end of the server only when the client that asked has gone") {
        return;
    }
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let mut server = Server::nbdkit([isolation, "--filter=exitlast", "memory", "1M"]).start();
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        for _ in 0..3 {
            assert_eq!(client.info("", &[]).expect("a reply").end.reply, Rep::ACK);
        }
        assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
        assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").error, None);
        assert!(server.try_wait().is_none());
        drop(client);
        assert!(server.wait().success());
        // One that only asks was a client, too.
        let mut server = Server::nbdkit([isolation, "--filter=exitlast", "memory", "1M"]).start();
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        assert_eq!(client.info("", &[]).expect("a reply").end.reply, Rep::ACK);
        drop(client);
        assert!(server.wait().success());
    }
}
