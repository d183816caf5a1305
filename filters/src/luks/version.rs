//! Finds the header of a disk, of whichever version of LUKS.

use nbdkit_api::{Error, Result};

use super::header::{Header, MAGIC, SIZE};
use super::{luks1, luks2};

/// Finds and decodes the header of a disk of `size` bytes. `read` fills a buffer from an offset of
/// the disk.
///
/// # Errors
/// EINVAL: there is none, it cannot be right, or it needs what there is not. Those of `read`.
pub(super) fn read_header(
    read: impl Fn(&mut [u8], u64) -> Result<()>,
    size: u64,
) -> Result<Header> {
    let mut bytes = [0; SIZE];
    if size < bytes.len() as u64 {
        return Err(Error::msg("disk is too small to be LUKS-encrypted"));
    }
    read(&mut bytes, 0)?;
    let version = (bytes[..6] == MAGIC).then(|| u16::from_be_bytes([bytes[6], bytes[7]]));
    match version {
        Some(1) => luks1::decode(&bytes, size),
        // The second copy may be whole.
        Some(2) | None => luks2::read(read, size, version.is_some()),
        Some(version) => luks2::read(read, size, false).map_err(|_| {
            Error::msg(format!(
                "this disk contains a LUKS version {version} header, but this filter only \
                 supports LUKSv1 and LUKSv2"
            ))
        }),
    }
}
