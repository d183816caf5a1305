//! The time-limit filter, which Debian's nbdkit has not.

use std::time::{Duration, Instant};

use nbdkit_tests::Ask;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::ours;

/// Each connection has its own time, which begins when it opens the export.
#[test]
fn each_of_two_clients_is_cut_off_when_its_time_is_over() {
    let mut server = ours(&["--filter=time-limit", "memory", "1M", "time-limit=300ms"]).start();
    let start = Instant::now();
    let mut one = server.connected("");
    eventually("the first client's time is over", || one.call(&Ask::read(0, 512)).is_err());
    assert!(start.elapsed() >= Duration::from_millis(300));
    let _ = server.wait_for_stderr("time-limit: the connection has lasted too long");
    eventually("its worker has ended", || server.workers().is_empty());
    // A client that came first but asks nothing stays until it asks.
    let (mut idle, mut two) = (server.connected(""), server.connected(""));
    eventually("the other's time is over", || two.call(&Ask::write(0, [1])).is_err());
    assert_eq!(idle.call(&Ask::flush()).unwrap().error, None);
    let _ = idle.call(&Ask::read(0, 512)).unwrap_err();
    assert!(server.stop().success());
}
