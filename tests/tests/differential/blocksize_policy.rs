//! The blocksize-policy filter: what is advertised, and what is refused.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, TempDir, row_name};

use crate::below;

const LIMITS: [&str; 3] =
    ["blocksize-minimum=512", "blocksize-preferred=4k", "blocksize-maximum=8k"];
const RANGES: [(u64, u64); 8] = [
    (0, 512),
    (0, 8192),
    (0, 8704),
    (0, 100),
    (50, 512),
    (50, 700),
    (512, 1000),
    ((1 << 20) - 512, 512),
];

#[test]
fn requests_that_the_policy_refuses() {
    for_each(&["allow", "error"], |policy| {
        let policy = format!("blocksize-error-policy={policy}");
        let rest = [&["null", "1M"], &LIMITS[..], &[&*policy]].concat();
        below::compare(row_name!(), &policy, "blocksize-policy", &rest, |s| {
            s.open();
            for (offset, length) in RANGES {
                s.read(offset, length);
                s.write(offset, length as usize, 1);
                s.ask(&Ask::write_zeroes(offset, length));
                s.ask(&Ask::trim(offset, length));
                s.ask(&Ask::cache(offset, length));
            }
            s.block_status(0, 512);
            s.block_status(0, 8704);
        });
    });
}

#[test]
fn block_sizes_of_the_policy() {
    let parameters: [&[&str]; 9] = [
        &[],
        &["blocksize-minimum=512"],
        &["blocksize-minimum=8k", "blocksize-preferred=8k"],
        &["blocksize-preferred=512"],
        &["blocksize-preferred=32k"],
        &["blocksize-maximum=4k"],
        &["blocksize-maximum=1M"],
        &["blocksize-preferred=0"],
        &["blocksize-minimum=4k", "--filter=cache"],
    ];
    for_each(&parameters, |parameters| {
        let arguments = [&["--filter=blocksize-policy", "null", "1M"], parameters].concat();
        Row::new(row_name!(), &arguments).variant(&parameters.join(" ")).compare(|s| {
            s.connect();
            s.block_sizes("");
            s.disconnect();
        });
    });
}

#[test]
fn parameters_of_the_policy() {
    let parameters: [&[&str]; 14] = [
        &["blocksize-error-policy=foo"],
        &["blocksize-minimum=3"],
        &["blocksize-minimum=0"],
        &["blocksize-minimum=128K"],
        &["blocksize-preferred=3"],
        &["blocksize-preferred=256"],
        &["blocksize-preferred=64M"],
        &["blocksize-maximum=3", "blocksize-minimum=2"],
        &["blocksize-maximum=5G"],
        &["blocksize-minimum=5G"],
        &["blocksize-maximum=0"],
        &["blocksize-minimum=4k", "blocksize-preferred=512"],
        &["blocksize-preferred=4k", "blocksize-maximum=512"],
        &["blocksize-size=4k"],
    ];
    for_each(&parameters, |parameters| {
        let command = ["--filter=blocksize-policy", "memory", "1M"];
        let arguments = [&command[..], parameters, &["--run", "true"]].concat();
        Row::new(row_name!(), &arguments).variant(&parameters.join(" ")).compare_command();
    });
}

#[test]
fn the_unaligned_end_of_a_disk_can_be_reached_unless_the_policy_is_strict() {
    for (policy, reaches) in [("error", true), ("strict-error", false)] {
        let policy = format!("blocksize-error-policy={policy}");
        let server =
            ours(&["--filter=blocksize-policy", "null", "100001", &policy]).args(LIMITS).start();
        let mut client = below::open(&server);
        let error = below::ask(&mut client, &Ask::read(99_840, 161));
        assert_eq!(error.is_none(), reaches, "{policy}");
    }
}

/// The other client goes on.
#[test]
fn a_client_that_writes_too_much_at_once_is_disconnected() {
    let server = ours(&["--filter=blocksize-policy", "memory", "1M"])
        .arg("blocksize-write-disconnect=64k")
        .start();
    let (mut greedy, mut other) = (below::open(&server), below::open(&server));
    below::write(&mut greedy, 0, 65_536, 1);
    greedy.call(&Ask::write(0, [2; 65_537])).unwrap_err();
    eventually("its worker has ended", || server.workers().len() == 1);
    assert_eq!(below::read(&mut other, 0, 10), [1; 10]);
}

/// The server reads around the holes in a file, and writes in blocks: sizes that the policy would
/// refuse if a client chose them.
#[test]
fn parts_of_a_request_are_not_held_against_the_policy() {
    let dir = TempDir::new();
    let disk = dir.path().join("disk");
    let file = File::create(&disk).unwrap();
    file.set_len(4 << 20).unwrap();
    file.write_all_at(&[1], 8192).unwrap();
    let server = ours(&["--filter=blocksize-policy", "file", disk.to_str().unwrap()])
        .args(["blocksize-minimum=64k", "blocksize-preferred=64k", "blocksize-maximum=32M"])
        .arg("blocksize-error-policy=error")
        .start();
    let mut client = below::open(&server);
    let data = below::read(&mut client, 0, 256 << 10);
    assert_eq!((data.len(), data[8191], data[8192], data[8193]), (256 << 10, 0, 1, 0));
    below::write(&mut client, 1 << 20, 256 << 10, 2);
    assert_eq!(below::read(&mut client, 1 << 20, 256 << 10), [2; 256 << 10]);
}
