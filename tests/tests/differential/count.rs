//! The count filter, which Debian's nbdkit has not.

use std::fs::{File, read_to_string};
use std::os::unix::fs::FileExt;

use nbd_protocol::constants::CommandFlags;
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, TempDir};

use crate::below;

#[test]
fn bytes_of_clients_in_two_processes_are_summed_up() {
    let mut server = ours(&["-v", "--filter=count", "memory", "1M"]).start();
    let (mut one, mut two) = (server.connected(""), server.connected(""));
    for client in [&mut one, &mut two] {
        for ask in [
            Ask::read(0, 1000),
            Ask::write(0, [1; 200]),
            Ask::write_zeroes(0, 30_000),
            Ask::trim(0, 4096),
        ] {
            assert_eq!(client.call(&ask).unwrap().error, None);
        }
    }
    assert_eq!(two.call(&Ask::read(0, 11)).unwrap().error, None);
    one.disconnect().unwrap();
    two.disconnect().unwrap();
    assert!(server.stop().success());
    let text = server.stderr_text_after_end();
    assert!(
        text.contains("count bytes: read 2011, written 400, zeroed 60000, trimmed 8192"),
        "{text}"
    );
}

/// Large requests are carried out without calling the filters: from the file to the socket and
/// back, and around the holes of the file.
#[test]
fn requests_that_pass_the_filters_by_are_counted_once() {
    let dir = TempDir::new();
    let [disk, stats] = ["disk", "stats"].map(|name| dir.path().join(name));
    let file = File::create(&disk).unwrap();
    file.set_len(4 << 20).unwrap();
    file.write_all_at(&[1; 300_000], 8192).unwrap();
    let mut server = ours(&["-v", "-D", "nbdkit.backend.datapath=0"])
        .args(["--filter=count", "--filter=offset", "--filter=stats", "file"])
        .args([&disk, &format!("statsfile={}", stats.display()).into()])
        .arg("offset=8k")
        .start();
    let mut client = below::open(&server);
    for ask in [
        // Data only: spliced.
        Ask::read(0, 200_000),
        // With a hole at its end, sent in two chunks, and the same in one.
        Ask::read(0, 400_000),
        Ask::read(0, 400_000).flags(CommandFlags::DF),
        Ask::read(1, 10),
        Ask::write(1 << 20, vec![3; 1_000_000]),
        Ask::write(1, [4; 10]),
    ] {
        assert_eq!(below::ask(&mut client, &ask), None, "{ask:?}");
    }
    client.disconnect().unwrap();
    assert!(server.stop().success());
    let text = server.stderr_text_after_end();
    assert!(text.contains("count bytes: read 1000010, written 1000010, zeroed 0"), "{text}");
    let summary = read_to_string(&stats).unwrap();
    let line = |name: &str| summary.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    let (read, write) = (line("read: ").unwrap(), line("write: ").unwrap());
    assert!(read.starts_with("read: 4 ops, ") && read.contains(" s, 976.57 KiB, "), "{read}");
    assert!(write.starts_with("write: 2 ops, ") && write.contains(" s, 976.57 KiB, "), "{write}");
}
