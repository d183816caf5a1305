//! The ddrescue filter: what of an image can be read, by maps as GNU ddrescue writes them.

use nbdkit_tests::TempDir;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::row_name;

const HEAD: &str = "# Mapfile. Created by GNU ddrescue version 1.27\n\
                    # Command line: ddrescue /dev/sdx image map\n\
                    # current_pos  current_status  current_pass\n\
                    0x00001000     +               1\n\
                    #      pos        size  status\n";

/// Map files, by the name that a row's variant has.
const MAPS: &[(&str, &str)] = &[
    ("bad-sector", "0x00000000 0x00001000 +\n0x00001000 0x00001000 -\n0x00002000 0x000FE000 +\n"),
    ("not-tried", "0x00000000 0x00001000 ?\n0x00001000 0x00001000 +\n"),
    ("statuses", "0 4096 +\n4096 4096 /\n8192 100 *\n8292 100 -\n"),
    ("odd", "0 4097 +\n8000 200 +\n"),
    ("joined", "0 4096 +\n4096 4096 +\n"),
    ("empty", ""),
];

fn setup(dir: &TempDir) {
    for (name, text) in MAPS {
        std::fs::write(dir.path().join(name), format!("{HEAD}{text}")).unwrap();
    }
    std::fs::write(dir.path().join("negative"), format!("{HEAD}-1 4096 +\n")).unwrap();
}

/// Reads, each by itself: one that fails is part of the transcript.
const READS: &[(u64, u64)] = &[
    (0, 512),
    (0, 4096),
    (4000, 97),
    (4000, 98),
    (4096, 512),
    (8000, 200),
    (8100, 200),
    (1 << 19, 1),
];

#[test]
fn what_was_rescued_can_be_read() {
    for_each(&["bad-sector", "not-tried", "statuses", "odd", "empty"], |name| {
        let map = format!("ddrescue-mapfile={{dir}}/{name}");
        let arguments = ["--filter=ddrescue", "pattern", "1M", &*map];
        Row::new(row_name!(), &arguments).variant(name).setup(setup).compare(|s| {
            s.open();
            for (offset, count) in READS {
                s.read(*offset, *count);
            }
            s.write(0, 512, 1);
            s.block_status(0, 1 << 20);
            s.disconnect();
        });
    });
}

/// Two ranges that touch, which Debian's does not read across.
#[test]
fn a_read_across_two_ranges_that_were_rescued() {
    let arguments = ["--filter=ddrescue", "pattern", "1M", "ddrescue-mapfile={dir}/joined"];
    Row::new(row_name!(), &arguments).setup(setup).compare(|s| {
        s.open();
        s.read(4000, 200);
        s.disconnect();
    });
}

#[test]
fn parameters_of_ddrescue() {
    let status = |line: &str| line.starts_with("exit").then(|| line.to_owned());
    let negative =
        ["--filter=ddrescue", "null", "ddrescue-mapfile={dir}/negative", "--run", "true"];
    Row::new(row_name!(), &negative)
        .variant("negative")
        .setup(setup)
        .normalise(status)
        .compare_command();
    let missing = ["--filter=ddrescue", "null", "ddrescue-mapfile=/no/such/map", "--run", "true"];
    Row::new(row_name!(), &missing).variant("missing").compare_command();
    let none = ["--filter=ddrescue", "null", "--run", "true"];
    Row::new(row_name!(), &none).variant("none").compare_command();
}
