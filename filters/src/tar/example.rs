//! For the fuzz targets and the tests: archives in memory.

#![forbid(unsafe_code)]

use std::ops::Range;

use nbdkit_api::Result;

use super::archive::Archive;

/// Finds an entry of an archive, of which so many bytes may be looked at.
///
/// # Errors
/// There is none.
pub(crate) fn find_entry(archive: &[u8], entry: &[u8], limit: u64) -> Result<Range<u64>> {
    let read = |buf: &mut [u8], offset: u64| {
        buf.copy_from_slice(&archive[offset as usize..][..buf.len()]);
        Ok(())
    };
    Archive { read: &read, size: archive.len() as u64, limit }.find(entry)
}

/// Adds an entry of this type, ustar, to an archive. `size` is in its header, `data` behind it.
pub(crate) fn add(archive: &mut Vec<u8>, name: &str, kind: u8, size: u64, data: &[u8]) {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[156] = kind;
    header[257..263].copy_from_slice(b"ustar\0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    archive.extend(header);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

/// A small archive with entries of each kind.
pub(crate) fn archive() -> Vec<u8> {
    let mut archive = Vec::new();
    add(&mut archive, "dir/", b'5', 0, &[]);
    add(&mut archive, "small", b'0', 3, b"abc");
    add(&mut archive, "link", b'1', 3, &[]);
    add(&mut archive, "", b'L', 10, b"long/name\0");
    add(&mut archive, "long", b'0', 600, &[7; 600]);
    let records = b"12 size=600\n12 path=pax\n";
    add(&mut archive, "", b'x', records.len() as u64, records);
    add(&mut archive, "short", b'0', 0, &[8; 600]);
    add(&mut archive, "sparse", b'S', 512, &[9; 512]);
    add(&mut archive, "last", b'0', 1, b"z");
    archive.resize(archive.len() + 1024, 0);
    archive
}
