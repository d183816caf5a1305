//! The ext2 filter on file systems that mke2fs(8) made: what clients see and write, and what is
//! refused. `tests/ext2.rs` has what is ours only.

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir, row_name};

use crate::images::{has, image, script, shell};

/// Bytes of the file `/disks/disk`.
const SIZE: u64 = 1_000_000;

const MAKE: &str = "exec >/dev/null; mkdir -p tree/disks && mv disk tree/disks/ && truncate -s 2M tree/disks/sparse
    printf hello >tree/small && : >tree/empty && ln -s small tree/link
    mke2fs -q -t ext4 -d tree ext4 8M; mke2fs -q -t ext3 -b 4096 -d tree ext3 8M
    mke2fs -q -t ext2 -b 1024 -d tree ext2 8M; mke2fs -q -O inline_data -t ext4 -d tree inline 8M
    head -c 1M /dev/zero >zeroes";

fn setup(dir: &TempDir) {
    image(dir, SIZE as usize);
    shell(dir, MAKE);
}

/// A row for the file `file` of the file system `disk`, unless mke2fs(8) is missing.
fn compare(name: &str, disk: &str, file: &str, script: impl Fn(&mut Session)) {
    if !has("mke2fs") {
        return;
    }
    let (path, file) = (format!("{{dir}}/{disk}"), format!("ext2file={file}"));
    let variant = format!("{disk} {file}");
    let arguments = ["--filter={ext2}", "file", &path, &file];
    Row::new(name, &arguments).variant(&variant).setup(setup).compare(script);
}

/// Reads, and writes what is read by the next client.
fn exercise(s: &mut Session) {
    s.open();
    s.read(0, 512);
    s.read(65_000, 200_000);
    s.read(SIZE - 512, 512);
    s.read(SIZE - 512, 513);
    s.write(4000, 10_000, 7);
    s.write(SIZE - 1, 1, 8);
    s.write(SIZE - 1, 2, 8);
    s.ask(&Ask::write_zeroes(5000, 3000));
    s.ask(&Ask::trim(0, 4096));
    s.ask(&Ask::cache(0, 65536));
    s.ask(&Ask::flush());
    s.read(0, 20_000);
    s.disconnect();
    s.open();
    s.read(0, SIZE);
    s.disconnect();
}

#[test]
fn file_in_a_file_system() {
    for_each(&["ext2", "ext3", "ext4", "inline"], |disk| {
        compare(row_name!(), disk, "/disks/disk", exercise);
    });
}

#[test]
fn sparse_small_and_empty_files() {
    for_each(&["ext2", "ext4"], |disk| {
        compare(row_name!(), disk, "/disks/sparse", |s| {
            s.open();
            s.read(0, 1 << 20);
            s.write(700_000, 5000, 1);
            s.write(0, 1024, 2);
            s.ask(&Ask::flush());
            s.read(0, 2 << 20);
            s.disconnect();
        });
    });
    for_each(&["ext2", "ext4"], |disk| {
        for file in ["/small", "/empty"] {
            compare(row_name!(), disk, file, |s| {
                s.open();
                s.read(0, 5);
                s.write(1, 3, 9);
                s.ask(&Ask::flush());
                s.read(0, 5);
                s.disconnect();
            });
        }
    });
}

#[test]
fn what_is_no_file_in_a_file_system() {
    for_each(
        &[
            ("ext4", "/none"),
            ("ext4", "/disks"),
            ("ext4", "/"),
            ("ext4", "/link"),
            ("ext4", "/small/x"),
            ("zeroes", "/small"),
        ],
        |(disk, file)| {
            compare(row_name!(), disk, file, |s| {
                s.connect();
                s.structured_replies();
                s.go("");
                s.list();
            });
        },
    );
}

#[test]
fn files_by_the_name_of_the_export() {
    compare(row_name!(), "ext4", "exportname", |s| {
        s.connect();
        s.structured_replies();
        s.list();
        for export in ["", "none", "disks", "/disks/disk", "disks/sparse", "../small"] {
            s.info(export);
        }
        s.go("small");
        s.read(0, 5);
        s.disconnect();
    });
}

#[test]
fn a_file_system_that_is_read_only() {
    if !has("mke2fs") {
        return;
    }
    let arguments = ["-r", "--filter={ext2}", "file", "{dir}/ext4", "ext2file=/disks/disk"];
    Row::new(row_name!(), &arguments).setup(setup).compare(exercise);
}

/// A plugin that cannot be written to, and has a description and block sizes.
const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*}
case $1 in
  get_size) stat -c %s "$dir/ext4" ;;
  pread) dd if="$dir/ext4" iflag=skip_bytes,count_bytes skip="$4" count="$3" status=none ;;
  export_description) echo "of $2" ;;
  open) echo "$4" ;;
  is_rotational) exit 0 ;;
  list_exports) echo NAMES; echo a; echo b ;;
  block_size) echo 1 4096 65536 ;;
  thread_model) echo parallel ;;
  *) exit 2 ;;
esac
"#;

#[test]
fn what_the_layer_below_a_file_system_says() {
    if !has("mke2fs") {
        return;
    }
    let setup = |dir: &TempDir| {
        setup(dir);
        script(dir, SCRIPT);
    };
    for_each(&["/small", "exportname"], |file| {
        let file = format!("ext2file={file}");
        let arguments = ["-r", "--filter={ext2}", "sh", "{dir}/script", &file];
        Row::new(row_name!(), &arguments).variant(&file).setup(setup).compare(|s| {
            s.connect();
            s.structured_replies();
            s.list();
            for export in ["/small", "small", "a"] {
                s.info(export);
                s.block_sizes(export);
            }
        });
        let arguments = ["--filter={ext2}", "sh", "{dir}/script", &file];
        let variant = format!("{file} without -r");
        Row::new(row_name!(), &arguments).variant(&variant).setup(setup).compare(|s| {
            s.connect();
            s.block_sizes("/small");
            s.go("/small");
            s.write(0, 1, 1);
        });
    });
}

#[test]
fn parameters_of_ext2() {
    for_each(
        &[
            &[][..],
            &["ext2file="],
            &["ext2file=small"],
            &["ext2file=/a", "ext2file=/b"],
            &["ext2file=exportname", "ext2file=/b"],
            &["ext2file=/a", "ext2=file"],
            &["EXT2FILE=/a"],
        ],
        |parameters: &[&str]| {
            let arguments = [&["-U", "-", "--filter={ext2}", "null"], parameters].concat();
            let variant = parameters.join(" ");
            Row::new(row_name!(), &arguments).variant(&variant).compare_command();
        },
    );
    let filter_line = |line: &str| {
        let ours = ["exit", "stdout: filter", "stdout: ext2file", "stdout: thread_model", "stderr"];
        ours.iter().any(|it| line.starts_with(it)).then(|| line.to_owned())
    };
    for_each(&["--help", "--dump-plugin"], |option| {
        Row::new(row_name!(), &[option, "--filter={ext2}", "null"])
            .variant(option)
            .normalise(filter_line)
            .compare_command();
    });
}
