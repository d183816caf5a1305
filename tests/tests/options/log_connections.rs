//! `--log-connections`: a notice about each connection at its end.

use nbdkit_tests::processes::eventually;
use nbdkit_tests::{Ask, Server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::log::COMPLAINING;
use crate::support::{Paths, assert_serves, debian_lacks, open};

const OPTION: &str = "--log-connections";
const ENDED: &str = "connection ended: ";

fn is_skipped() -> bool {
    debian_lacks(OPTION)
}

/// What is between the reason and the time in the first notice: client and bytes.
fn notice(server: &Server, reason: &str) -> String {
    let text = server.wait_for_stderr(ENDED);
    let line = text.lines().find(|line| line.contains(ENDED)).expect("a notice");
    let (_, rest) = line.split_once(&format!("notice: {ENDED}{reason} (")).expect(line);
    let (rest, seconds) = rest.rsplit_once(", ").unwrap();
    let seconds: f64 = seconds.strip_suffix(" seconds").unwrap().parse().expect(line);
    assert!((0.0..600.0).contains(&seconds), "{line}");
    rest.to_owned()
}

fn this_client() -> String {
    format!("client pid {} uid {}", std::process::id(), nix::unistd::getuid())
}

/// On a terminal, too, since it was asked for; in one process for all as in one for each.
#[test]
fn a_client_that_leaves_has_a_notice_with_its_bytes() {
    if is_skipped() {
        return;
    }
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let server = Server::nbdkit([OPTION, isolation, "memory", "1M"]).start();
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        client.go("disk", &[]).expect("a reply");
        for ask in [Ask::read(0, 512), Ask::read(4096, 1000), Ask::write(512, *b"abcd")] {
            assert_eq!(client.call(&ask).expect("a reply").error, None);
        }
        client.disconnect().expect("sent");
        let expected = format!("{}, export \"disk\"), 1512 bytes read, 4 written", this_client());
        assert_eq!(notice(&server, "client left"), expected, "{isolation}");
    }
}

/// By all the ways that data takes: copied, spliced, by threads.
#[test]
fn large_requests_are_counted_whatever_their_way() {
    if is_skipped() {
        return;
    }
    let sizes = [4096, 65536, 1 << 20, 3 << 20];
    let total: usize = sizes.iter().sum();
    let delayed = ["--filter=delay", "rdelay=1ms", "wdelay=1ms"];
    for options in [&[][..], &["-t", "1"], &delayed] {
        let filter = options.iter().filter(|it| it.starts_with('-') || !it.contains('='));
        let parameters = options.iter().filter(|it| !it.starts_with('-') && it.contains('='));
        let builder = Server::nbdkit([OPTION]).args(filter).args(["file", "{dir}/disk"]);
        std::fs::File::create(builder.dir().join("disk")).unwrap().set_len(8 << 20).unwrap();
        let server = builder.args(parameters).start();
        let mut client = server.connect();
        open(&mut client);
        for size in sizes {
            let write = Ask::write(0, vec![1; size]);
            assert_eq!(client.call(&write).expect("a reply").error, None);
            assert_eq!(client.call(&Ask::read(0, size as u64)).expect("a reply").error, None);
        }
        client.disconnect().expect("sent");
        let bytes = format!("{total} bytes read, {total} written");
        assert!(notice(&server, "client left").ends_with(&bytes), "{options:?}");
    }
}

#[test]
fn requests_that_fail_do_not_count() {
    if is_skipped() {
        return;
    }
    let upstream = Server::nbdkit(COMPLAINING).start();
    let socket = format!("socket={}", upstream.socket().display());
    let through_nbd = ["nbd", &socket];
    for stack in [&COMPLAINING[..], &through_nbd] {
        let server = Server::nbdkit([OPTION]).args(stack).start();
        let mut client = server.connect();
        open(&mut client);
        for _ in 0..3 {
            assert!(client.call(&Ask::read(0, 512)).expect("a reply").error.is_some());
        }
        // Past the end: no valid request.
        assert!(client.call(&Ask::read(1 << 40, 512)).expect("a reply").error.is_some());
        client.disconnect().expect("sent");
        let notice = notice(&server, "client left");
        assert!(notice.ends_with("), 0 bytes read, 0 written"), "{notice}");
    }
}

#[test]
fn a_killed_worker_has_a_notice_without_bytes() {
    if is_skipped() {
        return;
    }
    let server = Server::nbdkit([OPTION, "memory", "1M"]).start();
    let _client = server.connected("disk");
    let [worker] = server.workers()[..] else { panic!("one worker") };
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    let expected = format!("{}, export \"disk\"), bytes unknown", this_client());
    assert_eq!(notice(&server, "worker killed by signal 9"), expected);
}

#[test]
fn the_reason_tells_who_has_ended_the_connection() {
    if is_skipped() {
        return;
    }
    let nothing = format!("{}), 0 bytes read, 0 written", this_client());

    let server = Server::nbdkit([OPTION, "--timeout=1", "null"]).start();
    let mut client = server.connect();
    client.greeting().expect("a greeting");
    client.expect_close().expect("closed");
    assert_eq!(notice(&server, "handshake timed out"), nothing);

    let server = Server::nbdkit([OPTION, "--filter=ip", "null", "deny=all"]).start();
    let _ = server.connect().expect_close();
    assert_eq!(notice(&server, "refused by the plugin or a filter"), nothing);

    let server = Server::nbdkit([OPTION, "null", "1M"]).start();
    let mut client = server.connect();
    open(&mut client);
    client.send_raw(&[0xff; 28]).expect("sent");
    client.expect_close().expect("closed");
    let _ = notice(&server, "protocol violation by the client");

    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let server = Server::nbdkit([OPTION, isolation, "--filter=blocksize-policy", "null", "1M"])
            .arg("blocksize-write-disconnect=512")
            .start();
        let mut client = server.connect();
        open(&mut client);
        assert!(client.call(&Ask::write(0, [0; 1024])).is_err());
        let _ = notice(&server, "disconnected by the plugin or a filter");
    }

    let mut server = Server::nbdkit([OPTION, "null", "1M"]).start();
    let mut client = server.connect();
    open(&mut client);
    server.stop();
    let _ = notice(&server, "shutdown");
}

#[test]
fn an_evicted_handshake_is_the_listeners_doing() {
    if is_skipped() {
        return;
    }
    let server = Server::nbdkit([OPTION, "--max-connections=1", "null", "1M"]).start();
    let mut first = server.connect();
    first.greeting().expect("a greeting");
    let mut second = server.connect();
    first.expect_close().expect("closed");
    second.greeting().expect("a greeting");
    let _ = notice(&server, "evicted for a newer client");
}

#[test]
fn without_the_option_there_is_none() {
    if is_skipped() {
        return;
    }
    let paths = Paths::new();
    let option = format!("--log={}", paths.text("log"));
    let mut server = Server::nbdkit([&*option, "memory", "1M"]).start();
    assert_serves(&mut server.connect());
    server.stop();
    let text = std::fs::read_to_string(paths.path("log")).unwrap();
    assert!(!text.contains(ENDED), "{text}");
}

/// In a log the client is named once.
#[test]
fn a_log_file_gets_the_notice() {
    if is_skipped() {
        return;
    }
    let paths = Paths::new();
    let option = format!("--log={}", paths.text("log"));
    let server = Server::nbdkit([&*option, OPTION, "memory", "1M"]).start();
    assert_serves(&mut server.connect());
    let text = || std::fs::read_to_string(paths.path("log")).unwrap();
    eventually("the notice", || text().contains(ENDED));
    assert_eq!(text().matches("client pid").count(), 1, "{}", text());
}
