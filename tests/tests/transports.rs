//! The ways for a client to reach the server: Unix socket, TCP, a socket from systemd, standard
//! input and output.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};

use nbd_protocol::constants::Rep;
use nbdkit_tests::client::Transport;
use nbdkit_tests::{Ask, Client, Server, Single, TempDir};

/// Opens the default export, writes and reads back.
fn assert_works<T: Transport>(client: &mut Client<T>) {
    client.handshake().expect("a greeting");
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
    assert_eq!(client.call(&Ask::write(10, *b"hello")).expect("a reply").error, None);
    assert_eq!(client.call(&Ask::read(9, 7)).expect("a reply").data, b"\0hello\0");
    client.disconnect().expect("sent");
    client.expect_close().expect("closed");
}

#[test]
fn unix_socket() {
    let server = Server::nbdkit(["memory", "1M"]).start();
    assert_works(&mut server.connect());
    let kind = std::fs::metadata(server.socket()).expect("it is there").file_type();
    assert!(kind.is_socket());
}

#[test]
fn tcp() {
    let server = Server::nbdkit(["memory", "1M"]).tcp().start();
    assert_works(&mut server.connect_tcp());
}

#[test]
fn the_pid_file_has_the_servers_pid() {
    let server = Server::nbdkit(["memory", "1M"]).start();
    let text = std::fs::read_to_string(server.dir().join("pid")).expect("a pid file");
    assert_eq!(text, format!("{}\n", server.pid()));
}

#[test]
fn sigterm_sigint_and_sigquit_stop_the_server() {
    use nix::sys::signal::Signal;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let mut server = Server::nbdkit(["memory", "1M"]).start();
        server.signal(signal);
        assert!(server.wait().success(), "{signal}");
    }
}

#[test]
fn sigpipe_does_not_stop_the_server() {
    use nix::sys::signal::Signal;
    let server = Server::nbdkit(["memory", "1M"]).start();
    server.signal(Signal::SIGPIPE);
    assert_works(&mut server.connect());
}

#[test]
fn a_unix_socket_from_systemd() {
    let dir = TempDir::new();
    let path = dir.join("activated");
    let listener = UnixListener::bind(&path).expect("bound");
    let server = Server::nbdkit(["memory", "1M"]).activated_by(listener).start();
    assert_works(&mut Client::new(UnixStream::connect(&path).expect("connected")));
    assert!(!server.socket().exists());
}

#[test]
fn a_tcp_socket_from_systemd() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    let address = listener.local_addr().expect("an address");
    let _server = Server::nbdkit(["memory", "1M"]).activated_by(listener).start();
    assert_works(&mut Client::new(TcpStream::connect(address).expect("connected")));
}

#[test]
fn standard_input_and_output() {
    let (mut server, mut client) = Single::start(["memory", "1M"]);
    assert_works(&mut client);
    assert!(server.wait().success());
}

#[test]
fn standard_input_that_closes_ends_the_server() {
    let (mut server, mut client) = Single::start(["memory", "1M"]);
    client.handshake().expect("a greeting");
    drop(client);
    // Whether a client that leaves in the middle is a success is nobody's promise; that the server
    // ends, is.
    server.wait();
}
