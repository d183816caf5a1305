use super::example::{add, archive, find_entry};
use crate::testing::{self, Disk};
use nbdkit_api::Errno;
use std::sync::Arc;

fn contents(archive: &[u8], entry: &str) -> Vec<u8> {
    let found = find_entry(archive, entry.as_bytes(), u64::MAX).unwrap();
    archive[found.start as usize..found.end as usize].to_vec()
}

fn why(archive: &[u8], entry: &str) -> String {
    find_entry(archive, entry.as_bytes(), u64::MAX).unwrap_err().message().to_owned()
}

#[test]
fn entries_are_found_by_their_short_long_and_pax_names() {
    let archive = archive();
    assert_eq!(contents(&archive, "small"), b"abc");
    assert_eq!(contents(&archive, "long/name"), [7; 600]);
    assert_eq!(contents(&archive, "pax"), [8; 600]);
    assert_eq!(contents(&archive, "last"), b"z");
    for absent in ["long", "short", "", "dir"] {
        let error = find_entry(&archive, absent.as_bytes(), u64::MAX).unwrap_err();
        assert_eq!(error.errno(), Errno::ENOENT, "{absent}");
    }
    assert_eq!(why(&archive, "link"), "tar: link is not a regular file");
    assert_eq!(why(&archive, "dir/"), "tar: dir/ is not a regular file");
    assert_eq!(why(&archive, "sparse"), "tar: sparse is a sparse entry, which cannot be served");
}

#[test]
fn names_may_be_given_as_tar_lists_them() {
    let mut archive = Vec::new();
    for (name, data) in [("new\nline", b"1"), ("back\\slash", b"2"), ("\u{fc}", b"3")] {
        add(&mut archive, name, b'0', 1, data);
    }
    for (name, data) in [
        ("new\nline", b"1"),
        ("new\\nline", b"1"),
        ("new\\012line", b"1"),
        ("back\\slash", b"2"),
        ("back\\\\slash", b"2"),
        ("\\303\\274", b"3"),
    ] {
        assert_eq!(contents(&archive, name), data, "{name}");
    }
    assert!(find_entry(&archive, b"\\", u64::MAX).is_err());
    assert!(find_entry(&archive, b"\\777", u64::MAX).is_err());
}

#[test]
fn the_search_ends_at_the_limit() {
    let archive = archive();
    let end = find_entry(&archive, b"last", u64::MAX).unwrap().start;
    assert!(find_entry(&archive, b"last", end).is_ok());
    let error = find_entry(&archive, b"last", end - 1).unwrap_err();
    let expected = format!("tar: the entry was not found in tar-limit={} bytes", end - 1);
    assert_eq!(error.message(), expected);
}

#[test]
fn damaged_archives_are_errors() {
    let good = archive();
    let last = find_entry(&good, b"last", u64::MAX).unwrap();
    // Whatever byte of a header is another one, the sum is wrong.
    for at in [0, 124, 156, 300, 512, 600] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(why(&bad, "last").ends_with("makes no sense: is this a tar file?"), "{at}");
    }
    for length in 0..=good.len() {
        match find_entry(&good[..length], b"last", u64::MAX) {
            Ok(found) => assert!(found == last && length as u64 >= last.end),
            Err(_) => assert!((length as u64) < last.end, "{length}"),
        }
    }
    for (kind, size, data, expected) in [
        (b'0', u64::from(u32::MAX), &b""[..], "tar: x is truncated: the tar file ends within it"),
        (b'L', 1 << 30, b"", "tar: the header at offset 0 makes no sense: is this a tar file?"),
        (b'x', 5, b"9 a=b", "tar: the header at offset 0 makes no sense: is this a tar file?"),
        (b'x', 6, b"6 ab\n\n", "tar: the header at offset 0 makes no sense: is this a tar file?"),
    ] {
        let mut bad = Vec::new();
        add(&mut bad, "x", kind, size, data);
        assert_eq!(why(&bad, "x"), expected, "{kind}");
    }
    // A size of 2^64 - 1, in base 256.
    let mut bad = Vec::new();
    add(&mut bad, "y", b'0', 0, b"");
    bad[124] = 0x80;
    bad[125..136].fill(0xff);
    bad[128..136].fill(0xff);
    bad[125..128].fill(0);
    bad[148..156].fill(b' ');
    let sum: u32 = bad[..512].iter().map(|byte| u32::from(*byte)).sum();
    bad[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    assert_eq!(why(&bad, "x"), why(&[1; 512], "x"));
    assert!(why(&bad, "y").contains("truncated"));
}

#[test]
fn the_archive_is_searched_once_for_all_connections_to_an_export() {
    let disk = Arc::new(Disk::new(0));
    disk.data.lock().unwrap().clone_from(&archive());
    let layer = testing::layer(&disk, &["tar"], &[("tar-entry", "last"), ("tar", "/bin/tar")]);
    let searched = |export| {
        disk.take_calls();
        let backend = testing::try_open(&layer, export, false).unwrap();
        let searched = disk.take_calls().iter().any(|call| call.starts_with("pread"));
        assert_eq!(testing::read(&backend, 1, 0), b"z");
        searched
    };
    assert!(searched("one"));
    assert!(!searched("one"));
    assert!(searched("two"));
    // The archive was replaced by a longer one, where the entry is elsewhere.
    let mut longer = Vec::new();
    add(&mut longer, "first", b'0', 512, &[1; 512]);
    longer.extend(archive());
    *disk.data.lock().unwrap() = longer;
    assert!(searched("one"));
}

#[test]
fn parameters_are_checked() {
    assert_eq!(
        testing::config_error("tar", &[]),
        "you must supply the tar-entry=<FILENAME> parameter"
    );
    testing::config_error("tar", &[("tar-entry", "x"), ("tar-entry", "x")]);
    testing::config_error("tar", &[("tar-entry", "x"), ("tar-limit", "y")]);
}
