//! The file type identifier and the two headers: 2.2.1, 2.2.2.

use nbdkit_api::Result;

use super::log::{self, Log};
use super::{MIB, bad, is_sound};
use crate::disk_image::little_endian;
use crate::disk_image::source::Source;

/// Where the headers are, of which only one may be whole.
pub(super) const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Bytes of a header.
pub(super) const HEADER: usize = 4096;

/// Reads the current header of an image of `image` bytes: its log, if that is not empty.
///
/// # Errors
/// EINVAL: there is none, or one that is not supported. Those of the source.
pub(super) fn read(source: &impl Source, image: u64) -> Result<Option<Log>> {
    let mut signature = [0; 8];
    if image < MIB {
        return Err(bad("it is too small"));
    }
    source.read(&mut signature, 0)?;
    if &signature != b"vhdxfile" {
        return Err(bad("there is no file type identifier"));
    }
    let mut current: Option<[u8; HEADER]> = None;
    let sequence = |header: &[u8; HEADER]| little_endian(header, 8, 8);
    for at in HEADERS {
        let mut header = [0; HEADER];
        source.read(&mut header, at)?;
        // Microsoft's Disk2vhd writes two that are the same.
        if is_sound(&header, b"head")
            && current.is_none_or(|current| sequence(&header) > sequence(&current))
        {
            current = Some(header);
        }
    }
    let header = current.ok_or_else(|| bad("neither header is whole"))?;
    match little_endian(&header, 66, 2) {
        1 => log(&header, image),
        version => Err(bad(format_args!("version {version} is not supported, only 1"))),
    }
}

fn log(header: &[u8; HEADER], image: u64) -> Result<Option<Log>> {
    let guid = std::array::from_fn(|at| header[48 + at]);
    if guid == [0; 16] {
        return Ok(None);
    }
    let version = little_endian(header, 64, 2);
    let (length, offset) = (little_endian(header, 68, 4), little_endian(header, 72, 8));
    if version != 0 {
        return Err(bad(format_args!("version {version} of the log is not supported, only 0")));
    }
    let is_aligned = offset.is_multiple_of(MIB) && length.is_multiple_of(MIB);
    let end = offset.checked_add(length);
    if !is_aligned || offset < MIB || length == 0 || end.is_none_or(|end| end > image) {
        return Err(bad(format_args!("a log of {length} bytes cannot be at {offset}")));
    }
    if length > log::MOST {
        return Err(bad(format_args!(
            "its log of {length} bytes, which is not empty, is larger than {}: have it replayed \
             by qemu-img check -r all",
            log::MOST
        )));
    }
    Ok(Some(Log { guid, offset, length }))
}
