//! The evil filter, which Debian's nbdkit has not.

use nbdkit_tests::Ask;
use nbdkit_tests::server::ours;

fn reads_of_two_clients(mode: &str) -> (Vec<u8>, Vec<u8>) {
    let mode = format!("evil={mode}");
    let arguments =
        ["--filter=evil", "memory", "1M", &mode, "evil-probability=1e-3", "evil-seed=1"];
    let mut server = ours(&arguments).start();
    let (mut one, mut two) = (server.connected(""), server.connected(""));
    let reads =
        [&mut one, &mut two].map(|client| client.call(&Ask::read(0, 1 << 20)).unwrap().data);
    drop((one, two));
    assert!(server.stop().success());
    reads.into()
}

#[test]
fn two_clients_in_two_processes_have_the_same_stuck_bits_and_other_cosmic_rays() {
    for mode in ["stuck-bits", "stuck-wires"] {
        let (one, two) = reads_of_two_clients(mode);
        assert!(one == two && one.iter().any(|byte| *byte != 0), "{mode}");
    }
    let (one, two) = reads_of_two_clients("cosmic-rays");
    assert!(one != two && one.iter().any(|byte| *byte != 0));
}
