//! The sh and eval plugins: what a script prints and how it exits, and what the client sees of it.

use nbd_protocol::constants::{CommandFlags, TransmissionFlags};
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::row_name;
use nbdkit_tests::{Ask, TempDir};

const SIZE: &str = "get_size=echo 64K";
const ZEROES: &str = "pread=dd if=/dev/zero count=$3 iflag=count_bytes 2>/dev/null";

#[test]
fn eval_that_reads_zeroes() {
    Row::new(row_name!(), &["eval", SIZE, ZEROES]).compare(|s| {
        s.open();
        s.read(0, 4096);
        s.read(65535, 1);
        s.read(65535, 2);
        s.write(0, 1, 1);
        s.block_status(0, 65536);
        s.disconnect();
    });
}

/// Every errno name that a script might print.
#[test]
fn eval_that_fails_with_every_errno() {
    for_each(
        &[
            "EPERM",
            "EIO",
            "ENOMEM",
            "EINVAL",
            "ENOSPC",
            "ESHUTDOWN",
            "EROFS",
            "EDQUOT",
            "EFBIG",
            "EOVERFLOW",
            "ENOTSUP",
            "EOPNOTSUPP",
            "ENODEV",
            "EACCES",
            "no such word",
        ],
        |errno| {
            let pread = format!("pread=echo '{errno} of the script' >&2; exit 1");
            Row::new(row_name!(), &["eval", SIZE, &pread]).variant(errno).compare(|s| {
                s.open();
                s.read(0, 512);
                s.ask(&Ask::read(0, 512).flags(CommandFlags::DF));
                s.disconnect();
            });
        },
    );
}

#[test]
fn eval_with_every_exit_status() {
    for_each(&[2, 3, 8, 100, 127], |status| {
        let pread = format!("pread=exit {status}");
        Row::new(row_name!(), &["eval", SIZE, &pread]).variant(&pread).compare(|s| {
            s.open();
            s.read(0, 512);
            s.disconnect();
        });
    });
}

#[test]
fn eval_that_returns_too_little_or_too_much() {
    for_each(&["0", "511", "513"], |count| {
        let pread = format!("pread=head -c {count} /dev/zero");
        Row::new(row_name!(), &["eval", SIZE, &pread]).variant(count).compare(|s| {
            s.open();
            s.read(0, 512);
            s.disconnect();
        });
    });
}

#[test]
fn eval_that_is_a_file() {
    let arguments = [
        "eval",
        "open=touch $tmpdir/disk; truncate -s 64K $tmpdir/disk",
        "get_size=stat -Lc %s $tmpdir/disk",
        "pread=dd if=$tmpdir/disk skip=$4 count=$3 iflag=count_bytes,skip_bytes 2>/dev/null",
        "pwrite=dd of=$tmpdir/disk seek=$4 conv=notrunc oflag=seek_bytes 2>/dev/null",
        "flush=sync $tmpdir/disk",
        "zero=fallocate -z -o $4 -l $3 $tmpdir/disk",
        "trim=fallocate -p -o $4 -l $3 $tmpdir/disk",
        "extents=echo 0 4096; echo 4096 60K hole,zero",
    ];
    Row::new(row_name!(), &arguments).compare(|s| {
        s.open();
        s.write(1000, 512, 7);
        s.read(1000, 600);
        s.ask(&Ask::write_zeroes(1100, 100));
        s.ask(&Ask::trim(1300, 100));
        s.ask(&Ask::flush());
        s.read(1000, 600);
        s.block_status(0, 65536);
        s.ask(&Ask::block_status(0, 65536).flags(CommandFlags::REQ_ONE));
        s.block_status(8192, 4096);
        s.disconnect();
    });
}

/// The capabilities that scripts can give, seen in the transmission flags. Emulated requests reach
/// a script in pieces as large as a plugin may get, since each starts it once more.
#[test]
fn emulated_requests_come_in_large_pieces() {
    const PIECES: &str = r#"case "$3 $4" in
        "67108864 512" | "33554432 67109376") ;;
        *) echo "EIO unexpected $3 $4" >&2; exit 1 ;;
        esac"#;
    let pread = format!("pread={PIECES}; head -c $3 /dev/zero");
    let pwrite = format!("pwrite=cat >/dev/null; {PIECES}");
    let arguments = ["eval", "get_size=echo 128M", "can_cache=echo emulate", &pread, &pwrite];
    Row::new(row_name!(), &arguments).compare(|s| {
        s.open();
        s.ask(&Ask::cache(512, 96 << 20));
        s.ask(&Ask::write_zeroes(512, 96 << 20));
        s.disconnect();
    });
}

/// A client that is promised several connections opens them, and waits for ever for one that is let
/// in only when the first has gone.
#[test]
fn multi_conn_by_thread_model() {
    let models =
        ["serialize_connections", "serialize_all_requests", "serialize_requests", "parallel"];
    for_each(&models, |model| {
        let model = format!("thread_model=echo {model}");
        let arguments = ["-r", "eval", SIZE, ZEROES, "can_multi_conn=exit 0", &model];
        Row::new(row_name!(), &arguments).variant(&model).compare(|s| {
            s.connect();
            s.go("");
            s.disconnect();
        });
    });
}

#[test]
fn eval_with_every_capability() {
    for_each(
        &[
            "can_write=exit 0",
            "can_write=exit 3",
            "can_flush=exit 0",
            "can_trim=exit 0",
            "can_zero=exit 0",
            "can_fast_zero=exit 0",
            "can_extents=exit 0",
            "can_multi_conn=exit 0",
            "is_rotational=exit 0",
            "can_fua=echo none",
            "can_fua=echo emulate",
            "can_fua=echo native",
            "can_cache=echo none",
            "can_cache=echo emulate",
            "can_cache=echo native",
            "block_size=echo 512 4096 1M",
            "export_description=echo a description",
        ],
        |capability| {
            Row::new(
                row_name!(),
                &[
                    "eval",
                    SIZE,
                    ZEROES,
                    "pwrite=cat >/dev/null",
                    "flush=exit 0",
                    "trim=exit 0",
                    "zero=exit 0",
                    "cache=exit 0",
                    "extents=echo 0 64K",
                    capability,
                ],
            )
            .variant(capability)
            .compare(|s| {
                s.open();
                s.write(0, 512, 1);
                s.ask(&Ask::write(0, [1; 512]).flags(CommandFlags::FUA));
                s.ask(&Ask::cache(0, 512));
                s.ask(&Ask::write_zeroes(0, 512));
                let fast = Ask::write_zeroes(0, 512).flags(CommandFlags::FAST_ZERO);
                s.ask_if(TransmissionFlags::SEND_FAST_ZERO, &fast);
                s.ask(&Ask::trim(0, 512));
                s.ask(&Ask::flush());
                s.block_status(0, 4096);
                s.disconnect();
            });
        },
    );
}

#[test]
fn eval_that_refuses_to_open() {
    for_each(
        &[
            [SIZE, "open=echo 'EPERM not you' >&2; exit 1"],
            [SIZE, "preconnect=exit 1"],
            [SIZE, "default_export=exit 1"],
            ["get_size=echo 'EIO broken' >&2; exit 1", "can_write=exit 3"],
            ["get_size=echo frob", "can_write=exit 3"],
            ["get_size=echo -1", "can_write=exit 3"],
        ],
        |[size, script]| {
            let variant = format!("{size} {script}");
            let arguments = ["eval", ZEROES, size, script];
            Row::new(row_name!(), &arguments).variant(&variant).compare(|s| {
                s.connect();
                s.info("");
                s.go("");
                s.connect();
                s.export_name("");
            });
        },
    );
}

#[test]
fn eval_with_exports() {
    for_each(
        &[
            "list_exports=echo one; echo two",
            "list_exports=echo NAMES; echo one; echo two",
            "list_exports=echo INTERLEAVED; echo one; echo first; echo two; echo second",
            "list_exports=echo NAMES+DESCRIPTIONS; echo one; echo two; echo first; echo second",
            "list_exports=exit 1",
            "list_exports=exit 0",
            "default_export=echo one",
        ],
        |list| {
            Row::new(row_name!(), &["eval", SIZE, ZEROES, "open=echo $3", list])
                .variant(list)
                .compare(|s| {
                    s.connect();
                    s.list();
                    s.go("");
                    s.disconnect();
                });
        },
    );
}

/// A request that the plugin's block sizes do not permit.
#[test]
fn eval_with_block_sizes() {
    let arguments =
        ["eval", "get_size=echo 1M", ZEROES, "pwrite=cat >/dev/null", "block_size=echo 512 4K 64K"];
    Row::new(row_name!(), &arguments).compare(|s| {
        s.connect();
        s.block_sizes("");
        s.open();
        s.read(0, 512);
        s.read(1, 512);
        s.read(0, 100);
        s.read(0, 65536);
        s.read(0, 66048);
        s.write(0, 100, 1);
        s.write(0, 66048, 1);
        s.ask(&Ask::write_zeroes(0, 100));
        s.disconnect();
    });
}

#[test]
fn eval_with_block_sizes_that_are_wrong() {
    for_each(&["3 4K 1M", "512 256 1M", "512 4K 1000", "0 0 0", "frob", "512"], |sizes| {
        let sizes = format!("block_size=echo {sizes}");
        Row::new(row_name!(), &["eval", SIZE, ZEROES, &sizes]).variant(&sizes).compare(|s| {
            s.open();
            s.disconnect();
        });
    });
}

#[test]
fn eval_without_a_size_or_a_reader() {
    Row::new(row_name!(), &["eval", ZEROES]).compare(|s| {
        s.connect();
        s.go("");
    });
    Row::new(row_name!(), &["eval", SIZE]).variant("no pread").compare(|s| {
        s.open();
        s.read(0, 512);
    });
}

const SCRIPT: &str = r#"#!/bin/sh
case "$1" in
    config) test "$2" = greeting || { echo "EINVAL unknown $2" >&2; exit 1; }
        echo "$3" > $tmpdir/greeting ;;
    magic_config_key) echo greeting ;;
    thread_model) echo parallel ;;
    list_exports) echo INTERLEAVED; echo a; echo first ;;
    open) echo "$3-$2" ;;
    export_description) echo "handle $2" ;;
    get_size) stat -c %s $tmpdir/greeting ;;
    pread) dd if=$tmpdir/greeting skip=$4 count=$3 iflag=count_bytes,skip_bytes 2>/dev/null ;;
    can_write) exit 3 ;;
    *) exit 2 ;;
esac
"#;

fn script(dir: &TempDir) {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("plugin");
    std::fs::write(&path, SCRIPT).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn sh() {
    let arguments = ["sh", "{dir}/plugin", "hello"];
    Row::new(row_name!(), &arguments).setup(script).compare(|s| {
        s.connect();
        s.list();
        s.open_export("a");
        s.read(0, 6);
        s.write(0, 1, 1);
        s.disconnect();
    });
}

#[test]
fn sh_that_refuses_its_configuration() {
    let arguments = ["sh", "{dir}/plugin", "frob=1"];
    Row::new(row_name!(), &arguments).setup(script).compare_command();
}

#[test]
fn sh_without_a_script() {
    Row::new(row_name!(), &["sh"]).compare_command();
    Row::new(row_name!(), &["sh", "{dir}/missing"]).variant("missing").compare_command();
}
