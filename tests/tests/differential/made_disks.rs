//! Plugins that make their disks by programs. What the disks contain differs each time, so rows
//! have sizes, rights and messages.

use nbd_protocol::constants::CommandFlags;
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

/// What every disk that was made for a client is asked.
fn write(s: &mut Session) {
    s.read(0, 512);
    s.write(0, 512, 0xaa);
    s.read(0, 1024);
    s.ask(&Ask::write_zeroes(256, 512));
    s.ask(&Ask::trim(0, 128));
    s.ask(&Ask::flush());
    s.ask(&Ask::write(512, [1; 16]).flags(CommandFlags::FUA));
    s.read(0, 1024);
    s.read((1 << 20) - 512, 513);
    s.disconnect();
}

/// A command that makes a disk with something in it.
const COMMAND: &str =
    "command=printf '%s' \"$size$type$label$x\" > \"$disk\"; truncate -s 1M \"$disk\"";

#[test]
fn tmpdisk() {
    let arguments = ["tmpdisk", "1M", COMMAND, "x=a 'b' $c", "label=l"];
    Row::new(row_name!(), &arguments).compare(|s| {
        s.open();
        write(s);
    });
}

#[test]
fn tmpdisk_refusals() {
    for_each(&[&["tmpdisk"][..], &["tmpdisk", "1M", "disk=x"]], |row| {
        Row::new(row_name!(), row).variant(&row.join(" ")).compare(|_| {});
    });
}

fn exports(dir: &TempDir) {
    std::fs::create_dir(dir.join("exports")).unwrap();
    std::fs::write(dir.join("exports/there"), vec![7; 1 << 20]).unwrap();
}

#[test]
fn ondemand() {
    let arguments = ["ondemand", "dir={dir}/exports", "1M", COMMAND];
    Row::new(row_name!(), &arguments).setup(exports).compare(|s| {
        s.connect();
        s.list();
        s.go("there");
        write(s);
        s.connect();
        s.go("new");
        write(s);
    });
}

#[test]
fn ondemand_of_the_default_export() {
    let arguments = ["ondemand", "dir={dir}/exports", "1M", COMMAND];
    Row::new(row_name!(), &arguments)
        .setup(|dir| {
            std::fs::create_dir(dir.join("exports")).unwrap();
        })
        .compare(|s| {
            s.connect();
            s.list();
            s.info("");
            s.list();
            s.info("default");
            s.go("");
            s.disconnect();
        });
}

#[test]
fn ondemand_names() {
    for_each(&["../x", ".", "..", ".x", "a/b", "/", "a:b", "a.b"], |name| {
        let arguments = ["ondemand", "dir={dir}/exports", "1M", COMMAND];
        Row::new(row_name!(), &arguments).variant(name).setup(exports).compare(|s| {
            s.connect();
            s.info(name);
            s.disconnect();
        });
    });
}

#[test]
fn ondemand_refusals() {
    let rows: &[&[&str]] = &[
        &["ondemand"],
        &["ondemand", "1M"],
        &["ondemand", "dir={dir}/exports", "1M", "disk=x"],
        &["ondemand", "dir={dir}/exports/there", "1M"],
    ];
    for_each(rows, |row| {
        Row::new(row_name!(), row).variant(&row.join(" ")).setup(exports).compare(|_| {});
    });
}
