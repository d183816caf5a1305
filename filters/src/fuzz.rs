//! What the fuzz targets need of the filters: rules of the ip filter, lists of extents, maps of
//! ddrescue, partition tables, tar archives, hostile images, and a cow filter whose shared memory
//! they may scribble on as a hostile worker could.

#![forbid(unsafe_code)]

use std::ops::Range;

pub use crate::compressed::fuzz::{gzip_index, gzip_index_case, image};
pub use crate::cow::fuzz::{Place, Shared};
pub use crate::ip::fuzz::matches;
pub use crate::luks::fuzz::{PASSPHRASE, luks2, text as luks2_text};

/// The extents of a list, as offset and length.
pub fn extent_list(text: &str) -> Option<Vec<(u64, u64)>> {
    let extents = crate::extentlist::parse_list(text).ok()?;
    Some(extents.iter().map(|extent| (extent.offset, extent.length)).collect())
}

/// The ranges that a map of ddrescue has as rescued, as first byte and end.
pub fn rescued(text: &str) -> Option<Vec<(u64, u64)>> {
    let ranges = crate::ddrescue::parse_map(text).ok()?;
    Some(ranges.iter().map(|range| (range.start, range.end)).collect())
}

/// The bytes of partition `number` of a disk, with sectors of 4096 bytes or of 512.
pub fn find_partition(disk: &[u8], number: u32, large: bool) -> Option<Range<u64>> {
    crate::partition::example::find_partition(disk, number, large).ok()
}

/// A small disk with four partitions, or with a GPT of two.
pub fn partitioned(gpt: bool) -> Vec<u8> {
    crate::partition::example::example(gpt)
}

/// The bytes of an entry of a tar archive, of which `limit` bytes are looked at.
pub fn find_entry(archive: &[u8], entry: &[u8], limit: u64) -> Option<Range<u64>> {
    crate::tar::example::find_entry(archive, entry, limit).ok()
}

/// A small tar archive.
pub fn archive() -> Vec<u8> {
    crate::tar::example::archive()
}
