//! The map filter with two clients in two processes. Debian's nbdkit has no such filter.

use nbdkit_tests::Ask;
use nbdkit_tests::server::ours;

#[test]
fn what_one_client_writes_to_a_part_another_reads_where_it_is_below() {
    let arguments = ["--filter=map", "memory", "1M", "map=0-511:4096", "map=4096-4607:0"];
    let server = ours(&arguments).start();
    let (mut one, mut other) = (server.connected(""), server.connected(""));
    assert_eq!(server.workers().len(), 2);
    assert_eq!(one.call(&Ask::write(256, vec![7; 512])).expect("a reply").error, None);
    // 256 bytes went to 4096 and on, which clients see at 0; the others stayed.
    let read = other.call(&Ask::read(0, 1024)).expect("a reply").data;
    assert_eq!(read, [vec![0; 256], vec![7; 512], vec![0; 256]].concat());
    let beyond = ours(&["--filter=map", "memory", "1M", "map=0-511:1048576"]).start();
    let reply = beyond.connected("").call(&Ask::read(0, 512)).expect("a reply");
    assert_eq!(reply.error.map(|it| it.code), Some(5), "EIO");
}

#[test]
fn a_read_through_parts_is_the_same_with_one_process_for_all() {
    let arguments = [
        "--isolation=shared",
        "--filter=map",
        "pattern",
        "1M",
        "map=8-4103:65536",
        "-D",
        "map.ranges=1",
        "-v",
    ];
    let server = ours(&arguments).start();
    let read = server.connected("").call(&Ask::read(0, 4112)).expect("a reply").data;
    let word = |at: u64| at.to_be_bytes();
    assert_eq!(read[..8], word(0));
    assert_eq!(read[8..16], word(65536));
    assert_eq!(read[4096..4104], word(65536 + 4088));
    assert_eq!(read[4104..4112], word(4104));
    assert!(server.wait_for_stderr("map: 8-4103:").contains("map: 8-4103:65536"));
}

#[test]
fn ranges_that_make_no_sense_stop_the_start() {
    for bad in ["map=5-4:0", "map=x", "map=1-2"] {
        let finished = ours(&["--filter=map", "null", "1M", bad]).try_start();
        let finished = finished.expect_err("refused");
        assert!(finished.stderr.contains("expected START-END:DEST"), "{}", finished.stderr);
        assert_eq!((finished.stderr.lines().count(), finished.status.code()), (1, Some(1)));
    }
}
