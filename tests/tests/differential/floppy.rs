//! The floppy plugin: sizes and messages are those of Debian's, and the tools for FAT file systems
//! find every file as it is. Debian's plugin gives empty files a cluster of another file, and
//! several names an invalid short form, so bytes are not compared.

use std::process::Command;

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::ours;
use nbdkit_tests::tools::{disk, run};
use nbdkit_tests::{Ask, TempDir, row_name};

const MIB: u64 = 1 << 20;

/// Files of all sizes and kinds of names, in three levels.
const FILES: &[(&str, usize)] = &[
    ("hello.txt", 6),
    ("README", 1),
    (".hidden", 7),
    ("\u{e9}t\u{e9}.txt", 16_384),
    ("A long file name.data", 100_000),
    ("A long file name.date", 3),
    ("CON+=[].txt", 16_385),
    ("sub/one", 49_152),
    ("sub/deep/two.tar.gz", 511),
    ("sub/deep/two.tar.bz2", 512),
];

/// The content of the file that is called so.
fn content(name: &str, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at / 7 * 31 + name.len()) as u8).collect()
}

fn directory(dir: &TempDir) {
    let root = dir.join("root");
    std::fs::create_dir_all(root.join("sub/deep")).unwrap();
    for (name, size) in FILES {
        std::fs::write(root.join(name), content(name, *size)).unwrap();
    }
}

#[test]
fn floppy_sizes() {
    for_each(&["", "size=2M", "size=40M", "size=100G"], |size| {
        let arguments = ["floppy", "{dir}/root", size];
        let arguments = &arguments[..if size.is_empty() { 2 } else { 3 }];
        Row::new(row_name!(), arguments).variant(size).setup(directory).compare(|s| {
            s.open();
            s.read(0, 440);
            s.read(446, 66);
            // Sectors of a cluster, reserved ones and FATs; sectors of all, and of a FAT.
            s.read(MIB + 11, 6);
            s.read(MIB + 32, 8);
            s.read(MIB + 71, 11);
            s.write(0, 512, 1);
            s.read(1 << 50, 1);
            s.disconnect();
        });
    });
}

#[test]
fn floppy_parameters_that_make_no_sense() {
    for_each(
        &["", "{dir}/none", "{dir}/root/README", "size=1M", "size=3T", "foo=1", "dir={dir}"],
        |it| {
            let mut arguments = vec!["-U", "-", "floppy"];
            arguments.extend(it.contains('=').then_some("{dir}/root"));
            arguments.extend((!it.is_empty()).then_some(it));
            arguments.push("--run=exit 0");
            Row::new(row_name!(), &arguments).variant(it).setup(directory).compare_command();
        },
    );
}

#[test]
fn tools_find_every_file() {
    // mtools takes a file system of less than 65525 clusters for one of FAT12.
    for size in [None, Some("size=3000000"), Some("size=1100M")] {
        let arguments = ["--filter=partition", "floppy", "{dir}/root", "label=my disk"];
        let server = ours(&arguments).arg("partition=1").args(size);
        directory(server.dir());
        std::fs::write(server.dir().join("root/empty"), "").unwrap();
        std::fs::create_dir(server.dir().join("root/Nothing in it")).unwrap();
        std::os::unix::fs::symlink("README", server.dir().join("root/link")).unwrap();
        for number in 0..600 {
            let name = format!("root/sub/one of many files {number}");
            std::fs::write(server.dir().join(&name), "").unwrap();
        }
        let server = server.start();
        let dir = server.dir().path();
        let uri = format!("nbd+unix:///?socket={}", server.socket().display());
        if run("nbdcopy", &[&uri, "fs"], dir).is_none() {
            return;
        }
        if let Some(text) = run("fsck.vfat", &["-n", "-v", "fs"], dir) {
            // It names what it finds before that line and behind the one before.
            let line =
                "\nChecking for unused clusters.\nChecking free cluster summary.\nfs: 615 files, ";
            assert!(text.contains(line) && text.contains(" sectors total\nChecking for"), "{text}");
        }
        if size != Some("size=1100M") {
            continue;
        }
        std::fs::create_dir(dir.join("copy")).unwrap();
        if run("mcopy", &["-s", "-m", "-i", "fs", "::", "copy"], dir).is_some() {
            let compared = ["-r", "--no-dereference", "root", "copy"];
            let different = Command::new("diff").args(compared).current_dir(dir).output().unwrap();
            let text = String::from_utf8_lossy(&different.stdout);
            assert_eq!(text, "Only in root: link\n");
            let label = run("mlabel", &["-s", "-i", "fs"], dir).unwrap();
            assert!(label.contains("my disk"), "{label}");
        }
    }
}

#[test]
fn the_kernels_driver_finds_every_file() {
    let server = ours(&["floppy", "{dir}/root"]);
    directory(server.dir());
    let server = server.start();
    let dir = server.dir().path();
    std::fs::write(dir.join("fs"), &disk(&server)[MIB as usize..]).unwrap();
    std::fs::create_dir(dir.join("mount")).unwrap();
    let mounted = Command::new("mount")
        .args(["-o", "loop,ro,utf8=1,shortname=mixed", "-t", "vfat", "fs", "mount"])
        .current_dir(dir)
        .output();
    if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: mounting needs root, loop devices and vfat: {mounted:?}");
        return;
    }
    let found: Vec<_> =
        FILES.iter().map(|(name, _)| std::fs::read(dir.join("mount").join(name)).ok()).collect();
    let unmounted = Command::new("umount").arg("mount").current_dir(dir).status().unwrap();
    assert!(unmounted.success());
    for ((name, size), found) in FILES.iter().zip(found) {
        assert!(found == Some(content(name, *size)), "{name}");
    }
}

/// Where the only file of a disk is: behind the root directory's cluster.
const ONLY_FILE: u64 = (2048 + 32 + 2 * 32 + 32) * 512;

#[test]
fn files_are_opened_when_they_are_read() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let server = ours(&[isolation, "floppy", "{dir}/root"]);
        let path = server.dir().join("root");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("a"), [1; 5000]).unwrap();
        let server = server.start();
        let (mut one, mut other) = (server.connected(""), server.connected(""));
        if isolation == "--isolation=connection" {
            assert_eq!(server.workers().len(), 2);
        }
        let ask = Ask::read(ONLY_FILE, 8192);
        let expected = [vec![1; 5000], vec![0; 3192]].concat();
        assert_eq!(one.call(&ask).unwrap().data, expected);
        std::fs::rename(path.join("a"), path.join("b")).unwrap();
        // Who has opened it goes on, who has not cannot.
        assert_eq!(one.call(&ask).unwrap().data, expected);
        let error = |reply: nbdkit_tests::client::Reply| reply.error.map(|it| it.code);
        assert!(error(other.call(&ask).unwrap()).is_some());
        std::os::unix::fs::symlink("/etc/passwd", path.join("a")).unwrap();
        assert!(error(other.call(&ask).unwrap()).is_some());
        std::fs::remove_file(path.join("a")).unwrap();
        std::fs::write(path.join("a"), [2; 100]).unwrap();
        // What is there is read, and what is missing is an error.
        assert_eq!(other.call(&Ask::read(ONLY_FILE, 100)).unwrap().data, [2; 100]);
        assert_eq!(error(other.call(&ask).unwrap()), Some(5), "EIO");
        drop(one);
        assert_eq!(other.call(&Ask::read(ONLY_FILE, 100)).unwrap().data, [2; 100]);
    }
}

#[test]
fn many_files_and_directories_are_served() {
    let server = ours(&["floppy", "{dir}/root"]);
    let root = server.dir().join("root");
    for number in 0..700 {
        let dir = root.join(format!("directory {number}"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("file"), format!("content {number}")).unwrap();
    }
    let server = server.start();
    let bytes = disk(&server);
    for number in 0..700 {
        let text = format!("content {number}\0");
        // Files begin at clusters.
        let clusters = bytes[MIB as usize..].as_chunks::<16384>().0;
        assert!(clusters.iter().any(|it| it.starts_with(text.as_bytes())), "{number}");
    }
}
