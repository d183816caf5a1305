//! System calls that nix does not offer in the form the file plugin needs, as safe functions.

#![expect(unsafe_code, reason = "raw system calls")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nbdkit_api::Errno;

/// Starts writing out the range's dirty pages and, with `wait`, waits until that is done.
/// sync_file_range(2); does not cover the file's metadata.
///
/// # Errors
/// EIO, ENOSPC, ESPIPE.
pub(super) fn sync_range(
    fd: BorrowedFd<'_>,
    offset: u64,
    count: u64,
    wait: bool,
) -> nix::Result<()> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    let count = i64::try_from(count).map_err(|_| Errno::EINVAL)?;
    let mut flags = libc::SYNC_FILE_RANGE_WRITE;
    if wait {
        flags |= libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    }
    // SAFETY: takes numbers only and touches no memory of ours.
    let result = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, count, flags) };
    Errno::result(result).map(drop)
}

/// A close-on-exec duplicate, above the standard descriptors, of the one that the user named
/// by number. The original stays open, since it may be named twice.
///
/// # Errors
/// EBADF if there is no such descriptor, EMFILE.
pub(crate) fn duplicate(number: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: duplicating takes nothing from the owner of `number`, and fails with EBADF if it is
    // not open.
    let fd = Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just made this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
