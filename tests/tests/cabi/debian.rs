//! Debian's plugins, unmodified, through ours and through Debian's server.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::row_name;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, Server, TempDir, command, http};

use crate::support::{debian_or_skip, exercise, file, open};

/// All of the packages nbdkit and nbdkit-plugin-python, -perl, -lua, -ruby, -tcl, -libvirt.
const PLUGINS: [&str; 34] = [
    "cc",
    "cdi",
    "curl",
    "data",
    "eval",
    "example1",
    "example2",
    "example3",
    "file",
    "floppy",
    "full",
    "info",
    "iso",
    "libvirt",
    "linuxdisk",
    "lua",
    "memory",
    "nbd",
    "null",
    "ondemand",
    "partitioning",
    "pattern",
    "perl",
    "python",
    "random",
    "ruby",
    "sh",
    "sparse-random",
    "split",
    "ssh",
    "tcl",
    "tmpdisk",
    "torrent",
    "zero",
];

#[test]
fn every_plugin_loads_and_describes_itself() {
    for_each(&PLUGINS, |name| {
        let Some(plugin) = debian_or_skip(name) else { return };
        Row::new(row_name!(), &["--dump-plugin", &plugin]).variant(name).compare_command();
    });
}

#[test]
fn every_plugin_has_help() {
    for name in PLUGINS {
        let Some(plugin) = debian_or_skip(name) else { continue };
        let mut command = Command::new(Binary::under_test().path());
        let finished = command::run(command.args(["--help", &plugin]), Duration::from_secs(20));
        assert!(finished.status.success(), "{finished:?}");
        assert!(finished.stdout.contains(&format!("plugin: {name}")), "{finished:?}");
    }
}

/// Two disks with data, holes and an odd size between them, a directory of files, and a script.
fn disks(dir: &TempDir) {
    let data: Vec<u8> = (0..65536_u32).map(|n| (n * 7 / 3) as u8).collect();
    file(dir, "disk", &data);
    file(dir, "disk2", &data[..32768]);
    let sparse = std::fs::File::create(dir.join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &data, 1 << 19).unwrap();
    std::fs::create_dir(dir.join("files")).unwrap();
    for name in ["files/a.txt", "files/B.TXT"] {
        file(dir, name, name.as_bytes());
        // Times become part of a file system.
        let time = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        std::fs::File::options()
            .write(true)
            .open(dir.join(name))
            .unwrap()
            .set_modified(time)
            .unwrap();
    }
    let files = std::fs::File::open(dir.join("files")).unwrap();
    files.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
    file(dir, "script", SCRIPT.as_bytes());
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.join("script"), mode).unwrap();
}

const SCRIPT: &str = r#"#!/bin/sh
disk="$(dirname "$0")/disk"
case "$1" in
    get_size) echo 65536 ;;
    pread) dd if="$disk" skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none ;;
    pwrite) dd of="$disk" seek=$4 oflag=seek_bytes conv=notrunc status=none ;;
    can_write|can_flush) exit 0 ;;
    flush) ;;
    *) exit 2 ;;
esac
"#;

/// As [`exercise`], and the whole disk is read.
fn whole(s: &mut Session, size: u64) {
    exercise(s);
    s.open();
    for offset in (0..size).step_by(1 << 16) {
        s.read(offset, (1 << 16).min(size - offset));
        s.block_status(offset, (1 << 16).min(size - offset));
    }
    s.disconnect();
}

#[test]
fn plugins_that_serve_a_disk() {
    for_each(
        &[
            &["memory", "1M"][..],
            &["memory", "1M", "allocator=malloc"],
            &["memory", "1M", "allocator=zstd"],
            &["file", "disk"],
            &["file", "sparse"],
            &["file", "dir=files"],
            &["data", "1 2 3 @0x8000 \"text\" @65535 4"],
            &["pattern", "1M"],
            &["split", "disk", "disk2", "disk"],
            &["sh", "script"],
            &["eval", "get_size=echo 65536", "pread=head -c $3 /dev/zero"],
            &["partitioning", "disk", "disk2"],
            &["partitioning", "partition-type=mbr", "disk", "mbr-id=0x83", "disk2"],
            &["sparse-random", "1M"],
            &["example2", "file=disk"],
            &["null", "1M"],
            &["zero"],
            &["full", "1M"],
            &["info", "mode=base64exportname"],
        ],
        |arguments| {
            let Some(plugin) = debian_or_skip(arguments[0]) else { return };
            let arguments: Vec<&str> =
                [plugin.as_str()].into_iter().chain(arguments[1..].iter().copied()).collect();
            let row = arguments[1..].join(" ");
            let name = plugin.rsplit('/').next().unwrap().to_owned();
            Row::new(row_name!(), &arguments)
                .variant(&format!("{name} {row}"))
                .setup(disks)
                .compare(|s| whole(s, 1 << 17));
        },
    );
}

#[test]
fn a_floppy_of_a_directory() {
    let Some(plugin) = debian_or_skip("floppy") else { return };
    Row::new(row_name!(), &[&plugin, "files", "label=TEST"])
        .setup(disks)
        .compare(|s| whole(s, 1 << 20));
}

#[test]
fn a_disk_on_another_nbd_server() {
    let (Some(plugin), Some(debian)) = (debian_or_skip("nbd"), Binary::debian()) else { return };
    let backing = || Server::nbdkit(["memory", "1M"]).binary(debian.clone()).start();
    let transcript = |binary: &Binary| {
        let backing = backing();
        let socket = format!("socket={}", backing.socket().display());
        let mut server = Server::nbdkit([&plugin, &socket]).binary(binary.clone()).start();
        let mut session = Session::new(server.socket(), server.dir().path());
        whole(&mut session, 1 << 17);
        assert!(server.stop().success());
        session.into_lines()
    };
    assert_eq!(transcript(&Binary::under_test()), transcript(&debian));
}

#[test]
fn a_disk_on_a_web_server() {
    let Some(plugin) = debian_or_skip("curl") else { return };
    let content = (0..1 << 17).map(|n: u32| (n / 251) as u8).collect();
    let url = format!("{}/disk", http::serve(content, &[]));
    Row::new(row_name!(), &[&plugin, &url]).compare(|s| {
        s.connect();
        s.info("");
        s.disconnect();
        s.open();
        s.read(0, 512);
        s.read(100_000, 30_000);
        s.read(0, 1 << 17);
        s.disconnect();
    });
}

#[test]
fn the_memory_plugin_is_shared_between_clients() {
    let Some(plugin) = debian_or_skip("memory") else { return };
    let mut server = Server::nbdkit([&plugin, "1M"]).start();
    let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(open);
    assert_eq!(clients[0].call(&Ask::write(100, *b"shared")).expect("a reply").error, None);
    for client in &mut clients {
        assert_eq!(client.call(&Ask::read(100, 6)).expect("a reply").data, b"shared");
    }
    drop(clients);
    let mut late = server.connect();
    open(&mut late);
    assert_eq!(late.call(&Ask::read(100, 6)).expect("a reply").data, b"shared");
    drop(late);
    assert!(server.stop().success());
}

/// The package cannot be installed beside the qemu-utils that other tests need;
/// `scripts/unpack-guestfs-plugin.sh` unpacks it, with the libraries that it needs, beside the
/// build.
#[test]
fn the_guestfs_plugin_loads_and_describes_itself() {
    let binary = Binary::ours();
    let root = binary.path().ancestors().nth(2).unwrap().join("guestfs/root");
    let triplet = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
    let plugin = root.join("usr").join(&triplet).join("nbdkit/plugins/nbdkit-guestfs-plugin.so");
    if !plugin.is_file() {
        return eprintln!("SKIPPED: {} is not there", plugin.display());
    }
    let libraries = [root.join("usr").join(&triplet), root.join(&triplet)];
    let dump = |binary: &Path| {
        let mut command = Command::new(binary);
        let path = std::env::join_paths(&libraries).unwrap();
        command.arg("--dump-plugin").arg(&plugin).env("LD_LIBRARY_PATH", path);
        command::run(&mut command, Duration::from_secs(30))
    };
    let ours = dump(Binary::under_test().path());
    assert!(ours.stdout.contains("name=guestfs"), "{ours:?}");
    if let Some(debian) = Binary::debian() {
        // Ours says besides how the plugin would be confined.
        let is_own = |line: &&str| ["sandbox=", "isolation="].iter().any(|it| line.starts_with(it));
        let (own, others): (Vec<&str>, Vec<&str>) = ours.stdout.lines().partition(is_own);
        assert_eq!(own, ["sandbox=compat", "isolation=shared"]);
        assert_eq!(others, dump(debian.path()).stdout.lines().collect::<Vec<_>>());
    }
}
