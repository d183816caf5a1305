//! The swab filter: words of each length, and what is no whole word.

use nbd_protocol::constants::CommandFlags;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::{Ask, row_name};

#[test]
fn swabbed_disks() {
    // Not 8: with that, Debian's filter writes bytes that are not the client's.
    for_each(&["16", "32", "64"], |bits| {
        let parameter = format!("swab-bits={bits}");
        let arguments = ["--filter=swab", "memory", "1003", &*parameter];
        Row::new(row_name!(), &arguments).variant(bits).compare(|s| {
            s.open();
            s.write(0, 512, 0xaa);
            s.ask(&Ask::write(8, *b"01234567"));
            s.ask(&Ask::write(16, *b"89abcdef").flags(CommandFlags::FUA));
            s.read(0, 32);
            s.read(8, 16);
            s.ask(&Ask::write_zeroes(8, 8));
            s.ask(&Ask::trim(16, 8));
            s.ask(&Ask::cache(0, 512));
            s.block_status(0, 512);
            s.read(0, 512);
            // Not whole words.
            s.read(1, 8);
            s.read(8, 7);
            s.ask(&Ask::write(3, [1; 8]));
            s.ask(&Ask::write_zeroes(8, 3));
            s.ask(&Ask::trim(1, 8));
            s.ask(&Ask::cache(8, 1));
            s.disconnect();
        });
    });
}

#[test]
fn block_sizes_of_swabbed_disks() {
    for_each(&["8", "16", "32", "64"], |bits| {
        let parameter = format!("swab-bits={bits}");
        let arguments = ["--filter=swab", "null", "1003", &*parameter];
        Row::new(row_name!(), &arguments).variant(bits).compare(|s| {
            s.connect();
            s.block_sizes("");
            s.disconnect();
        });
    });
}

#[test]
fn swab_makes_the_pattern_little_endian() {
    let arguments = ["--filter=swab", "pattern", "1M", "swab-bits=64"];
    Row::new(row_name!(), &arguments).compare(|s| {
        s.open();
        s.read(0, 65536);
        s.disconnect();
    });
}

#[test]
fn parameters_of_swab() {
    for_each(&["0", "12", "128"], |bits| {
        let parameter = format!("swab-bits={bits}");
        let arguments = ["--filter=swab", "null", &*parameter, "--run", "true"];
        Row::new(row_name!(), &arguments).variant(bits).compare_command();
    });
    let filter_line = |line: &str| {
        let is_of_filter = ["exit", "stdout: filter", "stdout: swab-bits"];
        is_of_filter.iter().any(|start| line.starts_with(start)).then(|| line.to_owned())
    };
    Row::new(row_name!(), &["--help", "--filter=swab", "null"])
        .variant("--help")
        .normalise(filter_line)
        .compare_command();
}
