//! The nbd plugin: between clients of ours and servers of all kinds, some of which die, stall, or
//! lie.
#![expect(clippy::unwrap_used, reason = "a file that cannot be prepared is a failed test")]

mod hostile;
mod pipeline;
mod tls;
mod transports;

use std::path::Path;

use nbd_protocol::constants::{CommandFlags, TransmissionFlags};
use nbdkit_tests::processes::{children, eventually, is_alive};
use nbdkit_tests::server::{Server, ours};
use nbdkit_tests::workout::stress;
use nbdkit_tests::{Ask, TempDir};
use nix::sys::signal::Signal;

pub(crate) fn socket(server: &Server) -> String {
    format!("socket={}", server.socket().display())
}

fn error_of(client: &mut nbdkit_tests::Client<std::os::unix::net::UnixStream>, ask: &Ask) -> u32 {
    client.call(ask).unwrap().error.map_or(0, |error| error.code)
}

const EIO: u32 = 5;
const ESHUTDOWN: u32 = 108;

#[test]
fn two_clients_have_a_process_and_a_connection_each() {
    let upstream = ours(&["memory", "1M"]).start();
    let server = ours(&["nbd", &socket(&upstream)]).start();
    let (mut one, mut other) = (server.connected(""), server.connected(""));
    assert_eq!((server.workers().len(), upstream.workers().len()), (2, 2));
    assert_eq!(error_of(&mut one, &Ask::write(512, [7; 1024])), 0);
    assert_eq!(other.call(&Ask::read(0, 1024)).unwrap().data, [[0; 512], [7; 512]].concat());
    drop(one);
    eventually("its connection to the upstream server ends", || upstream.workers().len() == 1);
    assert_eq!(other.call(&Ask::read(512, 1024)).unwrap().data, [7; 1024]);
}

#[test]
fn nothing_is_written_with_r() {
    let upstream = ours(&["memory", "1M"]).start();
    let server = ours(&["-r", "nbd", &socket(&upstream)]).start();
    let mut client = server.connected("");
    assert!(client.offers(TransmissionFlags::READ_ONLY));
    assert_ne!(error_of(&mut client, &Ask::write(0, [1; 512])), 0);
    assert_eq!(upstream.connected("").call(&Ask::read(0, 512)).unwrap().data, [0; 512]);
}

#[test]
fn all_clients_may_share_one_connection() {
    let upstream = ours(&["memory", "1M"]).start();
    let server = ours(&["nbd", &socket(&upstream), "shared=true"]).start();
    assert_eq!(upstream.workers().len(), 1, "it is connected to before there are clients");
    let mut clients: Vec<_> = (0..3).map(|_| server.connected("")).collect();
    for (number, client) in (0_u8..).zip(&mut clients) {
        let data = [number + 1; 4096];
        assert_eq!(error_of(client, &Ask::write(u64::from(number) * 4096, data)), 0);
    }
    let expected = [[1; 4096], [2; 4096], [3; 4096]].concat();
    for client in &mut clients {
        assert_eq!(client.call(&Ask::read(0, 12_288)).unwrap().data, expected);
    }
    assert_eq!((server.workers().len(), upstream.workers().len()), (0, 1));
    let refused = ours(&["--isolation=connection", "nbd", &socket(&upstream), "shared=true"]);
    assert!(refused.try_start().is_err());
}

/// A server whose reads from 64K on take until there is a file, and whose others do not.
fn slow(dir: &Path) -> Server {
    let gate = dir.join("gate");
    let pread = format!(
        "pread=if [ $4 -ge 65536 ]; then touch {gate}.waits; \
         while [ ! -e {gate} ]; do sleep 0.02; done; fi; head -c $3 /dev/zero",
        gate = gate.display()
    );
    ours(&["eval", "thread_model=echo parallel", "get_size=echo 1M", &pread]).start()
}

/// One that is in the middle of a read when it is gone: the reply comes for nobody.
#[test]
fn a_client_that_dies_in_a_read_takes_no_other_with_it() {
    let dir = TempDir::new();
    let upstream = slow(dir.path());
    for length in [4096, 262_144] {
        let server = ours(&["nbd", &socket(&upstream), "shared=true"]).start();
        let mut other = server.connected("");
        let mut dies = server.connected("");
        dies.send(&Ask::read(65_536, length)).unwrap();
        eventually("the read is under way", || dir.join("gate.waits").exists());
        assert_eq!(error_of(&mut other, &Ask::read(0, 4096)), 0);
        drop(dies);
        // It goes on before the reply that nobody wants, and behind it.
        assert_eq!(error_of(&mut other, &Ask::read(0, 4096)), 0);
        std::fs::write(dir.join("gate"), "").unwrap();
        for _ in 0..10 {
            assert_eq!(other.call(&Ask::read(65_536, length)).unwrap().data.len() as u64, length);
        }
        std::fs::remove_file(dir.join("gate")).unwrap();
        std::fs::remove_file(dir.join("gate.waits")).unwrap();
    }
}

/// The same with a connection of its own, which nobody can wait for any more.
#[test]
fn a_worker_does_not_outlive_its_client_for_a_slow_server() {
    let dir = TempDir::new();
    let upstream = slow(dir.path());
    let server = ours(&["nbd", &socket(&upstream)]).start();
    let mut dies = server.connected("");
    for _ in 0..3 {
        dies.send(&Ask::read(65_536, 4096)).unwrap();
    }
    eventually("the read is under way", || dir.join("gate.waits").exists());
    drop(dies);
    eventually("the worker has ended", || server.workers().is_empty());
    std::fs::write(dir.join("gate"), "").unwrap();
}

#[test]
fn the_end_of_the_upstream_server_is_an_error_of_each_request() {
    let upstream = ours(&["memory", "1M"]).start();
    let server = ours(&["nbd", &socket(&upstream)]).start();
    let mut client = server.connected("");
    assert_eq!(error_of(&mut client, &Ask::read(0, 512)), 0);
    upstream.signal(Signal::SIGKILL);
    eventually("it fails", || error_of(&mut client, &Ask::read(0, 512)) == ESHUTDOWN);
    assert_eq!(error_of(&mut client, &Ask::write(0, [1; 512])), ESHUTDOWN);
    assert_eq!(error_of(&mut client, &Ask::flush()), ESHUTDOWN);
    client.disconnect().unwrap();
    // There is nobody to connect to.
    let mut next = server.connect();
    next.handshake().unwrap();
    assert!(next.go("", &[]).unwrap().end.reply.is_error());
}

/// Servers one after the other at the same address.
fn at(path: &Path) -> Server {
    let _ = std::fs::remove_file(path);
    let address = path.to_str().unwrap();
    ours(&["-U", address, "pattern", "1M"]).without_unix_socket().start()
}

#[test]
fn the_retry_filter_reopens_the_connection() {
    let dir = TempDir::new();
    let path = dir.join("upstream");
    let upstream = at(&path);
    let parameter = format!("socket={}", path.display());
    let arguments = ["--filter=retry", "nbd", &parameter, "retry-delay=1", "retries=10"];
    let server = ours(&arguments).start();
    let mut client = server.connected("");
    let expected = client.call(&Ask::read(4096, 4096)).unwrap().data;
    upstream.signal(Signal::SIGKILL);
    drop(upstream);
    let _upstream = at(&path);
    assert_eq!(client.call(&Ask::read(4096, 4096)).unwrap().data, expected);
}

#[test]
fn a_server_that_starts_later_is_waited_for() {
    let dir = TempDir::new();
    let path = dir.join("upstream");
    let parameter = format!("socket={}", path.display());
    let server = ours(&["-v", "nbd", &parameter, "retry=60"]).start();
    let mut client = server.connect();
    client.handshake().unwrap();
    let upstream = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            assert!(client.go("", &[]).unwrap().export().is_some());
        });
        let _ = server.wait_for_stderr("connecting again in a second");
        let upstream = at(&path);
        client.join().unwrap();
        upstream
    });
    drop(upstream);
    let refused = ours(&["nbd", "socket=/nonexistent/socket", "shared=true"]).try_start();
    let refused = refused.unwrap_err();
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
}

/// Debian's server has no extended headers, so this is ours in front of ours.
#[test]
fn requests_beyond_32_bits_are_passed_on() {
    const HUGE: u64 = 6 << 40;
    for upstream in [&["memory", "8T"][..], &["--no-sr", "memory", "8T"]] {
        let upstream = ours(upstream).start();
        let server = ours(&["nbd", &socket(&upstream)]).start();
        let mut client = server.connect();
        client.handshake().unwrap();
        client.extended_headers().unwrap();
        client.set_meta_context("", &["base:allocation"]).unwrap();
        let export = client.go("", &[]).unwrap().export();
        assert!(export.is_some());
        for offset in [0, 4096, HUGE - 4096, HUGE] {
            assert_eq!(client.call(&Ask::write(offset, [1; 4096])).unwrap().error, None);
        }
        assert_eq!(client.call(&Ask::write_zeroes(4096, HUGE)).unwrap().error, None);
        assert_eq!(client.call(&Ask::trim(0, HUGE)).unwrap().error, None);
        let extents = client.call(&Ask::block_status(0, HUGE)).unwrap().extents();
        assert!(extents[0].0 >= 1 << 31, "{extents:?}");
        assert_eq!(client.call(&Ask::read(HUGE, 8192)).unwrap().data, vec![0; 8192]);
    }
}

/// Many requests at once over each form of replies, which must not get mixed up.
#[test]
fn many_requests_at_once() {
    for upstream in
        [&["memory", "64M"][..], &["--no-sr", "memory", "64M"], &["-o", "memory", "64M"]]
    {
        let upstream = ours(upstream).start();
        stress(&["nbd", &socket(&upstream)]);
        stress(&["--isolation=shared", "nbd", &socket(&upstream)]);
        stress(&["nbd", &socket(&upstream), "shared=true"]);
    }
}

/// Short reads, which any thread may receive, among long ones, which their own threads do.
#[test]
fn reads_of_all_lengths_at_once() {
    for (upstream, more) in [
        (&["pattern", "64M"][..], &[][..]),
        (&["--no-sr", "pattern", "64M"], &[]),
        (&["-o", "pattern", "64M"], &["shared=true"]),
    ] {
        let upstream = ours(upstream).start();
        let parameter = socket(&upstream);
        let server = ours(&[&["nbd", &parameter], more].concat()).start();
        let mut client = server.connected("");
        let lengths = [8, 4096, 32_768, 32_776, 65_536, 1 << 20, 8 << 20, 40 << 20];
        let mut asked = std::collections::HashMap::new();
        for round in 0..4_u64 {
            for (number, length) in (0_u64..).zip(lengths) {
                let offset = (round * 8 + number) * 4096;
                asked.insert(client.send(&Ask::read(offset, length)).unwrap(), (offset, length));
            }
            for _ in lengths {
                let reply = client.receive().unwrap();
                let (offset, length) = asked[&reply.cookie];
                assert_eq!(reply.data.len() as u64, length);
                let words = reply.data.chunks_exact(8).zip(0_u64..);
                for (word, number) in words {
                    assert_eq!(word, (offset + number * 8).to_be_bytes());
                }
            }
        }
    }
}

#[test]
fn holes_of_reads_and_extents_are_passed_on() {
    let upstream = ours(&["data", "1 @65536 2*4096 @1048575 3"]).start();
    for more in [&[][..], &["shared=true"]] {
        let parameter = socket(&upstream);
        let server = ours(&[&["nbd", &parameter], more].concat()).start();
        let mut client = server.connect();
        client.handshake().unwrap();
        client.structured_replies().unwrap();
        client.set_meta_context("", &["base:allocation"]).unwrap();
        client.go("", &[]).unwrap();
        let mut expected = vec![0; 1 << 20];
        expected[0] = 1;
        expected[65_536..65_536 + 4096].fill(2);
        expected[(1 << 20) - 1] = 3;
        assert!(client.call(&Ask::read(0, 1 << 20)).unwrap().data == expected);
        let ask = Ask::block_status(0, 1 << 20);
        let extents = client.call(&ask).unwrap().extents();
        let mut direct = upstream.connect();
        direct.handshake().unwrap();
        direct.structured_replies().unwrap();
        direct.set_meta_context("", &["base:allocation"]).unwrap();
        direct.go("", &[]).unwrap();
        assert_eq!(extents, direct.call(&ask).unwrap().extents());
        assert!(extents.len() > 1);
        let one = client.call(&ask.flags(CommandFlags::REQ_ONE)).unwrap().extents();
        assert_eq!(one.len(), 1);
    }
}

#[test]
fn a_program_that_is_run_ends_with_the_server() {
    let dir = TempDir::new();
    std::fs::write(dir.join("disk"), vec![5; 1 << 20]).unwrap();
    let disk = format!("arg={}", dir.join("disk").display());
    let mut server = ours(&["nbd", "command=qemu-nbd", "arg=-f", "arg=raw", &disk]).start();
    for _ in 0..2 {
        let mut client = server.connected("");
        assert_eq!(client.call(&Ask::read(0, 512)).unwrap().data, [5; 512]);
    }
    let programs = children(server.template());
    assert_eq!(programs.len(), 1);
    // Confined as programs of a stack are: no new privileges, a filter of system calls.
    let status = nbdkit_tests::processes::status(programs[0], "Seccomp:");
    assert_eq!(status, 2);
    assert!(server.stop().success());
    eventually("the program has ended", || !is_alive(programs[0]));
}

#[test]
fn a_program_that_cannot_be_run_stops_the_start() {
    let finished = ours(&["nbd", "command=/nonexistent/program"]).try_start().unwrap_err();
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("/nonexistent/program"), "{}", finished.stderr);
}

#[test]
fn a_program_that_dies_is_an_error_of_each_request() {
    let dir = TempDir::new();
    std::fs::write(dir.join("disk"), vec![5; 1 << 20]).unwrap();
    let disk = format!("arg={}", dir.join("disk").display());
    let server = ours(&["nbd", "command=qemu-nbd", "arg=-f", "arg=raw", &disk]).start();
    let mut client = server.connected("");
    let program = children(server.template())[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(program), Signal::SIGKILL).unwrap();
    eventually("it fails", || {
        [EIO, ESHUTDOWN].contains(&error_of(&mut client, &Ask::read(0, 512)))
    });
}
