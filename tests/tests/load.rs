//! The memory plugin with what it holds at first. Debian's nbdkit has no such parameter.
#![expect(clippy::unwrap_used, reason = "a file that cannot be prepared is a failed test")]

use nbdkit_tests::server::ours;
use nbdkit_tests::tools::disk;
use nbdkit_tests::{Ask, TempDir};

const MIB: usize = 1 << 20;

fn file(dir: &TempDir) -> Vec<u8> {
    let mut content: Vec<u8> = (0..MIB + 77).map(|at| (at / 1000) as u8).collect();
    content[200_000..500_000].fill(0);
    std::fs::write(dir.join("file"), &content).unwrap();
    content
}

#[test]
fn clients_share_a_disk_that_begins_as_a_file_which_they_leave_alone() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        for size in [None, Some("2M")] {
            let server = ours(&[isolation, "memory", "load={dir}/file"]).args(size);
            let content = file(server.dir());
            let server = server.start();
            let mut expected = content.clone();
            expected.resize(if size.is_some() { 2 * MIB } else { content.len() }, 0);
            assert!(disk(&server) == expected, "{isolation} {size:?}");
            let (mut one, mut other) = (server.connected(""), server.connected(""));
            if isolation == "--isolation=connection" {
                assert_eq!(server.workers().len(), 2);
            }
            assert_eq!(one.call(&Ask::write(100, vec![255; 100])).unwrap().error, None);
            drop(one);
            assert_eq!(other.call(&Ask::read(100, 100)).unwrap().data, [255; 100]);
            assert!(std::fs::read(server.dir().join("file")).unwrap() == content);
        }
    }
}

#[test]
fn a_disk_is_loaded_before_the_file_goes_away_and_with_each_allocator() {
    for allocator in ["allocator=malloc", "allocator=zstd", "allocator=sparse,max=1M"] {
        let server = ours(&["memory", "load={dir}/file", allocator, "4M"]);
        let mut content = file(server.dir());
        let server = server.start();
        std::fs::remove_file(server.dir().join("file")).unwrap();
        content.resize(4 * MIB, 0);
        assert!(disk(&server) == content, "{allocator}");
    }
}

#[test]
fn what_cannot_be_loaded_is_one_line() {
    for (arguments, expected) in [
        (&["1M"][..], "the file has 1048653 bytes, and the disk 1048576"),
        (&["allocator=sparse,max=64K"], "load"),
        (&["load={dir}/none"], "No such file or directory"),
        (&["load={dir}"], "file is not regular or block device"),
        (&["load="], "realpath"),
    ] {
        let server = ours(&["memory", "load={dir}/file"]).args(arguments);
        file(server.dir());
        let finished = server.try_start().expect_err("refused");
        assert!(finished.stderr.contains(expected), "{}", finished.stderr);
        assert_eq!((finished.stderr.lines().count(), finished.status.code()), (1, Some(1)));
    }
}
