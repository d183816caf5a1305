//! ioctls of block devices (linux/fs.h). All are given a descriptor that fstat(2) called a block
//! device.

#![expect(unsafe_code, reason = "ioctl")]

use std::os::fd::{AsRawFd, BorrowedFd};

use nbdkit_api::Errno;

mod raw {
    use nix::request_code_none;

    nix::ioctl_read_bad!(blksszget, request_code_none!(0x12, 104), libc::c_int);
    nix::ioctl_write_ptr_bad!(blkdiscard, request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_read_bad!(blkiomin, request_code_none!(0x12, 120), libc::c_uint);
    nix::ioctl_read_bad!(blkioopt, request_code_none!(0x12, 121), libc::c_uint);
    nix::ioctl_read_bad!(blkrotational, request_code_none!(0x12, 126), libc::c_ushort);
    nix::ioctl_write_ptr_bad!(blkzeroout, request_code_none!(0x12, 127), [u64; 2]);
}

/// Logical sector size in bytes. BLKSSZGET.
///
/// # Errors
/// The driver's.
pub(super) fn sector_size(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    let mut size = 0;
    // SAFETY: BLKSSZGET writes one int, which `size` is.
    unsafe { raw::blksszget(fd.as_raw_fd(), &mut size) }?;
    u32::try_from(size).map_err(|_| Errno::EINVAL)
}

/// Minimum and optimal size of a request in bytes, the latter 0 if unknown. BLKIOMIN, BLKIOOPT.
///
/// # Errors
/// The driver's.
pub(super) fn request_sizes(fd: BorrowedFd<'_>) -> nix::Result<(u32, u32)> {
    let (mut minimum, mut optimal) = (0, 0);
    // SAFETY: each writes one unsigned int, which both variables are.
    unsafe {
        raw::blkiomin(fd.as_raw_fd(), &mut minimum)?;
        raw::blkioopt(fd.as_raw_fd(), &mut optimal)?;
    }
    Ok((minimum, optimal))
}

/// Whether the device rotates. BLKROTATIONAL.
///
/// # Errors
/// The driver's.
pub(super) fn is_rotational(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    let mut rotational = 0;
    // SAFETY: BLKROTATIONAL writes one unsigned short, which `rotational` is.
    unsafe { raw::blkrotational(fd.as_raw_fd(), &mut rotational) }?;
    Ok(rotational != 0)
}

/// Discards `count` bytes from `offset`, both multiples of the sector size; they may read as
/// anything afterwards. BLKDISCARD.
///
/// # Errors
/// EOPNOTSUPP; the driver's.
pub(super) fn discard(fd: BorrowedFd<'_>, offset: u64, count: u64) -> nix::Result<()> {
    // SAFETY: BLKDISCARD reads two 64-bit numbers, offset and length, which the array holds.
    unsafe { raw::blkdiscard(fd.as_raw_fd(), &[offset, count]) }.map(drop)
}

/// Zeroes `count` bytes from `offset`, both multiples of the sector size. BLKZEROOUT.
///
/// # Errors
/// EOPNOTSUPP; the driver's.
pub(super) fn zero_out(fd: BorrowedFd<'_>, offset: u64, count: u64) -> nix::Result<()> {
    // SAFETY: BLKZEROOUT reads two 64-bit numbers, offset and length, which the array holds.
    unsafe { raw::blkzeroout(fd.as_raw_fd(), &[offset, count]) }.map(drop)
}
