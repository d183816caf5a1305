//! The xor filter with two clients in two processes. Debian's nbdkit has no such filter.

use nbdkit_tests::Ask;
use nbdkit_tests::server::ours;

#[test]
fn what_one_client_writes_another_reads_also_with_a_pattern_that_was_drawn() {
    for pattern in ["xor=rand", "xor=0x12345"] {
        for isolation in ["--isolation=connection", "--isolation=shared"] {
            let server = ours(&[isolation, "--filter=xor", "memory", "1M", pattern]).start();
            let (mut one, mut other) = (server.connected(""), server.connected(""));
            let bytes: Vec<u8> = (0..100_000).map(|at| (at / 7) as u8).collect();
            let written = one.call(&Ask::write(1001, bytes.clone())).expect("a reply");
            assert_eq!(written.error, None);
            let read = other.call(&Ask::read(1001, 100_000)).expect("a reply");
            assert!(read.data == bytes, "{pattern} {isolation}");
            let before = other.call(&Ask::read(0, 1001)).expect("a reply").data;
            assert!(before.iter().any(|byte| *byte != 0));
        }
    }
}
