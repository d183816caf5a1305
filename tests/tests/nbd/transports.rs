//! Every way to an upstream server.

use std::net::{Ipv6Addr, TcpListener};
use std::os::unix::net::UnixStream;

use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::{free_port, ours};
use nbdkit_tests::{Ask, Client, TempDir, tools};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::socket;

#[test]
fn tcp_by_name_by_address_and_by_uri() {
    let upstream = ours(&["pattern", "1M"]).tcp().start();
    let port = upstream.address().port();
    for parameters in [
        vec!["hostname=127.0.0.1".to_owned(), format!("port={port}")],
        vec!["hostname=localhost".to_owned(), format!("port={port}")],
        vec![format!("nbd://127.0.0.1:{port}/")],
        vec![format!("uri=nbd://localhost:{port}")],
    ] {
        let server = ours(&["nbd"]).args(&parameters).start();
        let data = server.connected("").call(&Ask::read(4096, 8)).unwrap().data;
        assert_eq!(data, 4096_u64.to_be_bytes(), "{parameters:?}");
    }
}

#[test]
fn tcp_of_ipv6() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        eprintln!("SKIPPED: there is no IPv6 here");
        return;
    }
    let port = free_port().to_string();
    let upstream = ours(&["-i", "::1", "-p", &port, "pattern", "1M"]).without_unix_socket().start();
    let by_uri = format!("nbd://[::1]:{port}");
    let port = format!("port={port}");
    for parameters in [&["hostname=::1", &port][..], &[&by_uri]] {
        let server = ours(&[&["nbd"], parameters].concat()).start();
        let data = server.connected("").call(&Ask::read(8, 8)).unwrap().data;
        assert_eq!(data, 8_u64.to_be_bytes());
    }
    drop(upstream);
}

#[test]
fn unix_sockets_by_path_and_by_uri() {
    let upstream = ours(&["pattern", "1M"]).start();
    let uri = format!("nbd+unix:///?socket={}", upstream.socket().display());
    for parameter in [&socket(&upstream), &uri] {
        let server = ours(&["nbd", parameter]).start();
        let data = server.connected("").call(&Ask::read(8, 8)).unwrap().data;
        assert_eq!(data, 8_u64.to_be_bytes());
    }
}

/// nbd-server(1), which is always a daemon. It ends with this.
struct NbdServer(Pid);

impl NbdServer {
    /// Serves `disk` in `dir` as the export `disk`, at the socket `socket` there.
    fn start(dir: &TempDir) -> Option<NbdServer> {
        let at = |name: &str| dir.join(name);
        let config = format!(
            "[generic]\nunixsock = {}\nport = {}\n[disk]\nexportname = {}\nflush = true\n",
            at("socket").display(),
            free_port(),
            at("disk").display()
        );
        std::fs::write(at("config"), config).unwrap();
        let [config, pid] = ["config", "pid"].map(|name| at(name).display().to_string());
        tools::run("nbd-server", &["-C", &config, "-p", &pid], dir.path())?;
        let read = || std::fs::read_to_string(&pid).ok()?.trim().parse().ok();
        eventually("there is a pid file", || read().is_some());
        let server = NbdServer(Pid::from_raw(read().unwrap()));
        eventually("it listens", || UnixStream::connect(at("socket")).is_ok());
        Some(server)
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGTERM);
    }
}

#[test]
fn the_reference_server_is_forwarded() {
    let dir = TempDir::new();
    std::fs::write(dir.join("disk"), vec![1; 1 << 20]).unwrap();
    let Some(_upstream) = NbdServer::start(&dir) else { return };
    let socket = format!("socket={}", dir.join("socket").display());
    let server = ours(&["nbd", &socket, "export=disk"]).start();
    let mut client = server.connected("");
    for block in 0..64 {
        client.send(&Ask::write(block * 8192, [block as u8; 4096])).unwrap();
    }
    for _ in 0..64 {
        assert_eq!(client.receive().unwrap().error, None);
    }
    assert_eq!(client.call(&Ask::flush()).unwrap().error, None);
    let expected: Vec<u8> = (0..64).flat_map(|block| [[block; 4096], [1; 4096]].concat()).collect();
    assert!(client.call(&Ask::read(0, 1 << 19)).unwrap().data == expected);
    client.disconnect().unwrap();
    assert!(std::fs::read(dir.join("disk")).unwrap()[..1 << 19] == expected);
}

/// Where there is no vsock(7), or nobody listens, that is the client's refusal and one line.
#[test]
fn a_vsock_port_where_nobody_listens_is_an_error() {
    for parameters in [&["vsock=1", "port=4294967294"][..], &["nbd+vsock://1:4294967294/"]] {
        let server = ours(&[&["nbd"], parameters].concat()).start();
        let mut client = server.connect();
        client.handshake().unwrap();
        assert!(client.go("", &[]).unwrap().end.reply.is_error());
        let _ = server.wait_for_stderr("vsock:1:4294967294: ");
    }
}

/// The socket comes as standard input of a shell, which passes it on as descriptor 5.
#[test]
fn a_socket_that_is_inherited() {
    let upstream = ours(&["pattern", "1M"]).start();
    let connected = UnixStream::connect(upstream.socket()).unwrap();
    let server = ours(&["-U", "{dir}/listens", "nbd", "socket-fd=5"])
        .activated_by(connected)
        .through_shell("exec \"$0\" \"$@\" 5<&0 0</dev/null")
        .start();
    for _ in 0..2 {
        let stream = UnixStream::connect(server.dir().join("listens")).unwrap();
        let mut client = Client::new(stream);
        client.handshake().unwrap();
        client.go("", &[]).unwrap();
        assert_eq!(client.call(&Ask::read(8, 8)).unwrap().data, 8_u64.to_be_bytes());
    }
    assert_eq!(upstream.workers().len(), 1);
}

#[test]
fn a_descriptor_that_is_no_socket_stops_the_start() {
    for (script, message) in [
        ("exec \"$0\" \"$@\" 5</dev/null", "socket-fd=5: Socket operation on non-socket"),
        ("exec \"$0\" \"$@\" 5<&-", "socket-fd=5: Bad file descriptor"),
    ] {
        let finished = ours(&["nbd", "socket-fd=5"]).through_shell(script).try_start().unwrap_err();
        assert_eq!(finished.stderr.trim_end(), format!("nbdkit: error: {message}"));
    }
}
