//! A small image made by hand, for tests and fuzzing.

use super::header::{HEADER, HEADERS};
use super::layout::{
    BAT, DISK_ID, DISK_SIZE, FILE_PARAMETERS, LOGICAL_SECTOR, METADATA, PHYSICAL_SECTOR, REGIONS,
    TABLE,
};
use super::replayed::SECTOR;
use super::sum;

const MIB: usize = super::MIB as usize;
/// Where things are in it.
pub(crate) const LOG: usize = MIB;
pub(crate) const TABLE_OF_BLOCKS: usize = 2 * MIB;
pub(crate) const ITEMS: usize = 3 * MIB;
pub(crate) const BLOCK: usize = 4 * MIB;
/// Bytes of it.
pub(crate) const SIZE: usize = 5 * MIB;
/// Bytes of its disk.
pub(crate) const DISK: usize = 3 * MIB - 512;
/// Whose entries are in the log.
pub(crate) const GUID: [u8; 16] = *b"whose log it is.";

pub(crate) fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes the sum of the structure of `length` bytes at `at`.
pub(crate) fn seal(image: &mut [u8], at: usize, length: usize) {
    let structure = &mut image[at..at + length];
    let sum = sum(structure);
    put(structure, 4, &sum.to_le_bytes());
}

/// An image of three blocks, the last of which is not whole: the first is not there, the second is
/// data that begins with "data", the third is zeroes.
pub(crate) fn image() -> Vec<u8> {
    let mut image = vec![0; SIZE];
    put(&mut image, 0, b"vhdxfile");
    for (at, sequence) in HEADERS.into_iter().zip([5_u64, 4]) {
        let at = at as usize;
        put(&mut image, at, b"head");
        put(&mut image, at + 8, &sequence.to_le_bytes());
        put(&mut image, at + 66, &[1, 0]);
        put(&mut image, at + 68, &(MIB as u32).to_le_bytes());
        put(&mut image, at + 72, &(LOG as u64).to_le_bytes());
        seal(&mut image, at, HEADER);
    }
    for at in REGIONS {
        let at = at as usize;
        put(&mut image, at, b"regi");
        put(&mut image, at + 8, &[2]);
        for (at, guid, offset) in [(at + 16, BAT, TABLE_OF_BLOCKS), (at + 48, METADATA, ITEMS)] {
            put(&mut image, at, &guid);
            put(&mut image, at + 16, &(offset as u64).to_le_bytes());
            put(&mut image, at + 24, &(MIB as u32).to_le_bytes());
            put(&mut image, at + 28, &[1]);
        }
        seal(&mut image, at, TABLE);
    }
    put(&mut image, TABLE_OF_BLOCKS + 8, &(BLOCK as u64 | 6).to_le_bytes());
    put(&mut image, TABLE_OF_BLOCKS + 16, &[2]);
    put(&mut image, BLOCK, b"data");
    put(&mut image, ITEMS, b"metadata");
    let items: [([u8; 16], &[u8]); 5] = [
        (FILE_PARAMETERS, &(MIB as u64).to_le_bytes()),
        (DISK_SIZE, &(DISK as u64).to_le_bytes()),
        (LOGICAL_SECTOR, &512_u32.to_le_bytes()),
        (PHYSICAL_SECTOR, &4096_u32.to_le_bytes()),
        (DISK_ID, b"a disk of a test"),
    ];
    put(&mut image, ITEMS + 10, &[items.len() as u8]);
    for (number, (guid, value)) in items.into_iter().enumerate() {
        let (at, offset) = (ITEMS + 32 + number * 32, TABLE + number * 16);
        put(&mut image, at, &guid);
        put(&mut image, at + 16, &(offset as u32).to_le_bytes());
        put(&mut image, at + 20, &(value.len() as u32).to_le_bytes());
        // Of the disk, and required.
        put(&mut image, at + 24, &[6]);
        put(&mut image, ITEMS + offset, value);
    }
    image
}

/// A change that an entry of the log makes.
#[derive(Clone, Copy)]
pub(crate) enum Change<'a> {
    /// A sector at this offset, which begins with these bytes and ends with "end.".
    Sector(u64, &'a [u8]),
    /// Zeroes: offset and length.
    Zeroes(u64, u64),
}

/// An entry of the log of an image that is to have `size` bytes. `tail` is where the oldest one is
/// in the log.
pub(crate) fn log_entry(sequence: u64, tail: usize, size: u64, changes: &[Change<'_>]) -> Vec<u8> {
    let mut entry = vec![0; (64 + changes.len() * 32).next_multiple_of(SECTOR)];
    for (number, change) in changes.iter().enumerate() {
        let at = 64 + number * 32;
        let (kind, at_in_image) = match *change {
            Change::Sector(at, _) => (b"desc", at),
            Change::Zeroes(at, _) => (b"zero", at),
        };
        put(&mut entry, at, kind);
        put(&mut entry, at + 16, &at_in_image.to_le_bytes());
        put(&mut entry, at + 24, &sequence.to_le_bytes());
        match *change {
            Change::Zeroes(_, length) => put(&mut entry, at + 8, &length.to_le_bytes()),
            Change::Sector(_, begin) => {
                let mut sector = vec![0; SECTOR];
                put(&mut sector, 0, begin);
                put(&mut sector, SECTOR - 4, b"end.");
                put(&mut entry, at + 4, &sector[SECTOR - 4..]);
                put(&mut entry, at + 8, &sector[..8]);
                put(&mut sector, 0, b"data");
                put(&mut sector, 4, &((sequence >> 32) as u32).to_le_bytes());
                put(&mut sector, SECTOR - 4, &(sequence as u32).to_le_bytes());
                entry.extend(sector);
            }
        }
    }
    put(&mut entry, 0, b"loge");
    let length = entry.len() as u32;
    put(&mut entry, 8, &length.to_le_bytes());
    put(&mut entry, 12, &(tail as u32).to_le_bytes());
    put(&mut entry, 16, &sequence.to_le_bytes());
    put(&mut entry, 24, &(changes.len() as u32).to_le_bytes());
    put(&mut entry, 32, &GUID);
    put(&mut entry, 48, &(SIZE as u64).to_le_bytes());
    put(&mut entry, 56, &size.to_le_bytes());
    seal(&mut entry, 0, length as usize);
    entry
}

/// Has the log of an image count: the header names its entries.
pub(crate) fn use_log(image: &mut [u8]) {
    let at = HEADERS[0] as usize;
    put(image, at + 48, &GUID);
    seal(image, at, HEADER);
}

/// The image when its writer has crashed: what the table says, other bytes of the second block, and
/// that the third block is one at the end, is in the log only.
pub(crate) fn crashed() -> Vec<u8> {
    let mut image = image();
    let block = BLOCK as u64;
    let mut table = [0; 24];
    put(&mut table, 8, &(block | 6).to_le_bytes());
    put(&mut table, 16, &((block + super::MIB) | 6).to_le_bytes());
    // One more block than the image had.
    let size = SIZE as u64 + super::MIB;
    image.resize(SIZE + MIB, 0);
    let first = log_entry(7, 0, size, &[Change::Zeroes(block, 2 * SECTOR as u64)]);
    let second = log_entry(
        8,
        0,
        size,
        &[
            Change::Sector(TABLE_OF_BLOCKS as u64, &table),
            Change::Sector(block + SECTOR as u64, b"from the log"),
        ],
    );
    put(&mut image, TABLE_OF_BLOCKS, &[0; 24]);
    put(&mut image, LOG, &first);
    put(&mut image, LOG + first.len(), &second);
    use_log(&mut image);
    image
}
