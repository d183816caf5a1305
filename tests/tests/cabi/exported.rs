//! What `plugins/export` makes of a plugin in Rust: every callback, errors and panics, here and in
//! Debian's nbdkit. The plugin is `tests/exported-plugin`.

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use nbd_protocol::constants::NbdError;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::processes::status;
use nbdkit_tests::{Ask, Client, Server, command, row_name};

use crate::support::{beside_the_server, exercise, open, open_export};

fn plugin() -> String {
    beside_the_server("libnbdkit_exported_plugin.so")
}

/// Both servers, or ours where Debian's is not installed.
fn both() -> Vec<Binary> {
    [Some(Binary::ours()), Binary::debian()].into_iter().flatten().collect()
}

fn connect(server: &Server) -> Client<UnixStream> {
    let mut client = server.connect();
    open(&mut client);
    client
}

/// What an order leaves on the disk.
fn answer(client: &mut Client<UnixStream>, order: &str) -> String {
    assert_eq!(client.call(&Ask::write(0, order)).expect("a reply").error, None, "{order}");
    let answer = client.call(&Ask::read(0, 256)).expect("a reply").data;
    String::from_utf8(answer).unwrap().trim_end_matches('\0').to_owned()
}

#[test]
fn every_callback_as_in_debians_nbdkit() {
    Row::new(row_name!(), &[&plugin()]).compare(exercise);
}

#[test]
fn help_and_dump_plugin_as_in_debians_nbdkit() {
    let plugin = plugin();
    Row::new(row_name!(), &["--dump-plugin", &plugin]).compare_command();
    // The server's own text comes before.
    for binary in both() {
        let mut command = Command::new(binary.path());
        command.args(["--help", &plugin]);
        let help = command::run(&mut command, Duration::from_secs(60)).stdout;
        let about = format!(
            "plugin: exported (every callback)\n({plugin})\nA disk in memory.\n\
             shutdown=true    It may stop the server.\n"
        );
        assert!(help.ends_with(&about), "{help}");
    }
}

#[test]
fn a_failure_of_the_configuration_is_the_plugins_own_line() {
    let plugin = plugin();
    for_each(&["nosuch=1", "shutdown=perhaps", "broken=1", "port=no such service"], |parameter| {
        let arguments = ["-U", "-", &plugin, parameter];
        Row::new(row_name!(), &arguments).variant(parameter).compare_command();
    });
}

/// Debian's nbdkit does not know the callback.
#[test]
fn a_failure_to_warm_up_is_the_plugins_own_line() {
    let finished = Server::nbdkit([&plugin(), "cold=1"]).binary(Binary::ours()).try_start();
    let finished = finished.expect_err("refused");
    assert_eq!(finished.stderr, "nbdkit: error: warm_up: it is cold");
}

#[test]
fn exports_their_descriptions_and_the_default_reach_the_plugin() {
    for binary in both() {
        let server = Server::nbdkit([&plugin()]).binary(binary).start();
        assert_eq!(answer(&mut connect(&server), "export"), "one");
        let mut client = server.connect();
        client.handshake().expect("a handshake");
        let exports = client.list().expect("a list");
        assert_eq!(format!("{exports:?}").matches("the first").count(), 1, "{exports:?}");
        assert!(client.go("none", &[]).is_ok_and(|answer| answer.export().is_none()));
        let _ = server.wait_for_stderr("error: there is no such export");
    }
}

#[test]
fn the_errno_of_a_failure_reaches_the_client_and_its_line_the_log() {
    for binary in both() {
        let server = Server::nbdkit([&plugin()]).binary(binary).start();
        let mut client = connect(&server);
        let mut error = |order| client.call(&Ask::write(0, order)).expect("a reply").nbd_error();
        assert_eq!(error("error"), Some(NbdError::NoSpc));
        assert_eq!(error("silent"), Some(NbdError::Perm));
        let _ = server.wait_for_stderr("error: the disk is full");
        assert_eq!(server.stderr_text().lines().count(), 1, "{}", server.stderr_text());
    }
}

#[test]
fn a_panic_is_a_failure_of_its_callback() {
    for binary in both() {
        let server = Server::nbdkit([&plugin()]).binary(binary.clone()).start();
        let mut client = connect(&server);
        let failed = client.call(&Ask::write(0, "panic")).expect("a reply");
        assert_eq!(failed.nbd_error(), Some(NbdError::Io));
        let _ = server.wait_for_stderr("error: the module panicked");
        assert_eq!(answer(&mut client, "export"), "one", "the connection goes on");
        let mut other = server.connect();
        other.handshake().expect("a handshake");
        assert!(other.go("panic", &[]).is_ok_and(|answer| answer.export().is_none()));
        drop(other);
        assert_eq!(answer(&mut connect(&server), "export"), "one", "and so does the plugin");
        let finished = Server::nbdkit([&plugin(), "panic=1"]).binary(binary).try_start();
        assert_eq!(finished.expect_err("refused").status.code(), Some(1));
    }
}

#[test]
fn the_client_is_the_servers() {
    for binary in both() {
        let server = Server::nbdkit([&plugin()]).binary(binary.clone()).start();
        let peer = answer(&mut connect(&server), "peer");
        let credentials = format!("credentials: Some(({}, ", std::process::id());
        assert!(peer.contains("address: Unix") && peer.contains(&credentials), "{peer}");
        if binary.is_ours() {
            let mut client = connect(&server);
            assert!(client.call(&Ask::write(0, "disconnect")).is_err());
        }
        let server = Server::nbdkit([&plugin()]).binary(binary).tcp().start();
        let mut client = server.connect_tcp();
        open_export(&mut client, "");
        assert_eq!(client.call(&Ask::write(0, "peer")).expect("a reply").error, None);
        let peer = client.call(&Ask::read(0, 256)).expect("a reply").data;
        let peer = String::from_utf8(peer).unwrap();
        assert!(peer.contains("address: Inet(127.0.0.1:") && peer.contains("None"), "{peer}");
        assert_eq!(server.stderr_text(), "");
    }
}

/// The server's own sleep notices that the client has gone.
#[test]
fn a_sleep_ends_with_its_client() {
    for binary in both() {
        let server = Server::nbdkit([&plugin()]).binary(binary).start();
        let mut client = connect(&server);
        client.send(&Ask::write(0, "sleep")).expect("a request");
        drop(client);
        let _ = server.wait_for_stderr("slept: Err");
    }
}

#[test]
fn it_is_strict_in_one_process_and_stops_the_server_if_it_has_declared_that() {
    let mut server =
        Server::nbdkit(["-v", &plugin(), "shutdown=true"]).binary(Binary::ours()).start();
    let _ = server.wait_for_stderr("sandbox=strict isolation=shared");
    let mut client = connect(&server);
    assert_eq!(server.workers(), []);
    assert_eq!(status(server.template(), "Seccomp:"), 2);
    assert_eq!(answer(&mut client, "passwd"), "Permission denied (os error 13)");
    let _ = client.call(&Ask::write(0, "shutdown"));
    assert!(server.wait().success());

    let server = Server::nbdkit([&plugin()]).binary(Binary::ours()).start();
    let _ = connect(&server).call(&Ask::write(0, "shutdown"));
    let _ = server.wait_for_stderr("violation");
}

#[test]
fn endpoints_that_are_declared_are_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("port={}", listener.local_addr().unwrap().port());
    for binary in both() {
        let server = Server::nbdkit([&plugin(), &port]).binary(binary).start();
        assert_eq!(answer(&mut connect(&server), "connect"), "connected");
    }
    let finished = Server::nbdkit([&plugin(), "vsock=1"]).binary(Binary::ours()).try_start();
    let finished = finished.expect_err("refused");
    let why = "vsock:2:1: a plugin in a file cannot connect there";
    assert!(finished.stderr.contains(why), "{}", finished.stderr);
}
