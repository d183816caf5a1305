//! What is done for a layer whose answer is `Emulate`, by its own `pwrite` and `pread`.
//! nbdkit-plugin(3), `.can_zero`, `.can_cache`.

use crate::error::{Errno, Error, Result};
use crate::scratch::Scratch;
use crate::types::{Flags, Fua};

/// Largest piece in which zeroes are written, bytes.
const MAX_PIECE: u64 = 64 << 20;

/// Writes zeroes to a range of `count` bytes. `fua` is what the layer does about FUA: if that is
/// not native, the flag on the last piece stands for all of them.
///
/// # Errors
/// Those of `pwrite`; EOPNOTSUPP with FAST_ZERO, since writing is not faster than writing.
pub(crate) fn zero(
    count: u64,
    offset: u64,
    flags: Flags,
    fua: Fua,
    pwrite: impl Fn(&[u8], u64, Flags) -> Result<()>,
) -> Result<()> {
    if flags.contains(Flags::FAST_ZERO) {
        return Err(Error::silent(Errno::EOPNOTSUPP));
    }
    let last_flags = flags & Flags::FUA;
    let flags = if fua == Fua::Native { last_flags } else { Flags::empty() };
    // Untouched zero pages: the kernel backs them with one page until they are written.
    let zeroes = vec![0; count.min(MAX_PIECE) as usize];
    let mut done = 0;
    while done < count {
        let piece = (count - done).min(MAX_PIECE);
        let last = done + piece == count;
        let flags = if last { last_flags } else { flags };
        pwrite(&zeroes[..piece as usize], offset + done, flags)?;
        done += piece;
    }
    Ok(())
}

/// Prefetches a range of `count` bytes by reading it.
///
/// # Errors
/// Those of `pread`.
pub(super) fn cache(
    count: u64,
    offset: u64,
    pread: impl Fn(&mut [u8], u64) -> Result<()>,
) -> Result<()> {
    let mut scratch = Scratch::new(count);
    let mut done = 0;
    while done < count {
        let piece = (count - done).min(scratch.buf.len() as u64);
        pread(&mut scratch.buf[..piece as usize], offset + done)?;
        done += piece;
    }
    Ok(())
}
