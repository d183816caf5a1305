//! What is in the page cache, and so can be read without waiting for a device.

#![expect(unsafe_code, reason = "a system call that nix does not have")]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

use crate::error::Errno;

/// Reads what is in the page cache at `offset`, up to the length of `buf`, without ever waiting for
/// the device. preadv2(2), RWF_NOWAIT.
///
/// # Errors
/// EAGAIN if nothing is in the cache, EOPNOTSUPP where the file system cannot tell.
pub fn read_now(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> nix::Result<usize> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    let vector = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: the one vector describes `buf`, which is borrowed for writing during the call.
    let read = unsafe { libc::preadv2(fd.as_raw_fd(), &vector, 1, offset, libc::RWF_NOWAIT) };
    Errno::result(read).map(|read| read as usize)
}

/// Whether the byte at `offset` is in the page cache. False where the file system cannot tell.
pub fn is_in_memory(fd: BorrowedFd<'_>, offset: u64) -> bool {
    read_now(fd, &mut [0], offset) == Ok(1)
}
