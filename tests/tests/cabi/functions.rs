//! The functions that plugins call: what they return, and what they say when they cannot.

use std::process::Command;
use std::time::{Duration, Instant};

use nbd_protocol::constants::InfoType;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::row_name;
use nbdkit_tests::{Ask, Server, TempDir, command};

use crate::support::{compile, file, open_export};

#[test]
fn parsed_numbers() {
    for_each(
        &[
            "int", "unsigned", "int8_t", "uint8_t", "int16_t", "uint16_t", "int32_t", "uint32_t",
            "int64_t", "uint64_t",
        ],
        |kind| {
            let plugin = compile("functions.c", &[]);
            let mut arguments = vec!["--dump-plugin".to_owned(), plugin];
            for value in [
                "0",
                "1",
                "-1",
                "007",
                "0x1f",
                "127",
                "128",
                "255",
                "256",
                "-128",
                "-129",
                "65535",
                "65536",
                "2147483647",
                "2147483648",
                "4294967295",
                "4294967296",
                "9223372036854775807",
                "9223372036854775808",
                "18446744073709551615",
                "18446744073709551616",
                "-9223372036854775808",
                " 5",
                "+5",
            ] {
                arguments.push(format!("{kind}={value}"));
            }
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            // Messages of failures differ in words, and are compared where they are part of the
            // interface.
            Row::new(row_name!(), &arguments)
                .variant(kind)
                .normalise(|line| line.starts_with("stdout: ").then(|| line.to_owned()))
                .compare_command();
        },
    );
}

#[test]
fn parsed_sizes_and_truths_and_paths_and_strings() {
    let plugin = compile("functions.c", &[]);
    let mut arguments = vec!["--dump-plugin".to_owned(), plugin];
    for size in [
        "0",
        "1",
        "512s",
        "1k",
        "1M",
        "7e",
        "8e",
        "-1",
        "x",
        "",
        "1Z",
        " 08",
        "9223372036854775807",
    ] {
        arguments.push(format!("size={size}"));
    }
    for truth in ["1", "true", "ON", "y", "0", "False", "off", "n", "maybe", ""] {
        arguments.push(format!("bool={truth}"));
    }
    for path in [
        "absolute=x/../y",
        "absolute=/a//b",
        "absolute=",
        "realpath=.",
        "realpath=/nonexistent",
        "realpath=sub/../x",
    ] {
        arguments.push(path.to_owned());
    }
    for password in [
        "password=secret",
        "password=",
        "password=+pw",
        "password=+/nonexistent",
        "password=-",
        "password=-0",
        "password=-x",
    ] {
        arguments.push(password.to_owned());
    }
    arguments.push("intern=abcdef".to_owned());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Row::new(row_name!(), &arguments)
        .setup(|dir| {
            file(dir, "pw", b"first line\nsecond line\n");
            std::fs::create_dir(dir.join("sub")).unwrap();
            file(dir, "x", b"");
        })
        .normalise(|line| line.starts_with("stdout: ").then(|| line.to_owned()))
        .compare_command();
}

#[test]
fn messages_keep_errno_and_say_what_it_means() {
    let plugin = compile("functions.c", &[]);
    Row::new(row_name!(), &["--dump-plugin", &plugin, "message=hello"]).compare_command();
}

/// Debian's server does not survive this.
#[test]
fn outside_of_a_connection() {
    let (out, err) = later(&["outside=1"]);
    for line in [
        "export_name=NULL",
        "is_tls=-1",
        "peer_name=-1",
        "peer_pid=-1",
        "stdio_safe=1",
        "nanosleep=0",
        "long nanosleep=-1",
    ] {
        assert!(out.lines().any(|found| found == line), "{line}\n{out}");
    }
    for function in ["nbdkit_export_name", "nbdkit_is_tls", "nbdkit_peer_name", "nbdkit_peer_pid"] {
        let words = format!("error: {function}: no connection in this thread");
        assert!(err.contains(&words), "{words}\n{err}");
    }
    assert!(err.contains("nbdkit_nanosleep: sleep is too long"), "{err}");
}

/// What `functions.c` prints about these parameters, and on standard error.
fn later(parameters: &[&str]) -> (String, String) {
    let mut command = Command::new(Binary::under_test().path());
    command.args(["--dump-plugin", &compile("functions.c", &["-DLATER"])]).args(parameters);
    let finished = command::run(&mut command, Duration::from_secs(20));
    assert!(finished.status.success(), "{finished:?}");
    (finished.stdout, finished.stderr)
}

#[test]
fn functions_of_later_versions() {
    let (out, err) = later(&[
        "probability=10%",
        "probability=1:4",
        "probability=-1",
        "delay=1.5",
        "delay=3us",
        "delay=-1",
        "extents=1",
        "later-outside=1",
    ]);
    for line in [
        "probability(10%)=0 0.1",
        "probability(1:4)=0 0.25",
        "probability(-1)=-1 99",
        "delay(1.5)=0 1 500000000",
        "delay(3us)=0 0 3000",
        "delay(-1)=-1 99 99",
        "extent 100 150 0",
        "extent 250 750 1",
        "gap=-1 errno=1",
        "new=1",
        "security_context=1",
        "tls_dn=1",
        "tls_issuer_dn=1",
    ] {
        assert!(out.lines().any(|found| found == line), "{line}\n{out}");
    }
    for words in [
        "what: could not parse '-1' as a probability",
        "what: could not parse delay or sleep: \"-1\"",
        "extents must be added in ascending order",
        "nbdkit_peer_tls_dn: no connection in this thread",
        "nbdkit_disconnect: no connection in this thread",
    ] {
        assert!(err.contains(words), "{words}\n{err}");
    }
}

#[test]
fn a_password_may_be_any_bytes_from_a_descriptor() {
    let dir = TempDir::new();
    file(&dir, "pw", b"p\xff\xfew\nnext\n");
    let plugin = compile("functions.c", &[]);
    let mut command = Command::new("sh");
    let script = r#"exec "$0" --dump-plugin "$1" password=-7 7<"$2""#;
    command.arg("-c").arg(script).arg(Binary::under_test().path()).arg(plugin).arg(dir.join("pw"));
    let finished = command::run(&mut command, Duration::from_secs(20));
    assert!(finished.stdout.contains("password=0 p\u{fffd}\u{fffd}w\n"), "{finished:?}");
}

#[test]
fn the_client_on_a_unix_socket() {
    Row::new(row_name!(), &[&compile("peer.c", &[])]).compare(|s| {
        s.connect();
        s.info("");
        s.disconnect();
    });
}

#[test]
fn the_client_on_tcp() {
    let server = Server::nbdkit([&compile("peer.c", &[])]).tcp().start();
    let mut client = server.connect_tcp();
    client.handshake().expect("a handshake");
    let answer = client.info("", &[InfoType::DESCRIPTION]).expect("an answer").to_string();
    assert!(answer.contains("inet 127.0.0.1 1 16"), "{answer}");
}

#[test]
fn tls_of_a_client_without() {
    let server = Server::nbdkit([&compile("peer.c", &["-DLATER"])]).start();
    let mut client = server.connect();
    open_export(&mut client, "tls");
    assert_eq!(client.call(&Ask::read(0, 1)).expect("a reply").data, b"y");
}

#[test]
fn a_plugin_can_stop_the_server() {
    let mut server = Server::nbdkit([&compile("peer.c", &[])]).start();
    let mut client = server.connect();
    open_export(&mut client, "shutdown");
    let _ = client.call(&Ask::read(0, 512));
    assert!(server.wait().success());
}

#[test]
fn a_plugin_can_disconnect_its_client_and_no_other() {
    let server = Server::nbdkit([&compile("peer.c", &["-DLATER"])]).start();
    let mut other = server.connect();
    open_export(&mut other, "");
    let mut soft = server.connect();
    open_export(&mut soft, "disconnect=0");
    assert_eq!(soft.call(&Ask::read(0, 512)).expect("a reply").error, None);
    assert!(soft.call(&Ask::read(0, 512)).expect("a refusal").error.is_some());
    let mut hard = server.connect();
    open_export(&mut hard, "disconnect=1");
    assert!(hard.call(&Ask::read(0, 512)).is_err());
    assert_eq!(other.call(&Ask::read(0, 512)).expect("a reply").error, None);
}

#[test]
fn a_sleep_ends_with_the_server() {
    let mut server = Server::nbdkit([&compile("peer.c", &[])]).start();
    let mut client = server.connect();
    open_export(&mut client, "sleep");
    client.send(&Ask::read(0, 512)).expect("sent");
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    assert!(server.stop().success());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
