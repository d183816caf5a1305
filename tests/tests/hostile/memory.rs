//! Memory, threads and descriptors of a worker are bounded whatever its client asks for. Bounds are
//! generous: they tell a bounded server from one that is not.

use std::time::Duration;

use nbd_protocol::constants::{Command, CommandFlags, Opt};
use nbd_protocol::handshake::InfoRequest;
use nbd_protocol::transmission::Request;
use nbdkit_tests::client::{Failure, Headers, Transport};
use nbdkit_tests::processes::{eventually, is_alive, threads};
use nbdkit_tests::server::Builder;
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, Server};

use super::bystander::{Bystander, Work};
use super::processes::{peak_kib, worker_of};
use super::{GIB, KIB, MIB, open, succeed};

/// A sparse file in the server's directory.
fn sparse_file(builder: &Builder, size: u64) -> std::fs::File {
    let file = std::fs::File::create(builder.dir().join("disk")).expect("created");
    file.set_len(size).expect("resized");
    file
}

fn file_server(size: u64) -> Server {
    let builder = ours(&["file", "{dir}/disk"]);
    sparse_file(&builder, size);
    builder.start()
}

fn measured(what: &str, worker: i32, most_mib: u64) {
    let (peak, threads) = (peak_kib(worker), threads(worker));
    println!("{what}: at most {} MiB resident, {threads} threads", peak / KIB);
    assert!(peak / KIB <= most_mib, "{what}: {peak} KiB");
    assert!(threads <= 17, "{what}: {threads} threads");
}

/// Asks for much and takes nothing, until the server stops taking requests.
fn read_without_collecting(server: &Server, what: &'static str) {
    let bystander = Bystander::start(server, what, Work::Writes(60 * MIB));
    let (worker, mut greedy) = worker_of(server, || open(server, Headers::Simple));
    greedy.transport().set_timeout(Duration::from_millis(300)).expect("set");
    for _ in 0..16 {
        greedy.send(&Ask::read(0, 32 * MIB)).expect("requests are small");
    }
    std::thread::sleep(Duration::from_millis(700));
    measured(what, worker, 160);
    bystander.finish();
}

#[test]
fn sixteen_reads_of_32_mib_never_collected_from_memory() {
    read_without_collecting(&ours(&["memory", "64M"]).start(), "16 reads uncollected, memory");
}

#[test]
fn sixteen_reads_of_32_mib_never_collected_from_a_file() {
    // Holes are not sent, so the file needs data.
    let builder = ours(&["file", "{dir}/disk"]);
    std::fs::write(builder.dir().join("disk"), vec![1; 64 << 20]).expect("written");
    read_without_collecting(&builder.start(), "16 reads uncollected, file");
}

fn announce_without_sending(server: &Server, what: &'static str) {
    let bystander = Bystander::start(server, what, Work::Writes(MIB));
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let (worker, mut client) = worker_of(server, || open(server, Headers::Simple));
        let request = Request {
            flags: CommandFlags::empty(),
            command: Command::WRITE,
            cookie: 1,
            offset: 0,
            length: 64 * MIB,
        };
        client.send_request(&request, &[7; 1000]).expect("sent");
        waiting.push((worker, client));
    }
    std::thread::sleep(Duration::from_millis(300));
    for (worker, _) in &waiting {
        measured(what, *worker, 12);
    }
    bystander.finish();
}

#[test]
fn a_write_that_is_announced_and_never_sent_takes_no_memory() {
    announce_without_sending(&ours(&["memory", "64M"]).start(), "64 MiB announced, memory");
    announce_without_sending(&file_server(64 * MIB), "64 MiB announced, file");
}

#[test]
fn writes_that_are_too_long_are_thrown_away_as_they_come() {
    let server = ours(&["memory", "256M"]).start();
    let (worker, mut client) = worker_of(&server, || open(&server, Headers::Structured));
    let reply = client.call(&Ask::write(0, vec![1; 100 << 20])).expect("a reply");
    assert!(reply.error.is_some());
    measured("100 MiB refused", worker, 12);
    let reply = client.call(&Ask::write(0, vec![1; 64 << 20])).expect("a reply");
    assert_eq!(reply.error, None);
    measured("64 MiB taken", worker, 160);
}

/// Requests that wait in the stack, on threads: what they carry is bounded together.
#[test]
fn slow_writes_of_32_mib_wait_in_the_socket_and_not_in_memory() {
    let server = ours(&["--filter=delay", "memory", "64M", "wdelay=60"]).start();
    let (worker, mut greedy) = worker_of(&server, || open(&server, Headers::Structured));
    greedy.transport().set_timeout(Duration::from_millis(500)).expect("set");
    let write = Ask::write(0, vec![1; 32 << 20]);
    let sent = (0..16).take_while(|_| greedy.send(&write).is_ok()).count();
    println!("slow writes of 32 MiB: {sent} of 16 were taken");
    assert!(sent < 16, "the rest has to wait");
    measured("slow writes of 32 MiB", worker, 160);
}

/// Every second block is data, so that each block is an extent.
#[test]
fn block_status_of_a_file_in_pieces() {
    use std::os::unix::fs::FileExt;
    const PIECES: u64 = 20_000;
    let builder = ours(&["file", "{dir}/disk"]);
    let file = sparse_file(&builder, 8 * GIB);
    for piece in 0..PIECES {
        file.write_at(&[1], piece * 2 * 64 * KIB).expect("written");
    }
    let server = builder.start();
    let bystander = Bystander::start(&server, "block status in pieces", Work::Writes(7 * GIB));
    let (worker, mut client) = worker_of(&server, || open(&server, Headers::Extended));
    let runs = client.call(&Ask::block_status(0, 4 * GIB)).expect("a reply").extents();
    println!("block status in pieces: {} extents", runs.len());
    // Asked and never collected.
    client.transport().set_timeout(Duration::from_millis(300)).expect("set");
    for _ in 0..200 {
        if client.send(&Ask::block_status(0, 4 * GIB)).is_err() {
            break;
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    measured("block status in pieces, uncollected", worker, 160);
    bystander.finish();
}

#[test]
fn ten_thousand_exports_listed_to_clients_that_do_not_read() {
    let names: Vec<_> =
        (0..10_000).map(|n| format!("export-{n:05} with a name of some length\n")).collect();
    let list = "list_exports=cat {dir}/names";
    let size = "get_size=echo 1M";
    // The script reads a file that a sandbox would keep from it.
    let builder = ours(&["--sandbox=off", "eval", size, "pread=head -c $3 /dev/zero", list]);
    std::fs::write(builder.dir().join("names"), format!("NAMES\n{}", names.concat()))
        .expect("written");
    let server = builder.start();
    let bystander = Bystander::start(&server, "LIST of 10000", Work::ReadsZeroes(0));
    let (worker, mut greedy) = worker_of(&server, || super::haggling(&server));
    greedy.transport().set_timeout(Duration::from_millis(300)).expect("set");
    for _ in 0..20 {
        if greedy.send_option(Opt::LIST, &[]).is_err() {
            break;
        }
    }
    std::thread::sleep(Duration::from_secs(1));
    measured("LIST of 10000, uncollected", worker, 64);
    let mut patient = super::haggling(&server);
    assert_eq!(patient.list().expect("a list").exports.len(), 10_000);
    bystander.finish();
}

#[test]
fn info_again_and_again_leaves_nothing_behind() {
    let server = ours(&["--filter=cow", "memory", "64M"]).start();
    let bystander = Bystander::start(&server, "INFO repeated", Work::Writes(MIB));
    let (worker, mut client) = worker_of(&server, || super::haggling(&server));
    // Not shown to an ordinary user, since the worker is not dumpable.
    let descriptors = || std::fs::read_dir(format!("/proc/{worker}/fd")).map_or(0, Iterator::count);
    client.info("", &[]).expect("a reply");
    let (before, memory) = (descriptors(), peak_kib(worker));
    let mut payload = Vec::new();
    InfoRequest::encode(&mut payload, "", &[]);
    for _ in 0..5000 {
        client.option(Opt::INFO, &payload).expect("a reply");
    }
    assert_eq!(descriptors(), before);
    let grown = peak_kib(worker) - memory;
    println!("5000 INFO: grown by {grown} KiB");
    assert!(grown < 4096, "{grown} KiB");
    bystander.finish();
}

#[test]
fn clients_that_read_and_write_a_byte_at_a_time_hold_up_nobody() {
    let server = file_server(64 * MIB);
    let bystander = Bystander::start(&server, "slow clients", Work::Writes(32 * MIB));
    let mut slow: Vec<_> = (0..10).map(|_| open(&server, Headers::Structured)).collect();
    let request = Request {
        flags: CommandFlags::empty(),
        command: Command::READ,
        cookie: 1,
        offset: 0,
        length: 100,
    };
    for byte in request.encode() {
        for client in &mut slow {
            client.send_raw(&[byte]).expect("taken");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for _ in 0..20 {
        for client in &mut slow {
            client.receive_raw(1).expect("a byte of the reply");
        }
    }
    bystander.finish();
}

#[test]
fn half_open_connections_end_or_wait_without_harm() {
    let server = file_server(64 * MIB);
    let bystander = Bystander::start(&server, "half-open connections", Work::Writes(32 * MIB));
    // Our direction is over: what was asked before is still answered, then the worker ends.
    let (worker, mut client) = worker_of(&server, || open(&server, Headers::Structured));
    client.send(&Ask::read(0, 4096)).expect("sent");
    client.half_close().expect("closed");
    assert_eq!(client.receive().expect("a reply").data, [0; 4096]);
    client.expect_close().expect("the server closes as well");
    eventually("the worker ends", || !is_alive(worker));
    // Half a request and silence costs a small worker, no more.
    let (worker, mut client) = worker_of(&server, || open(&server, Headers::Structured));
    client.send_raw(&[0x25, 0x60, 0x95]).expect("sent");
    measured("half a request", worker, 12);
    client.half_close().expect("closed");
    assert!(matches!(client.receive_raw(1), Err(Failure::Closed)));
    succeed(&mut open(&server, Headers::Simple), &Ask::read(0, 1));
    bystander.finish();
}
