//! The examples of plugins, built in and in C, beside Debian's.

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir, row_name};

fn exercise(s: &mut Session) {
    s.open();
    s.read(0, 64);
    s.write(512, 512, 0xaa);
    s.read(512, 1024);
    s.ask(&Ask::write_zeroes(600, 100));
    s.ask(&Ask::flush());
    s.ask(&Ask::trim(0, 512));
    s.read(512, 1024);
    s.block_status(0, 4096);
    s.disconnect();
}

fn file(dir: &TempDir) {
    std::fs::write(dir.join("file"), vec![7; 10_000]).unwrap();
}

/// Not the beginning of the first sector, where Debian's has code that boots.
#[test]
fn example1() {
    Row::new(row_name!(), &["example1"]).compare(|s| {
        s.open();
        s.read(440, 72);
        s.read(512, 65536);
        s.write(0, 512, 1);
        s.ask(&Ask::flush());
        s.ask(&Ask::cache(0, 512));
        s.block_status(0, 4096);
        s.read((100 << 20) - 512, 512);
        s.disconnect();
    });
}

#[test]
fn example2() {
    Row::new(row_name!(), &["example2", "file={dir}/file"]).setup(file).compare(exercise);
}

#[test]
fn example3() {
    for_each(&[&["example3"][..], &["example3", "size=1M"]], |arguments| {
        Row::new(row_name!(), arguments).variant(&arguments.join(" ")).compare(exercise);
    });
}

#[test]
fn example_refusals() {
    let rows: &[&[&str]] = &[
        &["example2"],
        &["example2", "foo=1"],
        &["example2", "file={dir}/nothing"],
        &["example3", "foo=1"],
    ];
    for_each(rows, |arguments| {
        Row::new(row_name!(), arguments).variant(&arguments.join(" ")).compare(|_| {});
    });
}
