//! The map filter, which Debian's nbdkit has not.

use nbdkit_tests::Ask;
use nbdkit_tests::server::ours;

/// The first and the second 4 KiB are swapped, and the third shows the first.
#[test]
fn two_clients_see_one_disk_through_the_map() {
    let ranges = ["map=0-4095:4096", "map=4096-8191:0", "map=8192-12287:4096"];
    let arguments =
        [&["-Dmap.ranges=1", "-v", "--filter=map", "memory", "1M"], &ranges[..]].concat();
    let mut server = ours(&arguments).start();
    let (mut one, mut two) = (server.connected(""), server.connected(""));
    assert_eq!(one.call(&Ask::write(4000, [5; 200])).unwrap().error, None);
    let data = two.call(&Ask::read(0, 12_288)).unwrap().data;
    let expected: Vec<u8> = (0..12_288)
        .map(|at| if (4000..4200).contains(&at) || (12_192..12_288).contains(&at) { 5 } else { 0 })
        .collect();
    assert_eq!(data, expected);
    drop((one, two));
    assert!(server.stop().success());
    let text = server.stderr_text_after_end();
    assert!(text.contains("map: 8192-12287 to 4096"), "{text}");
}

#[test]
fn ranges_that_make_no_sense_stop_the_start() {
    for bad in ["map=5-4:0", "map=x", "map=1-2"] {
        let finished = ours(&["--filter=map", "null", "1M", bad]).try_start().unwrap_err();
        assert!(finished.stderr.contains("expected START-END:DEST"), "{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1);
        assert_eq!(finished.status.code(), Some(1));
    }
}
