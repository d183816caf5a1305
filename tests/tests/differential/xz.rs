//! The xz filter on files that xz(1) made: what clients see of them, what is refused, and that
//! clients share the index.

use std::process::Command;

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::Server;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir, row_name};

use crate::images::{exercise, has, image};

/// Bytes of the disk.
const SIZE: u64 = 1_000_000;

fn setup(dir: &TempDir) {
    image(dir, SIZE as usize);
    let made = |script: &str| {
        let shell = Command::new("sh").args(["-ec", script]).current_dir(dir.path()).status();
        assert!(shell.unwrap().success(), "{script}");
    };
    made("xz -T1 --block-size=65536 <disk >blocks.xz; xz <disk >one.xz");
    made("xz -C sha256 <disk >two.xz; head -c 8 /dev/zero >>two.xz; xz -C none <disk >>two.xz");
    made("head -c 20000 blocks.xz >cut.xz; : >empty.xz; xz <empty.xz >nothing.xz");
}

/// A row for the file `file`; `None` without xz(1).
fn compare(name: &str, file: &str, parameters: &[&str], script: impl Fn(&mut Session)) {
    if !has("xz") {
        return;
    }
    let path = format!("{{dir}}/{file}");
    let arguments = [&["--filter=xz", "file", &path], parameters].concat();
    Row::new(name, &arguments).variant(file).setup(setup).compare(script);
}

#[test]
fn disk_in_an_xz_file() {
    for_each(&["blocks.xz", "one.xz"], |file| {
        compare(row_name!(), file, &[], |s| exercise(s, SIZE));
    });
}

#[test]
fn xz_streams_one_after_the_other() {
    compare(row_name!(), "two.xz", &[], |s| {
        s.open();
        s.read(SIZE - 1000, 2000);
        s.read(2 * SIZE - 512, 512);
        s.disconnect();
    });
}

#[test]
fn xz_files_that_are_refused() {
    for_each(&["disk", "cut.xz", "empty.xz"], |file| {
        compare(row_name!(), file, &[], |s| {
            s.connect();
            s.structured_replies();
            s.go("");
        });
    });
    compare(row_name!(), "one.xz", &["xz-max-block=999999"], |s| {
        s.connect();
        s.go("");
    });
}

#[test]
fn xz_max_block_and_depth() {
    compare(row_name!(), "blocks.xz", &["xz-max-block=64k", "xz-max-depth=1"], |s| {
        s.open();
        s.read(0, SIZE);
        s.read(0, SIZE);
        s.disconnect();
    });
}

#[test]
fn parameters_of_xz() {
    let filter_line = |line: &str| {
        let ours = ["exit", "stdout: filter", "stdout: xz-", "stdout: thread_model", "stderr"];
        ours.iter().any(|it| line.starts_with(it)).then(|| line.to_owned())
    };
    for_each(&["--help", "--dump-plugin"], |option| {
        Row::new(row_name!(), &[option, "--filter=xz", "null"])
            .variant(option)
            .normalise(filter_line)
            .compare_command();
    });
    for_each(&["xz-max-depth=0", "xz-max-depth=-1", "xz-max=1"], |parameter| {
        Row::new(row_name!(), &["--filter=xz", "null", parameter, "--run", "true"])
            .variant(parameter)
            .compare_command();
    });
}

/// Logs what it is asked to read.
const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*}
case $1 in
  get_size) stat -c %s "$dir/blocks.xz" ;;
  pread)
    echo "$4" >>"$dir/reads"
    dd if="$dir/blocks.xz" iflag=skip_bytes,count_bytes skip="$4" count="$3" status=none ;;
  thread_model) echo parallel ;;
  *) exit 2 ;;
esac
"#;

#[test]
fn the_index_of_an_xz_file_is_read_once_for_all_clients() {
    if !has("xz") {
        return;
    }
    let builder = Server::nbdkit(["--filter=xz", "sh", "{dir}/script"]);
    setup(builder.dir());
    crate::images::script(builder.dir(), SCRIPT);
    let server = builder.start();
    let reads = || std::fs::read_to_string(server.dir().join("reads")).unwrap_or_default();
    let first = server.connected("");
    assert!(!reads().is_empty(), "the first client reads the index");
    std::fs::remove_file(server.dir().join("reads")).unwrap();
    let mut second = server.connected("");
    assert_eq!(server.workers().len(), 2);
    assert_eq!(reads(), "", "the second client reads it again");
    assert_eq!(second.export(), first.export());
    let disk = std::fs::read(server.dir().join("disk")).unwrap();
    let reply = second.call(&Ask::read(123_456, 5000)).unwrap();
    assert!(reply.data == disk[123_456..][..5000]);
}

/// A block whose decompression takes more than what requests may take of memory in the sandbox.
#[test]
fn xz_blocks_of_the_largest_size_fit_into_the_limits_of_a_worker() {
    if !has("xz") {
        return;
    }
    let builder = Server::nbdkit(["--filter=xz", "file", "{dir}/large.xz"]);
    let script = "head -c 512M /dev/zero | xz -0 >large.xz";
    let shell = Command::new("sh").args(["-ec", script]).current_dir(builder.dir().path()).status();
    assert!(shell.unwrap().success());
    let server = builder.start();
    let mut client = server.connected("");
    let reply = client.call(&Ask::read(500 << 20, 65536)).unwrap();
    assert!(reply.data == vec![0; 65536]);
}
