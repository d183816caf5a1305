//! Whether the layer below has certain bytes already: for filters that let a write pass only if it
//! changes nothing. Memory is a chunk at most, however long the request.

use nbdkit_api::{ExtentKind, Extents, Flags, Next, Result};

const CHUNK: usize = 128 << 10;

/// Whether the layer below has these bytes at `offset`.
///
/// # Errors
/// Those of reading.
pub(crate) fn has_bytes(next: &Next, bytes: &[u8], offset: u64) -> Result<bool> {
    let mut chunk = vec![0; bytes.len().min(CHUNK)];
    for (expected, at) in bytes.chunks(CHUNK).zip((offset..).step_by(CHUNK)) {
        let found = &mut chunk[..expected.len()];
        next.pread(found, at)?;
        if found != expected {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the layer below has `count` zeroes at `offset`. What it lists as zeroes is not read.
///
/// # Errors
/// Those of reading, and of asking for extents.
pub(crate) fn has_zeroes(next: &Next, count: u64, offset: u64) -> Result<bool> {
    let end = offset + count;
    let mut at = offset;
    while at < end {
        let mut extents = Extents::new(at, end);
        next.extents(end - at, at, Flags::REQ_ONE, &mut extents)?;
        let Some(extent) = extents.as_slice().first() else { break };
        let extent_end = extent.end().min(end);
        if !extent.kind.contains(ExtentKind::ZERO) {
            let mut chunk = vec![0; (extent_end - at).min(CHUNK as u64) as usize];
            while at < extent_end {
                let length = (extent_end - at).min(CHUNK as u64) as usize;
                next.pread(&mut chunk[..length], at)?;
                if chunk[..length].iter().any(|byte| *byte != 0) {
                    return Ok(false);
                }
                at += length as u64;
            }
        }
        at = extent_end;
    }
    Ok(true)
}
