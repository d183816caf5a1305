//! Compressed grains: "Stream-Optimized Compressed Sparse Extents". A marker says how many bytes
//! of zlib there are.

use std::io::Read;

use nbdkit_api::{BlockCache, Errno, Error, Result};

use crate::disk_image::little_endian;
use crate::disk_image::source::{Source, Tables};

/// The largest grain, bytes. VMware's have 64 KiB.
pub(super) const MOST: u64 = 1 << 20;
/// Grains that a client keeps.
const KEPT: usize = 8;
/// Bytes of the marker: where the grain is on the disk, which the table has said, and its size.
const MARKER: u64 = 12;
/// Bytes of memory that all of this takes: beside each grain that is kept, one is being
/// decompressed, from at most two.
pub(super) const MEMORY: u64 = KEPT as u64 * MOST * 4;

/// Room for the grains that are kept.
pub(super) fn cache() -> BlockCache {
    BlockCache::new(KEPT)
}

/// Decompresses the grain whose marker is at `offset` of the file. It has `grain` bytes, or if the
/// disk ends in it, at least `least`: zeroes follow.
///
/// # Errors
/// EIO: it has not, or is not in the file. Those of the source.
pub(super) fn decompress(
    image: &Tables<impl Source>,
    offset: u64,
    grain: u64,
    least: u64,
) -> Result<Vec<u8>> {
    let why = |why: &dyn std::fmt::Display| {
        Error::new(Errno::EIO, format!("the compressed grain at {offset} {why}"))
    };
    let begin = offset.checked_add(MARKER).filter(|begin| *begin <= image.size());
    let begin = begin.ok_or_else(|| why(&"lies outside of the image"))?;
    let mut marker = [0; MARKER as usize];
    image.source().read(&mut marker, offset)?;
    let length = little_endian(&marker, 8, 4);
    // What cannot be compressed becomes longer, but not by much.
    if length == 0 || length > grain * 2 {
        return Err(why(&format_args!("cannot have {length} bytes")));
    }
    if begin + length > image.size() {
        return Err(why(&"lies outside of the image"));
    }
    let mut compressed = vec![0; length as usize];
    image.source().read(&mut compressed, begin)?;
    let mut bytes = Vec::with_capacity(grain as usize + 1);
    let mut decoder = flate2::read::ZlibDecoder::new(&compressed[..]).take(grain + 1);
    decoder.read_to_end(&mut bytes).map_err(|error| why(&format_args!("is damaged: {error}")))?;
    if bytes.len() as u64 > grain || (bytes.len() as u64) < least {
        return Err(why(&format_args!("has not the {grain} bytes of a grain")));
    }
    bytes.resize(grain as usize, 0);
    Ok(bytes)
}
