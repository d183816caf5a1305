//! Who is let in when many come: `--max-connections` and its relations, and a listener that is out
//! of descriptors.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nbd_protocol::constants::TransmissionFlags;
use nbdkit_tests::client::Headers;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, Client, Server};

use super::bystander::{Bystander, Work};
use super::{open, succeed};

/// Whether the server has greeted, within a while.
fn greets(client: &mut Client<UnixStream>, within: Duration) -> bool {
    client.transport().set_read_timeout(Some(within)).expect("set");
    client.transport().read_exact(&mut [0; 18]).is_ok()
}

/// Whether the server has hung up, having said no more than its greeting, for which there may have
/// been no time.
fn is_ended(client: &mut Client<UnixStream>) -> bool {
    let mut said = Vec::new();
    client.transport().read_to_end(&mut said).is_ok() && [0, 18].contains(&said.len())
}

const SOON: Duration = Duration::from_secs(10);
const NOW: Duration = Duration::from_millis(300);

#[test]
fn clients_beyond_the_limit_wait_until_another_leaves() {
    let server = ours(&["--max-connections=3", "memory", "1M"]).start();
    let mut served: Vec<_> = (0..3).map(|_| open(&server, Headers::Simple)).collect();
    let mut waiting = server.connect();
    assert!(!greets(&mut waiting, NOW), "it waits");
    let line = server.wait_for_stderr("--max-connections");
    assert!(line.contains("3 clients are connected"), "{line}");
    for client in &mut served {
        succeed(client, &Ask::read(0, 512));
    }
    served.pop();
    assert!(greets(&mut waiting, SOON), "it is served as soon as there is a place");
}

#[test]
fn several_connections_are_promised_only_where_more_than_one_is_let_in() {
    for (options, promised) in [
        (&["memory", "1M"][..], true),
        (&["--max-connections=2", "memory", "1M"], true),
        (&["--max-connections=1", "memory", "1M"], false),
        (&["--max-connections-per-peer=1", "memory", "1M"], false),
        (&["--isolation=shared", "--max-connections=1", "memory", "1M"], false),
    ] {
        let server = ours(options).start();
        let client = open(&server, Headers::Simple);
        assert_eq!(client.offers(TransmissionFlags::CAN_MULTI_CONN), promised, "{options:?}");
    }
}

#[test]
fn a_peer_beyond_its_limit_is_disconnected_and_the_line_says_who() {
    let server = ours(&["--max-connections-per-peer=2", "memory", "1M"]).start();
    let mut first = open(&server, Headers::Simple);
    let second = open(&server, Headers::Simple);
    server.connect().expect_close().expect("closed without a word");
    let line = server.wait_for_stderr("--max-connections-per-peer");
    assert!(line.contains("uid"), "{line}");
    succeed(&mut first, &Ask::read(0, 512));
    drop(second);
    eventually("the place is free again", || server.workers().len() == 1);
    eventually("a new client is served", || greets(&mut server.connect(), SOON));
}

#[test]
fn tcp_peers_are_told_apart_by_address_and_not_by_port() {
    let server = ours(&["--max-connections-per-peer=1", "memory", "1M"]).tcp().start();
    let mut first = server.connect_tcp();
    first.handshake().expect("served");
    server.connect_tcp().expect_close().expect("closed");
    let line = server.wait_for_stderr("too many connections");
    assert!(line.contains("client 127.0.0.1:"), "{line}");
}

/// No `--timeout`, and still nobody who says nothing keeps anybody out.
#[test]
fn silent_connections_give_way_to_clients_that_speak() {
    let server = ours(&["memory", "1M"]).start();
    let mut served = open(&server, Headers::Simple);
    let bystander = Bystander::start(&server, "500 silent connections", Work::Writes(4096));
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(server.connect());
    }
    // A quarter of 1024 are handshakes, half of those of one peer.
    eventually("the oldest are ended", || server.workers().len() <= 128 + 3);
    succeed(&mut served, &Ask::read(0, 512));
    succeed(&mut open(&server, Headers::Structured), &Ask::read(0, 512));
    assert!(silent.iter_mut().take(300).all(is_ended), "the oldest ended");
    bystander.finish();
    let line = server.wait_for_stderr("evicted for a newer");
    assert!(!line.contains("signal"), "{line}");
    let lines = server.stderr_text().lines().count();
    assert!(lines < 60, "a flood of clients is no flood of lines: {lines}");
}

/// The one process of all clients says when a handshake is over, and ends the client that it is
/// told to.
#[test]
fn silent_connections_give_way_where_one_process_serves_all() {
    let server = ours(&["--isolation=shared", "memory", "1M"]).start();
    let mut served = open(&server, Headers::Simple);
    let mut silent: Vec<_> = (0..200).map(|_| server.connect()).collect();
    // A quarter of 1024 are handshakes, half of those of one peer.
    assert!(silent.iter_mut().take(60).all(is_ended), "the oldest ended");
    succeed(&mut served, &Ask::read(0, 512));
    succeed(&mut open(&server, Headers::Structured), &Ask::read(0, 512));
    let _ = server.wait_for_stderr("evicted for a newer");
    // Those who served have not: their handshakes are over.
    succeed(&mut served, &Ask::read(0, 512));
}

#[test]
fn silent_connections_in_all_places_give_them_up_after_a_second() {
    let server = ours(&["--max-connections=8", "memory", "1M"]).start();
    let mut served = open(&server, Headers::Simple);
    let _silent: Vec<_> = (0..20).map(|_| server.connect()).collect();
    let begin = Instant::now();
    // Behind 13 silent ones in the queue, of which 7 are let in each second.
    let mut late = server.connect();
    assert!(greets(&mut late, SOON));
    println!("a client behind 20 silent ones, 8 places: served after {:?}", begin.elapsed());
    succeed(&mut served, &Ask::read(0, 512));
}

#[test]
fn connections_opened_and_dropped_in_a_hurry_leave_nothing_behind() {
    let server = ours(&["memory", "1M"]).start();
    let bystander = Bystander::start(&server, "1000 dropped connections", Work::Writes(4096));
    for _ in 0..1000 {
        drop(server.connect());
    }
    // The last of them are still in the kernel's queue.
    let open_files =
        || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("alive").count();
    std::thread::sleep(Duration::from_millis(300));
    eventually("all workers end", || server.workers().len() <= 1 && open_files() < 20);
    bystander.finish();
    eventually("the bystander's end too", || server.workers().is_empty());
    assert!(!server.stderr_text().contains("panic"));
}

/// nbdkit(1) has nothing to say about it; accept(2) does: EMFILE must neither end the server nor
/// make it spin.
#[test]
fn running_out_of_descriptors_is_survived_reported_and_over_when_clients_leave() {
    let server = ours(&["memory", "1M"]).through_shell(r#"ulimit -n 32; exec "$0" "$@""#).start();
    let mut first = open(&server, Headers::Simple);
    let mut many: Vec<_> = (0..60).map(|_| server.connect()).collect();
    let line = server.wait_for_stderr("New clients have to wait");
    // As many are let in as there are descriptors for. Those on their way to the template count for
    // all processes of a user who may not exceed limits, other tests' too: unix(7), ETOOMANYREFS.
    assert!(
        line.contains("clients are connected") || line.contains("Too many references"),
        "{line}"
    );
    succeed(&mut first, &Ask::read(0, 512));
    let before = processor_time(&server);
    std::thread::sleep(Duration::from_secs(1));
    let spent = processor_time(&server) - before;
    println!("out of descriptors for a second: {spent} ticks of processor time");
    assert!(spent < 30, "the listener rests: {spent} ticks");
    // Those who wait are served one after the other as places come free.
    let begin = Instant::now();
    for client in &mut many {
        assert!(greets(client, SOON));
        // It may have been evicted meanwhile, for the next.
        let _ = client.transport().shutdown(std::net::Shutdown::Both);
    }
    println!("60 clients after one another through few descriptors: {:?}", begin.elapsed());
    succeed(&mut first, &Ask::read(0, 512));
    succeed(&mut open(&server, Headers::Structured), &Ask::read(0, 512));
    let text = server.stderr_text();
    for reason in
        ["clients are connected. New clients have to wait", "references: cannot splice. New"]
    {
        assert!(text.matches(reason).count() <= 1, "{text}");
    }
    assert!(!text.contains("Too many open files"), "{text}");
}

/// select(2) is what the soft limit is low for.
#[test]
fn the_soft_limit_of_descriptors_is_raised_and_fewer_clients_than_asked_for_are_a_notice() {
    let server = ours(&["-v", "memory", "1M"])
        .through_shell(r#"ulimit -Sn 40; ulimit -Hn 300; exec "$0" "$@""#)
        .start();
    let line = server.wait_for_stderr("(--max-connections)");
    assert!(line.contains("notice: the limit of 300 descriptors"), "{line}");
    let clients: Vec<_> = (0..60).map(|_| open(&server, Headers::Simple)).collect();
    assert_eq!(server.workers().len(), clients.len());
}

/// The one process of all clients has the least room: what of a client's descriptors came is
/// closed, and others go on.
#[test]
fn clients_that_do_not_fit_into_a_shared_process_are_refused_and_others_go_on() {
    let server = ours(&["--isolation=shared", "memory", "1M"]).start();
    let mut first = open(&server, Headers::Simple);
    succeed(&mut first, &Ask::write(0, vec![7; 512]));
    let template = nix::unistd::Pid::from_raw(server.template());
    // An ordinary user's own process cannot be looked into, since it is not dumpable.
    let Ok(open_files) = std::fs::read_dir(format!("/proc/{template}/fd")) else {
        assert!(!nix::unistd::geteuid().is_root(), "the template has ended");
        return println!("skipped: needs root");
    };
    let open_files = open_files.count();
    let limit = open_files as u64 + 4;
    limit_descriptors(template, limit);
    let mut others: Vec<_> = (0..12).map(|_| server.connect()).collect();
    let line = server.wait_for_stderr("descriptors were lost");
    assert!(line.contains("is refused"), "{line}");
    assert!(others.iter_mut().rev().any(is_ended), "whoever does not fit is disconnected");
    drop(others);
    assert_eq!(succeed(&mut first, &Ask::read(0, 512)), [7; 512]);
    eventually("newcomers fit again", || greets(&mut server.connect(), SOON));
}

/// prlimit(1) for a process of ours.
fn limit_descriptors(pid: nix::unistd::Pid, limit: u64) {
    let limit = format!("--nofile={limit}");
    let status = std::process::Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &limit])
        .status()
        .expect("prlimit, of util-linux");
    assert!(status.success());
}

/// User and system time of the listener, clock ticks.
fn processor_time(server: &Server) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).expect("alive");
    let (_, fields) = stat.rsplit_once(") ").expect("a name");
    fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}
