//! The log: 2.3. Whoever writes an image writes changes of its tables here first, so that an image
//! whose writer has crashed is whole once the log has been replayed. The image is only read, so it
//! is replayed into memory.

use std::collections::BTreeMap;

use nbdkit_api::Result;

use super::replayed::{Replayed, SECTOR};
use super::{bad, is_sound};
use crate::disk_image::little_endian;
use crate::disk_image::source::Source;

/// The largest log that is replayed, bytes. Hyper-V and qemu make logs of 1 MiB.
pub(super) const MOST: u64 = 16 << 20;
/// Bytes of the header of an entry, and of a descriptor.
const HEADER: usize = 64;
const DESCRIPTOR: usize = 32;

/// Where the log is in the image, and whose entries count.
pub(super) struct Log {
    pub(super) guid: [u8; 16],
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// An entry that is whole.
#[derive(Clone, Copy)]
struct Entry {
    /// In the log, bytes. The end may be at the log's beginning.
    offset: usize,
    length: usize,
    /// Where the first entry is that was not known to be in the image.
    tail: usize,
    sequence: u64,
    descriptors: usize,
    /// Least bytes of the image when the entry was written.
    flushed: u64,
    /// Bytes of the image once the entry has been replayed.
    last: u64,
}

/// Replays `log` of an image of `size` bytes.
///
/// # Errors
/// EINVAL: it has no entries that make sense. Those of the source.
pub(super) fn replay<S: Source>(image: S, size: u64, log: &Log) -> Result<Replayed<S>> {
    let mut bytes = vec![0; log.length as usize];
    image.read(&mut bytes, log.offset)?;
    let active = active(&entries(&bytes, &log.guid)?, bytes.len());
    let Some(newest) = active.last() else {
        return Err(bad("the log has no whole entries"));
    };
    if newest.flushed > size {
        let flushed = newest.flushed;
        return Err(bad(format_args!(
            "it is cut off: it had {flushed} bytes when its log was written"
        )));
    }
    let mut replayed = Replayed::nothing(image, size, size.max(newest.last));
    for entry in &active {
        let entry_bytes = entry_bytes(&bytes, entry.offset, entry.length);
        for (descriptor, data) in descriptors(&entry_bytes, entry.descriptors) {
            let at = little_endian(descriptor, 16, 8);
            match data {
                Some(sector) => replayed.put(at, restored(descriptor, sector)),
                None => replayed.put_zeroes(at, little_endian(descriptor, 8, 8)),
            }
        }
    }
    Ok(replayed)
}

/// The bytes of an entry, in one piece.
fn entry_bytes(log: &[u8], offset: usize, length: usize) -> Vec<u8> {
    let (first, second) = (&log[offset..], &log[..offset]);
    let before = length.min(first.len());
    [&first[..before], &second[..length - before]].concat()
}

/// The bytes of the image that a data sector stands for. The descriptor has those that the sector
/// has its own fields in place of: 2.3.1.3, 2.3.1.4.
fn restored(descriptor: &[u8], sector: &[u8]) -> Box<[u8]> {
    let mut bytes = sector.to_vec();
    bytes[..8].copy_from_slice(&descriptor[8..16]);
    bytes[SECTOR - 4..].copy_from_slice(&descriptor[4..8]);
    bytes.into()
}

/// All whole entries of this GUID, by their offsets.
fn entries(log: &[u8], guid: &[u8; 16]) -> Result<BTreeMap<usize, Entry>> {
    let mut entries = BTreeMap::new();
    // Entries do not overlap, but what is left of older ones may. A log that has more to sum up
    // than this was not written by anybody.
    let mut budget = log.len() * 4;
    for offset in (0..log.len()).step_by(SECTOR) {
        let header = &log[offset..][..SECTOR];
        let number = |at, length| little_endian(header, at, length);
        let [length, tail, descriptors] = [8, 12, 24].map(|at| number(at, 4) as usize);
        let sequence = number(16, 8);
        let makes_sense = header.starts_with(b"loge")
            && header[32..48] == *guid
            && (SECTOR..=log.len()).contains(&length)
            && length.is_multiple_of(SECTOR)
            && tail.is_multiple_of(SECTOR)
            && sequence != 0;
        if !makes_sense {
            continue;
        }
        budget = budget
            .checked_sub(length)
            .ok_or_else(|| bad("entries of the log are one over the other"))?;
        let (flushed, last) = (number(48, 8), number(56, 8));
        let entry = Entry { offset, length, tail, sequence, descriptors, flushed, last };
        if is_whole(&entry_bytes(log, offset, length), &entry) {
            entries.insert(offset, entry);
        }
    }
    Ok(entries)
}

/// Whether the sum is right, and all descriptors and data sectors belong to the entry.
fn is_whole(bytes: &[u8], entry: &Entry) -> bool {
    let room = (bytes.len() - HEADER) / DESCRIPTOR;
    if !is_sound(bytes, b"loge") || entry.descriptors > room {
        return false;
    }
    let mut sectors = 0;
    for (descriptor, data) in descriptors(bytes, entry.descriptors) {
        let number = |at| little_endian(descriptor, at, 8);
        let at = number(16);
        let is_good = match data {
            _ if number(24) != entry.sequence || !at.is_multiple_of(SECTOR as u64) => false,
            Some(sector) => {
                sectors += 1;
                let high = little_endian(sector, 4, 4) << 32;
                let of = high | little_endian(sector, SECTOR - 4, 4);
                descriptor.starts_with(b"desc")
                    && sector.starts_with(b"data")
                    && of == entry.sequence
                    && at.checked_add(SECTOR as u64).is_some()
            }
            None => {
                let length = number(8);
                descriptor.starts_with(b"zero")
                    && length.is_multiple_of(SECTOR as u64)
                    && at.checked_add(length).is_some()
            }
        };
        if !is_good {
            return false;
        }
    }
    first_data(entry.descriptors) + sectors * SECTOR == bytes.len()
}

/// Where the data sectors begin in an entry with so many descriptors.
fn first_data(descriptors: usize) -> usize {
    (HEADER + descriptors * DESCRIPTOR).next_multiple_of(SECTOR)
}

/// The descriptors of an entry, each with its data sector; `None` if it is one of zeroes, or if the
/// entry has too few sectors.
fn descriptors(bytes: &[u8], count: usize) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    let mut data = bytes.get(first_data(count)..).unwrap_or_default().chunks_exact(SECTOR);
    let all = bytes[HEADER..].chunks_exact(DESCRIPTOR).take(count);
    all.map(move |descriptor| {
        let has_data = descriptor.starts_with(b"desc");
        (descriptor, has_data.then(|| data.next()).flatten())
    })
}

/// The active sequence, 2.3.2: the entries from the tail of the newest one on which all are there.
fn active(entries: &BTreeMap<usize, Entry>, log: usize) -> Vec<Entry> {
    let mut newest: Vec<_> = entries.values().collect();
    newest.sort_by_key(|entry| std::cmp::Reverse(entry.sequence));
    newest.iter().find_map(|newest| sequence_to(newest, entries, log)).unwrap_or_default()
}

/// The entries of a log of `log` bytes from the tail of `newest` to itself, if each follows the one
/// before.
fn sequence_to(newest: &Entry, entries: &BTreeMap<usize, Entry>, log: usize) -> Option<Vec<Entry>> {
    let mut found: Vec<Entry> = Vec::new();
    let mut next = *entries.get(&newest.tail)?;
    let mut length = 0;
    loop {
        length += next.length;
        if length > log {
            return None;
        }
        found.push(next);
        if next.offset == newest.offset {
            return Some(found);
        }
        let after = *entries.get(&((next.offset + next.length) % log))?;
        if next.sequence.checked_add(1) != Some(after.sequence) {
            return None;
        }
        next = after;
    }
}
