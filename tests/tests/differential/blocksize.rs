//! The blocksize filter: what the layer below is asked, and clients who write parts of one block.

use nbd_protocol::constants::{CommandFlags, TransmissionFlags};
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::ours;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, row_name};

use crate::below;

fn compare(name: &str, variant: &str, parameters: &[&str], script: impl Fn(&mut Session)) {
    let rest = [&["memory", "1M"], parameters].concat();
    below::compare(name, variant, "blocksize", &rest, script);
}

const LIMITS: [&str; 3] = ["minblock=4k", "maxdata=16k", "maxlen=64k"];
/// Both ends in blocks, one in the middle of one, both, within one, and on both sides of one.
const RANGES: [(u64, u64); 6] =
    [(8192, 16_384), (8192, 20_000), (50, 40_000), (50, 100), (4090, 12), (12_288, 4096)];

#[test]
fn blocksize_of_reads() {
    compare(row_name!(), "", &LIMITS, |s| {
        s.open();
        RANGES.iter().for_each(|(offset, length)| s.read(*offset, *length));
        s.read((1 << 20) - 1, 1);
    });
}

#[test]
fn blocksize_of_changes() {
    for_each(&["pass", "emulate", "discard"], |fua| {
        let rest = [&["--filter=fua", "memory", "1M"], &LIMITS[..], &[&format!("fuamode={fua}")]];
        below::compare(row_name!(), fua, "blocksize", &rest.concat(), |s| {
            s.open();
            s.write(0, 1 << 18, 7);
            for (offset, length) in RANGES {
                let write = Ask::write(offset, vec![1; length as usize]);
                let requests =
                    [write, Ask::write_zeroes(offset, length), Ask::trim(offset, length)];
                for ask in requests {
                    s.ask(&ask);
                    s.ask(&ask.clone().flags(CommandFlags::FUA));
                }
                let no_hole = Ask::write_zeroes(offset, length).flags(CommandFlags::NO_HOLE);
                s.ask(&no_hole);
                let fast = Ask::write_zeroes(offset, length).flags(CommandFlags::FAST_ZERO);
                s.ask_if(TransmissionFlags::SEND_FAST_ZERO, &fast);
            }
            s.read(0, 1 << 18);
        });
    });
}

/// How far extents are asked for at a time is each server's own: nbdkit rounds the length up, and
/// ours the end.
#[test]
fn blocksize_of_extents_and_prefetching() {
    compare(row_name!(), "", &LIMITS, |s| {
        s.open();
        s.write(70_000, 10, 7);
        for (offset, length) in RANGES {
            s.block_status(offset, length);
            s.ask(&Ask::block_status(offset, length).flags(CommandFlags::REQ_ONE));
            s.ask(&Ask::cache(offset, length));
        }
        s.block_status(60_000, 20_000);
    });
}

#[test]
fn blocksize_that_is_advertised() {
    let below: [&[&str]; 4] = [
        &["null", "1M"],
        &["null", "1M", "minblock=64k"],
        &["null", "100001", "minblock=512"],
        &["null", "1000", "minblock=4k"],
    ];
    for_each(&below, |rest| {
        let arguments = [&["--filter=blocksize"], rest].concat();
        Row::new(row_name!(), &arguments).variant(&rest.join(" ")).compare(|s| {
            s.connect();
            s.block_sizes("");
            s.info("");
            s.disconnect();
        });
    });
}

#[test]
fn blocksize_parameters() {
    let parameters: [&[&str]; 13] = [
        &["minblock=3"],
        &["minblock=128k"],
        &["minblock=0"],
        &["minblock=5G"],
        &["minblock=3", "minblock=4"],
        &["maxdata=0"],
        &["maxdata=128M"],
        &["minblock=4k", "maxdata=1000"],
        &["maxlen=0"],
        &["maxlen=5G"],
        &["maxlen=1000", "minblock=4k"],
        &["maxdata=10", "maxlen=5"],
        &["maxblock=4k"],
    ];
    for_each(&parameters, |parameters| {
        let arguments = [&["--filter=blocksize", "memory", "1M"], parameters, &["--run", "true"]];
        Row::new(row_name!(), &arguments.concat()).variant(&parameters.join(" ")).compare_command();
    });
    let help = |line: &str| {
        (line.contains("<SIZE>") || line.contains("filter: ")).then(|| line.to_owned())
    };
    Row::new(row_name!(), &["--help", "--filter=blocksize", "null"])
        .variant("--help")
        .normalise(help)
        .compare_command();
}

/// nbdkit 1.32.5 ends here: the length is 2^32, and 0 in 32 bits.
#[test]
fn block_status_of_nearly_4_gib_through_blocksize() {
    let server = ours(&["--filter=blocksize", "null", "8G", "minblock=64k"]).start();
    let mut client = below::open(&server);
    let extents = below::extents(&mut client, 1, u32::MAX.into());
    assert_eq!(extents, [(0xffff_0000 - 1, 3)]);
    assert_eq!(below::read(&mut client, (8 << 30) - 1, 1), [0]);
}

/// Each client reads back what it has written before the others can have changed it: they write
/// other bytes of the block, and whole blocks beside it.
#[test]
fn two_clients_write_parts_of_one_block_through_blocksize() {
    const ROUNDS: usize = 500;
    let builder = ours(&["--filter=blocksize", "file"]);
    let disk = builder.dir().path().join("disk");
    std::fs::write(&disk, [0; 1 << 16]).unwrap();
    let server = builder.arg(&disk).arg("minblock=4k").start();
    std::thread::scope(|scope| {
        for (offset, length) in [(100, 100), (200, 100), (300, 8000)] {
            let mut client = below::open(&server);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let byte = (round % 251) as u8 + 1;
                    below::write(&mut client, offset, length, byte);
                    let now = below::read(&mut client, offset, length as u64);
                    assert!(now == vec![byte; length], "round {round} of {length}@{offset}");
                }
            });
        }
    });
    // Processes, not threads.
    let _clients = [below::open(&server), below::open(&server)];
    assert!(server.workers().len() >= 2);
}

/// A client that is killed while it has a block locked does not keep others from it.
#[test]
fn a_killed_client_of_blocksize_blocks_nobody() {
    let server =
        ours(&["--filter=blocksize", "--filter=delay", "memory", "1M", "minblock=4k", "rdelay=2"])
            .start();
    let mut dying = below::open(&server);
    let [worker] = server.workers()[..] else { panic!("{:?}", server.workers()) };
    dying.send(&Ask::write(1, [1; 10])).unwrap();
    let mut client = below::open(&server);
    client.send(&Ask::write(20, [2; 10])).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::SIGKILL).unwrap();
    assert_eq!(client.receive().unwrap().nbd_error(), None);
    assert_eq!(below::read(&mut client, 20, 10), [2; 10]);
}
