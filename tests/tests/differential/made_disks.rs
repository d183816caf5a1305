//! Plugins that make their disks by programs. What the disks contain differs each time, so rows
//! have sizes, rights and messages.

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir, row_name};

fn files(dir: &TempDir) {
    std::fs::create_dir_all(dir.join("files/sub")).unwrap();
    std::fs::write(dir.join("files/sub/file"), vec![7; 3_000_000]).unwrap();
    std::fs::write(dir.join("files/small"), "x").unwrap();
}

/// A disk for reading.
fn read(s: &mut Session) {
    s.open();
    s.read(510, 2);
    s.write(0, 512, 1);
    s.ask(&Ask::flush());
    s.ask(&Ask::trim(0, 512));
    s.ask(&Ask::cache(0, 4096));
    s.disconnect();
}

#[test]
fn linuxdisk() {
    for_each(&["type=ext2", "type=ext3", "type=ext4", "size=10M", "size=9999999"], |argument| {
        let arguments = ["linuxdisk", "{dir}/files", argument];
        Row::new(row_name!(), &arguments).variant(argument).setup(files).compare(read);
    });
}

#[test]
fn linuxdisk_without_a_directory() {
    Row::new(row_name!(), &["linuxdisk", "label=x"]).compare(|_| {});
}

#[test]
fn linuxdisk_with_two_directories() {
    let arguments = ["linuxdisk", "{dir}/files", "{dir}/files"];
    Row::new(row_name!(), &arguments).setup(files).compare(|_| {});
}

#[test]
fn iso() {
    for_each(&["params=", "params=-JrT", "params=-V 'a  b'"], |argument| {
        let arguments = ["iso", "{dir}/files", argument];
        Row::new(row_name!(), &arguments).variant(argument).setup(files).compare(|s| {
            s.open();
            s.read(32768, 6);
            s.write(0, 512, 1);
            s.ask(&Ask::cache(0, 4096));
            s.disconnect();
        });
    });
}

#[test]
fn iso_without_a_directory() {
    Row::new(row_name!(), &["iso"]).compare(|_| {});
}
