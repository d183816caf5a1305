//! The multi-conn filter: which connections are flushed when, what is advertised, and flushes of
//! connections in other processes.

use std::os::unix::net::UnixStream;
use std::path::Path;

use nbd_protocol::constants::{CommandFlags, Rep};
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::ours;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, Client, TempDir, row_name};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::below;

/// Each connection has a number, and the file `calls` has what it was asked to do. It is multi-conn
/// if the file `multi` exists, and cannot flush if `noflush` does.
const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*}
case $1 in
  open)
    number=$(cat "$dir/number" 2>/dev/null || echo 0)
    echo $((number + 1)) >"$dir/number"
    echo h$((number + 1)) ;;
  get_size) echo 1M ;;
  thread_model) echo parallel ;;
  can_write | can_trim | can_zero) ;;
  can_flush) test ! -e "$dir/noflush" || exit 3 ;;
  can_multi_conn) test -e "$dir/multi" || exit 3 ;;
  can_fua) cat "$dir/fua" 2>/dev/null || echo emulate ;;
  pread) head -c "$3" /dev/zero ;;
  pwrite) cat >/dev/null ; echo "pwrite $2 $5" >>"$dir/calls" ;;
  trim | zero) echo "$1 $2 $5" >>"$dir/calls" ;;
  flush) if test -e "$dir/fail.$2"; then echo "ENOSPC no space" >&2; exit 1; fi; echo "flush $2" >>"$dir/calls" ;;
  *) exit 2 ;;
esac
"#;

fn setup(dir: &TempDir) {
    let script = dir.path().join("script");
    std::fs::write(&script, SCRIPT).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, executable).unwrap();
}

fn native_fua(dir: &TempDir) {
    setup(dir);
    std::fs::write(dir.path().join("fua"), "native\n").unwrap();
}

fn multi_conn(dir: &TempDir) {
    setup(dir);
    std::fs::write(dir.path().join("multi"), "").unwrap();
}

fn no_flush(dir: &TempDir) {
    setup(dir);
    std::fs::write(dir.path().join("noflush"), "").unwrap();
}

/// What the script was asked for, in alphabetical order: connections are flushed in any.
fn calls(dir: &Path) -> Vec<String> {
    let path = dir.join("calls");
    let calls = std::fs::read_to_string(&path).unwrap_or_default();
    let _ = std::fs::remove_file(path);
    let mut calls: Vec<_> = calls.lines().map(str::to_owned).collect();
    calls.sort();
    calls
}

fn second(s: &Session) -> Client<UnixStream> {
    let mut client = Client::new(UnixStream::connect(s.dir().join("sock")).unwrap());
    client.handshake().unwrap();
    assert_eq!(client.go("", &[]).unwrap().end.reply, Rep::ACK);
    client
}

/// Two connections write, read and flush in turns.
fn compare(name: &str, variant: &str, setup: fn(&TempDir), parameters: &[&str]) {
    let arguments = [&["--filter=multi-conn", "sh", "{dir}/script"], parameters].concat();
    Row::new(name, &arguments).variant(variant).setup(setup).compare(|s| {
        s.open();
        let mut other = second(s);
        let write = || Ask::write(0, [1]);
        let fua = || write().flags(CommandFlags::FUA);
        let steps = [
            (false, Ask::flush()),
            (false, write()),
            (true, Ask::flush()),
            (false, Ask::flush()),
            (true, Ask::flush()),
            (false, Ask::read(0, 1)),
            (false, Ask::flush()),
            (true, Ask::trim(0, 1)),
            (false, Ask::read(0, 1)),
            (true, Ask::flush()),
            (false, Ask::flush()),
            (false, Ask::read(0, 1)),
            (true, fua()),
            (false, Ask::flush()),
            (false, write()),
            (true, fua()),
            (false, Ask::flush()),
            (true, Ask::write_zeroes(0, 1)),
            (true, Ask::flush()),
        ];
        for (is_other, ask) in steps {
            if is_other {
                assert_eq!(below::ask(&mut other, &ask), None);
            } else {
                s.ask(&ask);
            }
            let calls = calls(s.dir());
            s.note(format!("{ask:?}: {calls:?}"));
        }
        other.disconnect().unwrap();
        s.disconnect();
    });
}

#[test]
fn multi_conn_that_is_emulated() {
    for_each(&["connection", "conn", "fast", "off"], |track| {
        let track = format!("multi-conn-track-dirty={track}");
        compare(row_name!(), &track, setup, &[&track]);
        compare(row_name!(), &track, native_fua, &[&track]);
        compare(row_name!(), &track, multi_conn, &["multi-conn-mode=emulate", &track]);
    });
}

#[test]
fn multi_conn_that_passes_everything() {
    for_each(&["plugin", "disable", "unsafe"], |mode| {
        let mode = format!("multi-conn-mode={mode}");
        compare(row_name!(), &mode, setup, &[&mode, "multi-conn-track-dirty=off"]);
        compare(row_name!(), &mode, native_fua, &[&mode, "multi-conn-track-dirty=off"]);
    });
}

#[test]
fn multi_conn_that_is_advertised() {
    let modes = ["auto", "plugin", "disable", "emulate", "unsafe"];
    for_each(&modes, |mode| {
        let mode = format!("multi-conn-mode={mode}");
        for setup in [setup, native_fua, multi_conn, no_flush] {
            for more in [&[][..], &["-r"]] {
                let arguments = ["--filter=multi-conn", "sh", "{dir}/script", &mode];
                let arguments = [more, &arguments].concat();
                Row::new(row_name!(), &arguments).variant(&mode).setup(setup).compare(|s| {
                    s.connect();
                    s.info("");
                    s.disconnect();
                });
            }
        }
    });
}

#[test]
fn multi_conn_of_a_server_that_takes_one_connection_at_a_time() {
    for_each(&["auto", "plugin", "emulate"], |mode| {
        let mode = format!("multi-conn-mode={mode}");
        let filters = ["--filter=multi-conn", "--filter=noparallel"];
        let arguments = [&filters[..], &["sh", "{dir}/script", "serialize=connections", &mode]];
        let arguments = arguments.concat();
        Row::new(row_name!(), &arguments).variant(&mode).setup(setup).compare(|s| {
            s.connect();
            s.info("");
            s.disconnect();
        });
    });
}

#[test]
fn multi_conn_parameters() {
    let parameters = [
        "multi-conn-mode=foo",
        "multi-conn-mode=",
        "multi-conn-track-dirty=foo",
        "multi-conn-exportname=foo",
        "multi-conn-exportname=true",
        "multi-conn-name=true",
    ];
    for_each(&parameters, |parameter| {
        let arguments = ["--filter=multi-conn", "memory", "1M", parameter, "--run", "true"];
        Row::new(row_name!(), &arguments).variant(parameter).compare_command();
    });
    let help = |line: &str| {
        let is_help = line.contains("multi-conn") && !line.contains(".so");
        is_help.then(|| line.to_owned())
    };
    Row::new(row_name!(), &["--help", "--filter=multi-conn", "null"])
        .variant("--help")
        .normalise(help)
        .compare_command();
}

/// Processes of their own, one of which fails, and then is killed.
#[test]
fn a_flush_reaches_connections_in_other_processes() {
    let builder = ours(&["--filter=multi-conn", "sh"]);
    setup(builder.dir());
    let dir = builder.dir().path().to_owned();
    let server = builder.arg(dir.join("script")).start();
    let mut clients = [(); 3].map(|()| {
        let client = below::open(&server);
        (client, *server.workers().iter().max().unwrap())
    });
    assert_eq!(server.workers().len(), 3);
    for (client, _) in &mut clients {
        below::write(client, 0, 1, 1);
    }
    calls(&dir);
    assert_eq!(below::ask(&mut clients[0].0, &Ask::flush()), None);
    assert_eq!(calls(&dir), ["flush h1", "flush h2", "flush h3"]);

    below::write(&mut clients[1].0, 0, 1, 1);
    below::write(&mut clients[2].0, 0, 1, 1);
    calls(&dir);
    std::fs::write(dir.join("fail.h2"), "").unwrap();
    let error = below::ask(&mut clients[0].0, &Ask::flush());
    assert_eq!(error, Some(nbd_protocol::constants::NbdError::NoSpc));
    assert_eq!(calls(&dir), ["flush h3"], "the others are flushed all the same");
    std::fs::remove_file(dir.join("fail.h2")).unwrap();
    assert_eq!(below::ask(&mut clients[0].0, &Ask::flush()), None);
    assert_eq!(calls(&dir), ["flush h2"], "and the one that failed is dirty still");

    below::write(&mut clients[0].0, 0, 1, 1);
    below::write(&mut clients[1].0, 0, 1, 1);
    calls(&dir);
    let pid = Pid::from_raw(clients[1].1);
    kill(pid, Signal::SIGSTOP).unwrap();
    let cookie = clients[0].0.send(&Ask::flush()).unwrap();
    kill(pid, Signal::SIGKILL).unwrap();
    let reply = clients[0].0.receive().unwrap();
    assert_eq!((reply.cookie, reply.nbd_error()), (cookie, None));
    assert_eq!(calls(&dir), ["flush h1"]);
    eventually("the worker has ended", || server.workers().len() == 2);
    below::write(&mut clients[2].0, 0, 1, 1);
    calls(&dir);
    assert_eq!(below::ask(&mut clients[0].0, &Ask::flush()), None);
    assert_eq!(calls(&dir), ["flush h3"]);
}

/// One process, and a layer below that takes one request at a time on each connection.
#[test]
fn connections_that_flush_each_other_at_once_do_not_wait_for_each_other() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let arguments = ["--filter=multi-conn", "--filter=noparallel", "memory", "1M"];
        let server = ours(&[isolation])
            .args(arguments)
            .args(["serialize=requests", "multi-conn-mode=emulate"])
            .start();
        std::thread::scope(|scope| {
            for byte in 1..5 {
                let mut client = below::open(&server);
                scope.spawn(move || {
                    for _ in 0..100 {
                        below::write(&mut client, u64::from(byte) * 4096, 4096, byte);
                        assert_eq!(below::ask(&mut client, &Ask::flush()), None);
                        assert_eq!(below::read(&mut client, u64::from(byte) * 4096, 1), [byte]);
                    }
                });
            }
        });
    }
}
