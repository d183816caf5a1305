//! The swab filter: bytes, sizes, and requests that are not aligned.

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, row_name};

#[test]
fn words_of_each_size() {
    for_each(&["16", "32", "64"], |bits| {
        let parameter = format!("swab-bits={bits}");
        let arguments = ["--filter=swab", "memory", "1000003", &parameter];
        Row::new(row_name!(), &arguments).variant(bits).compare(|s| {
            s.open();
            s.ask(&Ask::write(8, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]));
            for (offset, count) in [(0, 32), (8, 16), (4, 2), (2, 4), (1, 8), (8, 3), (999_992, 8)]
            {
                s.read(offset, count);
                s.ask(&Ask::write_zeroes(offset + 100, count));
                s.ask(&Ask::trim(offset + 200, count));
                s.ask(&Ask::cache(offset, count));
                s.block_status(offset, count);
            }
            s.read(1_000_000, 1);
            s.disconnect();
        });
    });
}

#[test]
fn parameters_of_swab() {
    for_each(&["7", "0", "8", "64", "-1", "128"], |bits| {
        let parameter = format!("swab-bits={bits}");
        let arguments = ["--filter=swab", "null", "1M", &parameter, "--run", "true"];
        Row::new(row_name!(), &arguments).variant(bits).compare_command();
    });
}

/// Debian's server loses what is written with words of one byte.
#[test]
fn what_one_of_two_clients_writes_the_other_reads() {
    for_each(&["8", "64"], two_clients);
}

fn two_clients(bits: &str) {
    let bits = format!("swab-bits={bits}");
    let mut server = ours(&["--filter=swab", "memory", "1M", &bits]).start();
    let (mut one, mut two) = (server.connected(""), server.connected(""));
    let bytes: Vec<u8> = (0..=255).collect();
    assert_eq!(one.call(&Ask::write(64, bytes.clone())).unwrap().error, None);
    assert_eq!(two.call(&Ask::read(64, 256)).unwrap().data, bytes);
    drop((one, two));
    assert!(server.stop().success());
}
