//! What is found in images: partitions, files in tar archives, blocks of virtual disks.

use nbdkit_filters::fuzz;

use crate::input::Input;

/// A disk with a partition table. The first byte is the partition, the second the sector size.
///
/// # Panics
/// If the parser does, or if a partition is not within the disk.
pub fn partition_table(data: &[u8]) {
    let mut input = Input(data);
    let (number, large) = (input.u8(), input.u8() & 1 != 0);
    let disk = input.0;
    if let Some(found) = fuzz::find_partition(disk, u32::from(number).max(1), large) {
        assert!(found.start <= found.end && found.end <= disk.len() as u64, "{found:?}");
    }
}

/// A tar archive. The first byte chooses the entry that is looked for, the second the limit.
///
/// # Panics
/// If the parser does, or if an entry is not within the archive.
pub fn tar_archive(data: &[u8]) {
    let mut input = Input(data);
    let entry = match input.u8() % 4 {
        0 => &b"last"[..],
        1 => b"pax",
        2 => b"long/name",
        _ => b"sp\\141rse",
    };
    let limit = u64::from(input.u8()) << 10;
    let archive = input.0;
    if let Some(found) = fuzz::find_entry(archive, entry, limit) {
        assert!(found.start <= found.end && found.end <= archive.len() as u64, "{found:?}");
    }
}

/// Names of files in a directory, between zero bytes, for a FAT file system.
///
/// # Panics
/// If two have one short name, or the entries of one do not say it.
pub fn fat_names(data: &[u8]) {
    nbdkit_plugins::fuzz::fat_names(data);
}

/// A VHD image.
///
/// # Panics
/// If the parser does, or if a block is not within the image.
pub fn vhd(data: &[u8]) {
    nbdkit_plugins::fuzz::vhd(data);
}

/// A VHDX image, as the bytes that are not zero.
///
/// # Panics
/// If the parser does, or if a block is not within the image.
pub fn vhdx(data: &[u8]) {
    nbdkit_plugins::fuzz::vhdx(data);
}

/// A VMDK image; or a descriptor and, after a zero, the bytes of the files that it names.
///
/// # Panics
/// If the parser does, or if a grain is not within the image.
pub fn vmdk(data: &[u8]) {
    nbdkit_plugins::fuzz::vmdk(data);
}
