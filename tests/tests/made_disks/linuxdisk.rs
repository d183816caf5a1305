//! nbdkit-linuxdisk-plugin(1).

use std::os::unix::fs::{MetadataExt, symlink};

use nbdkit_tests::server::Builder;
use nbdkit_tests::{Ask, TempDir};

use crate::support::{contents, left_behind, output, refused, server};

/// Where the partition begins, and what follows it, bytes.
const START: usize = 1 << 20;
const END: usize = 33 * 512;

/// A directory with a file, a directory, a link and a second name.
fn files(dir: &TempDir) {
    let root = dir.join("root");
    std::fs::create_dir_all(root.join("sub/deeper")).unwrap();
    std::fs::write(root.join("sub/deeper/file"), vec![b'x'; 100_000]).unwrap();
    std::fs::hard_link(root.join("sub/deeper/file"), root.join("again")).unwrap();
    symlink("sub/deeper", root.join("link")).unwrap();
}

fn served(arguments: &[&str]) -> Builder {
    let builder = server(arguments);
    files(builder.dir());
    builder
}

/// Checks the disk with other programs. Returns what dumpe2fs has on the file system.
fn check(disk: &[u8], dir: &TempDir) -> String {
    let (whole, part) = (dir.join("whole"), dir.join("part"));
    std::fs::write(&whole, disk).unwrap();
    std::fs::write(&part, &disk[START..disk.len() - END]).unwrap();
    let (whole, part) = (whole.to_str().unwrap(), part.to_str().unwrap());
    assert!(output("sfdisk", &["--verify", whole]).contains("No errors detected"));
    let table = output("sfdisk", &["--dump", whole]);
    let sectors = (disk.len() - START - END) / 512;
    let expected = format!(
        "start=        2048, size={sectors:>12}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4"
    );
    assert!(table.contains(&expected), "{table}");
    output("fsck.ext4", &["-fn", part]);
    let file = output("debugfs", &["-R", "cat /sub/deeper/file", part]);
    assert_eq!(file, "x".repeat(100_000));
    assert!(output("debugfs", &["-R", "stat /link", part]).contains("sub/deeper"));
    let again = output("debugfs", &["-R", "stat /again", part]);
    assert!(again.contains("Links: 2"), "{again}");
    let owner = std::fs::metadata(dir.join("root/again")).unwrap().uid();
    assert!(again.contains(&format!("User: {owner:>5} ")), "{again}");
    output("dumpe2fs", &["-h", part])
}

#[test]
fn file_systems_of_every_type_are_whole_and_have_the_files() {
    for (kind, feature) in [("ext2", "resize_inode"), ("ext3", "has_journal"), ("ext4", "extent")] {
        let kind = format!("type={kind}");
        let arguments = ["linuxdisk", "{dir}/root", &kind, "label=ROOTFS", "size=+3M"];
        let server = served(&arguments).start();
        assert_eq!(left_behind(&server), [""; 0]);
        let disk = contents(&mut server.connected(""));
        let about = check(&disk, server.dir());
        assert!(about.contains("Filesystem volume name:   ROOTFS"), "{about}");
        assert!(about.contains(feature), "{about}");
        let number = |key: &str| -> u64 {
            let line = about.lines().find(|line| line.starts_with(key)).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(number("Free blocks:") * number("Block size:") >= 3 << 20, "{about}");
    }
}

#[test]
fn two_clients_in_two_processes_see_one_disk_that_nobody_can_write() {
    let server = served(&["linuxdisk", "dir={dir}/root"]).start();
    let (mut one, mut other) = (server.connected(""), server.connected(""));
    assert_eq!(server.workers().len(), 2);
    assert!(contents(&mut one) == contents(&mut other));
    let refused = one.call(&Ask::write(0, [1; 512])).expect("a reply");
    assert_eq!(refused.error.map(|it| it.code), Some(1), "EPERM");
    drop(one);
    check(&contents(&mut other), server.dir());
}

#[test]
fn one_process_for_all_serves_it_and_a_cow_filter_makes_it_writable() {
    let arguments = ["--isolation=shared", "--filter=cow", "linuxdisk", "{dir}/root"];
    let server = served(&arguments).start();
    let mut client = server.connected("");
    assert_eq!(client.call(&Ask::write(0, [1; 512])).expect("a reply").error, None);
    let mut disk = contents(&mut client);
    assert_eq!(disk[..512], [1; 512]);
    disk[..512].fill(0);
    assert!(disk[512..].starts_with(b"EFI PART"));
}

#[test]
fn the_sandbox_is_strict_and_the_partition_filter_finds_the_file_system() {
    let arguments =
        ["-r", "--sandbox=strict", "--filter=partition", "linuxdisk", "{dir}/root", "partition=1"];
    let server = served(&arguments).start();
    let disk = contents(&mut server.connected(""));
    assert_eq!(disk[1024 + 0x38..1024 + 0x3a], [0x53, 0xef]);
}

#[test]
fn what_cannot_be_made_is_one_line_and_leaves_nothing_behind() {
    refused(server(&["linuxdisk"]), "you must supply the dir=<DIRECTORY> parameter");
    refused(server(&["linuxdisk", "{dir}/nothing"]), "No such file or directory");
    refused(served(&["linuxdisk", "{dir}/root/again"]), "expecting a directory: ");
    refused(served(&["linuxdisk", "{dir}/root", "type=xfs"]), "type=xfs");
    refused(served(&["linuxdisk", "{dir}/root", "size=50K"]), "mke2fs: command failed");
    refused(served(&["linuxdisk", "{dir}/root", "size=9223372036854775807"]), "size is too large");
    refused(served(&["linuxdisk", "{dir}/root"]).env("TMPDIR", "/no/such"), "/no/such");
}
