//! The protect filter: which writes are refused.

use nbd_protocol::constants::{CommandFlags, NbdError};
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::ours;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, row_name};

/// The disk is 1 to 8 over and over in the first 4 KiB, then zeroes.
const DATA: &str = "data=( 1 2 3 4 5 6 7 8 )*512";

fn requests(s: &mut Session) {
    s.open();
    for offset in [0, 500, 510, 1000, 4000, 8000, 65_530] {
        s.write(offset, 16, 0);
        s.ask(&Ask::write(offset, [1, 2, 3, 4, 5, 6, 7, 8].repeat(2)));
        s.ask(&Ask::write_zeroes(offset, 64));
        let fast = CommandFlags::FAST_ZERO | CommandFlags::NO_HOLE;
        s.ask(&Ask::write_zeroes(offset, 64).flags(fast));
        s.ask(&Ask::trim(offset, 64));
        s.read(offset, 128);
    }
    s.ask(&Ask::flush());
    s.ask(&Ask::cache(0, 512));
    s.block_status(0, 4096);
    s.disconnect();
}

fn compare(name: &str, protect: &[&str]) {
    let arguments = [&["--filter=protect", "data", DATA, "size=1M"], protect].concat();
    Row::new(name, &arguments).variant(&protect.join(" ")).compare(requests);
}

#[test]
fn writes_to_protected_ranges() {
    for_each(&["0-511", "0-0x1ff", "-01777", "4096-", "-"], |range| {
        compare(row_name!(), &[&format!("protect={range}")]);
    });
    compare(row_name!(), &[]);
    compare(row_name!(), &["protect=0-511", "protect=100-510", "protect=20000-30000"]);
}

#[test]
fn ranges_that_make_no_sense() {
    for_each(&["", "x", "1", "1-0", "~5", "~5-3", "1k-2k", "0-99999999999999999999"], |range| {
        let parameter = format!("protect={range}");
        let arguments = ["--filter=protect", "null", "1M", &parameter, "--run", "true"];
        Row::new(row_name!(), &arguments).variant(range).compare_command();
    });
}

/// Debian's server ends when zeroes begin before a protected range and reach into it.
#[test]
fn requests_across_the_bounds_of_a_complement_of_two_clients() {
    let arguments = ["--filter=protect", "memory", "1M", "protect=~4096-8191"];
    let mut server = ours(&arguments).start();
    let (mut one, mut two) = (server.connected(""), server.connected(""));
    assert_eq!(one.call(&Ask::write(4096, [5; 4096])).unwrap().error, None);
    // What is protected holds zeroes.
    assert_eq!(two.call(&Ask::read(4096, 4096)).unwrap().data, [5; 4096]);
    assert_eq!(two.call(&Ask::write_zeroes(0, 10_000)).unwrap().error, None);
    assert_eq!(one.call(&Ask::read(0, 10_000)).unwrap().data, [0; 10_000]);
    assert_eq!(one.call(&Ask::trim(8000, 500)).unwrap().error, None);
    let refused = two.call(&Ask::write(8000, [1; 500])).unwrap();
    assert_eq!(refused.nbd_error(), Some(NbdError::Perm));
    assert_eq!(one.call(&Ask::read(8000, 500)).unwrap().data, [0; 500]);
    drop((one, two));
    assert!(server.stop().success());
}
