//! The evil filter with two clients in two processes. Debian's nbdkit has no such filter.

use nbdkit_tests::Ask;
use nbdkit_tests::server::{Server, ours};

fn read(server: &Server) -> Vec<u8> {
    server.connected("").call(&Ask::read(0, 1 << 20)).expect("a reply").data
}

#[test]
fn bits_that_are_stuck_are_stuck_for_all_clients() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let arguments = [isolation, "--filter=evil", "memory", "1M", "evil-probability=1e-5"];
        let server = ours(&arguments).start();
        let first = read(&server);
        assert!(first.iter().any(|byte| *byte != 0), "40 bits are stuck at 1 on average");
        let mut writer = server.connected("");
        let written = writer.call(&Ask::write(0, vec![0xff; 1 << 20])).expect("a reply");
        assert_eq!(written.error, None);
        let second = read(&server);
        assert!(second.iter().any(|byte| *byte != 0xff));
        assert!(first.iter().zip(&second).all(|(low, high)| low & !high == 0));
        assert!(read(&server) == second);
    }
}

#[test]
fn cosmic_rays_hit_every_client_elsewhere() {
    let arguments = ["--filter=evil", "null", "1M", "evil=cosmic", "evil-probability=1e-5"];
    let server = ours(&arguments).start();
    assert_ne!(read(&server), read(&server));
}
