//! For the fuzz targets and the tests: partition tables of disks in memory.

#![forbid(unsafe_code)]

use std::ops::Range;

use nbdkit_api::Result;

use super::table::{Sector, Table};

/// Finds partition `number` of a disk with these bytes, with sectors of 4096 bytes or of 512.
///
/// # Errors
/// There is none.
pub(crate) fn find_partition(disk: &[u8], number: u32, large: bool) -> Result<Range<u64>> {
    let sector = if large { Sector::Bytes4096 } else { Sector::Bytes512 };
    let read = |buf: &mut [u8], offset: u64| {
        buf.copy_from_slice(&disk[offset as usize..][..buf.len()]);
        Ok(())
    };
    Table { read: &read, size: disk.len() as u64, sector }.find(number)
}

/// Writes an MBR, or an EBR, at a sector: entries of type, start and count.
pub(crate) fn write_mbr(disk: &mut [u8], sector: usize, entries: &[(u8, u32, u32)]) {
    let record = &mut disk[sector * 512..][..512];
    record[446..].fill(0);
    for (entry, (kind, start, count)) in record[446..].chunks_exact_mut(16).zip(entries) {
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&count.to_le_bytes());
    }
    record[510..].copy_from_slice(&[0x55, 0xaa]);
}

/// Makes the disk one of a single partition, from sector 8 on, 128 KiB long.
#[cfg(test)]
pub(crate) fn write_table(disk: &mut [u8]) {
    disk[512..600].fill(0);
    write_mbr(disk, 0, &[(0x83, 8, 256)]);
}

/// A small disk with a primary partition and three logical ones, 5 to 7, or with a GPT of two
/// partitions.
pub(crate) fn example(gpt: bool) -> Vec<u8> {
    let mut disk = vec![0; 64 * 512];
    if !gpt {
        write_mbr(&mut disk, 0, &[(0x83, 40, 8), (0x05, 4, 36)]);
        write_mbr(&mut disk, 4, &[(0x83, 2, 3), (0x05, 10, 8)]);
        write_mbr(&mut disk, 14, &[(0x83, 2, 4), (0x05, 20, 8)]);
        write_mbr(&mut disk, 24, &[(0x83, 2, 5)]);
        return disk;
    }
    write_mbr(&mut disk, 0, &[(0xee, 1, 63)]);
    disk[512..520].copy_from_slice(b"EFI PART");
    let mut put = |at: usize, number: u64, bytes: usize| {
        disk[at..at + bytes].copy_from_slice(&number.to_le_bytes()[..bytes]);
    };
    put(512 + 72, 2, 8);
    put(512 + 80, 128, 4);
    put(512 + 84, 128, 4);
    for (at, start, last) in [(1024, 40, 49), (1024 + 128, 50, 50)] {
        put(at, 0x0fc6_3daf, 8);
        put(at + 32, start, 8);
        put(at + 40, last, 8);
    }
    disk
}
