//! The spinning filter, which Debian's nbdkit has not.

use std::time::{Duration, Instant};

use nbd_protocol::constants::TransmissionFlags;
use nbdkit_tests::Ask;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::ours;

/// The first client's seek takes an hour; the second has heads of its own, which need not move.
#[test]
fn each_of_two_clients_has_its_own_heads() {
    let times = ["min-seek-time=3600", "half-seek-time=3600", "max-seek-time=3600"];
    let arguments = [&["--filter=spinning", "memory", "64M"], &times[..]].concat();
    let mut server = ours(&arguments).start();
    let (mut one, mut two) = (server.connected(""), server.connected(""));
    let (_, flags) = two.export().unwrap();
    assert!(flags.contains(TransmissionFlags::ROTATIONAL));
    assert!(!flags.contains(TransmissionFlags::CAN_MULTI_CONN));
    one.send(&Ask::read(32 << 20, 512)).unwrap();
    let start = Instant::now();
    assert_eq!(two.call(&Ask::read(0, 512)).unwrap().error, None);
    assert!(start.elapsed() < Duration::from_secs(3600));
    // A seek ends with its client.
    drop(one);
    eventually("the worker has ended", || server.workers().len() == 1);
    drop(two);
    assert!(server.stop().success());
}
