//! The nbd plugin in front of servers of Debian's, of which ours and Debian's show clients the
//! same.

use nbd_protocol::constants::{CommandFlags, TransmissionFlags};
use nbdkit_tests::binary::Binary;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::{Builder, Server};
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, row_name};

use crate::images::has;

const SIZE: u64 = 1 << 20;

fn upstream(arguments: &[&str]) -> Option<Builder> {
    Some(Server::nbdkit(arguments).binary(Binary::debian()?))
}

/// Compares the plugin with `parameters` in front of a server with `arguments`.
fn behind(
    name: &str,
    variant: &str,
    arguments: &[&str],
    parameters: &[&str],
    script: impl Fn(&mut Session),
) {
    let Some(builder) = upstream(arguments) else { return };
    let server = builder.start();
    let parameters: Vec<String> = parameters
        .iter()
        .map(|it| it.replace("{socket}", &server.socket().display().to_string()))
        .collect();
    let parameters: Vec<&str> = parameters.iter().map(String::as_str).collect();
    Row::new(name, &parameters).variant(variant).compare(script);
}

const SOCKET: &str = "socket={socket}";

/// Whatever was on the disk before.
fn exercise(s: &mut Session) {
    s.open();
    s.ask(&Ask::write_zeroes(0, SIZE));
    s.read(0, 512);
    s.write(4096, 8192, 0xaa);
    s.ask(&Ask::write(512, [1; 1024]).flags(CommandFlags::FUA));
    s.read(0, 100_000);
    s.ask(&Ask::write_zeroes(6000, 4096));
    s.ask(&Ask::write_zeroes(65_536, 4096).flags(CommandFlags::NO_HOLE));
    let fast = Ask::write_zeroes(0, 64).flags(CommandFlags::FAST_ZERO);
    s.ask_if(TransmissionFlags::SEND_FAST_ZERO, &fast);
    s.ask(&Ask::trim(8192, 4096));
    s.ask(&Ask::cache(0, 4096));
    s.ask(&Ask::flush());
    s.read(0, SIZE);
    s.block_status(0, SIZE);
    s.ask(&Ask::block_status(0, SIZE).flags(CommandFlags::REQ_ONE));
    s.read(SIZE - 512, 513);
    s.disconnect();
    s.connect();
    s.block_sizes("");
    s.list();
}

#[test]
fn nbd_requests() {
    let disks: [(&str, &[&str]); 3] = [
        ("memory", &["memory", "1M"]),
        ("oldstyle", &["-o", "memory", "1M"]),
        ("no structured replies", &["--no-sr", "memory", "1M"]),
    ];
    for_each(&disks, |(variant, disk)| {
        behind(row_name!(), variant, disk, &["nbd", SOCKET], exercise);
    });
}

#[test]
fn nbd_shared_connection() {
    let parameters = ["nbd", SOCKET, "shared=true"];
    behind(row_name!(), "", &["memory", "1M"], &parameters, exercise);
}

#[test]
fn nbd_for_oldstyle_clients() {
    behind(row_name!(), "", &["pattern", "1M"], &["-o", "nbd", SOCKET], |s| {
        s.connect_oldstyle();
        s.read(0, 4096);
        s.read(SIZE - 512, 512);
        s.disconnect();
    });
}

/// What a server has not, and what it has otherwise than others.
#[test]
fn nbd_abilities() {
    const ABILITIES: [&str; 18] = [
        "can_write=exit 3",
        "can_flush=exit 0",
        "can_trim=exit 0",
        "can_zero=exit 0",
        "can_zero=exit 3",
        "can_fast_zero=exit 0",
        "can_fast_zero=exit 3",
        "can_fua=echo none",
        "can_fua=echo emulate",
        "can_fua=echo native",
        "can_cache=echo none",
        "can_cache=echo emulate",
        "can_cache=echo native",
        "can_multi_conn=exit 0",
        "is_rotational=exit 0",
        "can_extents=exit 0",
        "block_size=echo 512 4096 1M",
        "export_description=echo a disk",
    ];
    for_each(&ABILITIES, |ability| {
        let disk = [
            "eval",
            "get_size=echo 1M",
            "pread=head -c $3 /dev/zero",
            "pwrite=cat >/dev/null",
            "flush=exit 0",
            "trim=exit 0",
            "zero=exit 0",
            "cache=exit 0",
            "extents=echo 0 1M hole",
            ability,
        ];
        behind(row_name!(), ability, &disk, &["nbd", SOCKET], |s| {
            s.connect();
            s.info("");
            s.block_sizes("");
            s.open();
            s.read(0, 4096);
            s.write(0, 4096, 1);
            s.ask(&Ask::write_zeroes(0, 4096));
            s.ask(&Ask::flush());
            s.block_status(0, SIZE);
        });
    });
}

#[test]
fn nbd_error_numbers() {
    const ERRORS: [&str; 8] =
        ["EPERM", "EIO", "ENOMEM", "EINVAL", "ENOSPC", "ESHUTDOWN", "EROFS", "EBADF"];
    for_each(&ERRORS, |error| {
        // Debian's server minds if a script does not read what is written.
        let fails = |method: &str| {
            let reads = if method == "pwrite" { "cat >/dev/null; " } else { "" };
            format!("{method}={reads}echo {error} no >&2; exit 1")
        };
        let methods = ["pread", "pwrite", "flush", "trim", "zero", "cache", "extents"].map(fails);
        let mut disk = vec!["eval", "get_size=echo 1M", "can_cache=echo native"];
        let can = ["can_write", "can_flush", "can_trim", "can_zero", "can_extents"];
        let can = can.map(|method| format!("{method}=exit 0"));
        disk.extend(methods.iter().chain(&can).map(String::as_str));
        behind(row_name!(), error, &disk, &["nbd", SOCKET], |s| {
            s.open();
            s.read(0, 4096);
            s.write(0, 4096, 1);
            s.ask(&Ask::flush());
            s.ask(&Ask::trim(0, 4096));
            s.ask(&Ask::write_zeroes(0, 4096));
            s.ask(&Ask::cache(0, 4096));
            s.block_status(0, SIZE);
            s.read(0, 512);
        });
    });
}

/// Names that clients see and choose.
#[test]
fn nbd_exports() {
    const URI: &str = "nbd+unix:///a?socket={socket}";
    let rows: [(&str, &[&str]); 6] = [
        ("export", &["nbd", SOCKET, "export=a"]),
        ("uri", &["nbd", URI]),
        ("uri=", &["nbd", "uri=nbd+unix:///b?socket={socket}"]),
        ("no such export", &["nbd", SOCKET, "export=c"]),
        ("dynamic", &["nbd", SOCKET, "dynamic-export=true"]),
        ("dynamic uri", &["nbd", URI, "dynamic-export=true"]),
    ];
    for_each(&rows, |(variant, parameters)| {
        // A file a only: directories have no order.
        let disk = ["file", "dir={dir}/only"];
        let Some(builder) = upstream(&disk) else { return };
        std::fs::create_dir(builder.dir().join("only")).unwrap();
        std::fs::write(builder.dir().join("only/a"), "a".repeat(512)).unwrap();
        let server = builder.start();
        let socket = server.socket().display().to_string();
        let parameters: Vec<_> =
            parameters.iter().map(|it| it.replace("{socket}", &socket)).collect();
        let parameters: Vec<&str> = parameters.iter().map(String::as_str).collect();
        Row::new(row_name!(), &parameters).variant(variant).compare(|s| {
            s.connect();
            s.list();
            s.info("a");
            s.info("c");
            s.go("a");
            s.read(0, 512);
            s.disconnect();
            s.open_export("");
        });
    });
}

#[test]
fn nbd_in_front_of_a_command() {
    if !has("qemu-nbd") {
        return;
    }
    let parameters = ["nbd", "command=qemu-nbd", "arg=-f", "arg=raw", "arg={dir}/disk"];
    let setup = |dir: &nbdkit_tests::TempDir| {
        std::fs::write(dir.join("disk"), vec![0; SIZE as usize]).unwrap();
    };
    Row::new(row_name!(), &parameters).setup(setup).compare(|s| {
        exercise(s);
        s.disconnect();
        exercise(s);
    });
}

#[test]
fn nbd_command_lines() {
    const LINES: &[&[&str]] = &[
        &[],
        &["port=10809"],
        &["socket=/s", "hostname=h"],
        &["socket=/s", "uri=nbd://h"],
        &["hostname=h", "vsock=2"],
        &["command=x", "socket-fd=3"],
        &["socket=/s", "port=22"],
        &["vsock=2", "port=4294967296"],
        &["socket=/s", "shared=true", "dynamic-export=true"],
        &["command=true", "dynamic-export=true"],
        &["socket=/s", "export=a", "dynamic-export=true"],
        &["socket="],
        &["socket=/s", "retry=-1"],
        &["socket=/s", "tls=maybe"],
        &["socket=/s", "tls-verify=maybe"],
        &["socket=/s", "shared=maybe"],
        &["socket=/s", "dynamic-export=maybe"],
        &["socket=/s", "foo=bar"],
    ];
    for_each(LINES, |parameters| {
        let arguments = [&["-U", "-", "nbd"], parameters, &["--run", "true"]].concat();
        let variant = parameters.join(" ");
        Row::new(row_name!(), &arguments).variant(&variant).compare_command();
    });
    let long = format!("socket=/{}", "a".repeat(200));
    Row::new(row_name!(), &["-U", "-", "nbd", &long, "--run", "true"])
        .variant("long")
        .compare_command();
}

#[test]
fn nbd_dump_plugin() {
    // There is no libnbd here, and what is a constructor or a destructor in Rust is no callback.
    let without_version = |line: &str| {
        let other = ["version=", "path=", "has_unload=", "has_close="];
        (!other.iter().any(|it| line.contains(it))).then(|| line.to_owned())
    };
    Row::new(row_name!(), &["--dump-plugin", "nbd"]).normalise(without_version).compare_command();
}
