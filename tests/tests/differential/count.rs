//! The count filter, which Debian's nbdkit has not.

use nbdkit_tests::Ask;
use nbdkit_tests::server::ours;

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
