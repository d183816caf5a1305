use super::example::{example, find_partition, write_mbr};
use crate::testing::{self, Disk};
use std::ops::Range;
use std::sync::Arc;

fn sectors(start: u64, end: u64) -> Range<u64> {
    start * 512..end * 512
}

fn why(disk: &[u8], number: u32) -> String {
    find_partition(disk, number, false).unwrap_err().message().to_owned()
}

#[test]
fn primary_and_logical_partitions_are_found() {
    let disk = example(false);
    for (number, expected) in
        [(1, sectors(40, 48)), (5, sectors(6, 9)), (6, sectors(16, 20)), (7, sectors(26, 31))]
    {
        assert_eq!(find_partition(&disk, number, false).unwrap(), expected, "{number}");
    }
    for number in [2, 3, 4, 8, u32::MAX] {
        assert_eq!(why(&disk, number), format!("MBR partition {number} not found"));
    }
}

#[test]
fn partitions_of_a_gpt_are_found() {
    let disk = example(true);
    assert_eq!(find_partition(&disk, 1, false).unwrap(), sectors(40, 50));
    assert_eq!(find_partition(&disk, 2, false).unwrap(), sectors(50, 51));
    assert_eq!(why(&disk, 3), "GPT partition 3 not found");
    assert_eq!(why(&disk, 129), "GPT partition number out of range");
}

/// Each is one change to a good disk: where, and the bytes.
#[test]
fn hostile_tables_are_errors() {
    const HEADER: usize = 512;
    const ENTRY: usize = 1024;
    let max = [0xff; 8];
    for (at, bytes, expected) in [
        (HEADER + 72, &[3][..], "GPT partition entries begin at sector 3, not 2"),
        (HEADER + 80, &max[..4], "GPT partition table is too large for this disk"),
        (HEADER + 84, &[0, 0], "GPT partition entry size is < 128 bytes"),
        (HEADER + 84, &[0, 4], "GPT partition entry size (1024) does not divide the sector size"),
        (HEADER + 84, &[129], "GPT partition entry size (129) does not divide the sector size"),
        (ENTRY + 32, &max, "partition is outside the disk"),
        (ENTRY + 40, &max, "partition is outside the disk"),
        (ENTRY + 40, &[39], "partition is outside the disk"),
        (ENTRY + 40, &[38], "partition is outside the disk"),
        (ENTRY + 40, &[64], "partition is outside the disk"),
    ] {
        let mut disk = example(true);
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        // The end just before the start is an empty partition.
        match find_partition(&disk, 1, false) {
            Ok(range) => assert!(range.is_empty() && bytes == [39], "{at} {bytes:?}: {range:?}"),
            Err(error) => assert_eq!(error.message(), expected, "{at} {bytes:?}"),
        }
    }
    let mut disk = example(true);
    disk[512] = 0;
    assert!(why(&disk, 1).ends_with("try partition-sectorsize=4096"));
    assert_eq!(why(&[0; 1023], 1), "disk is too small to be a partitioned disk");
    assert_eq!(why(&[0; 1024], 1), "disk does not contain MBR or GPT partition table signature");
}

#[test]
fn chains_of_logical_partitions_end() {
    let with = |sector, entries: &[(u8, u32, u32)]| {
        let mut disk = example(false);
        write_mbr(&mut disk, sector, entries);
        disk
    };
    let circle = "invalid EBR chain: next EBR 7168 <= current EBR 12288";
    assert_eq!(why(&with(24, &[(0x83, 2, 5), (5, 10, 8)]), 8), circle);
    assert_eq!(why(&with(24, &[(0x83, 2, 5), (5, 20, 8)]), 8), circle.replace("7168", "12288"));
    let outside = "partition is outside the disk";
    assert_eq!(why(&with(24, &[(0x83, 2, 5), (5, u32::MAX, 8)]), 8), outside);
    assert_eq!(why(&with(24, &[(0x83, u32::MAX, u32::MAX)]), 7), outside);
    assert_eq!(why(&with(0, &[(0x83, 60, 5)]), 1), outside);
    let unsigned = "invalid EBR at 4096: it has no signature";
    assert_eq!(why(&with(0, &[(5, 8, 8)]), 5), unsigned);
    let none = "MBR logical partition selected, but there is no extended partition in the \
                partition table";
    assert_eq!(why(&with(0, &[(0x83, 8, 8)]), 5), none);
    assert_eq!(why(&with(24, &[(0, 2, 5)]), 7), "MBR partition 7 not found");
}

#[test]
fn the_sector_size_is_that_of_the_plugin_or_of_the_parameter() {
    let mut bytes = vec![0; 64 << 12];
    write_mbr(&mut bytes, 0, &[(0x83, 40, 8)]);
    let size = |minimum, params: &[(&str, &str)]| {
        let block_size = nbdkit_api::BlockSize { minimum, preferred: 4096, maximum: 1 << 20 };
        let disk = Disk { block_size, ..Disk::new(0) };
        disk.data.lock().unwrap().clone_from(&bytes);
        let params = [params, &[("partition", "1")]].concat();
        testing::backend(&Arc::new(disk), &["partition"], &params).size().unwrap()
    };
    assert_eq!(size(1, &[]), 8 << 9);
    assert_eq!(size(4096, &[]), 8 << 12);
    assert_eq!(size(4096, &[("partition-sectorsize", "512")]), 8 << 9);
    assert_eq!(size(512, &[("partition-sectorsize", "4k")]), 8 << 12);
    testing::config_error("partition", &[("partition", "1"), ("partition-sectorsize", "1024")]);
}
