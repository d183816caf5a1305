//! Need of every stack: the data of files and block devices that are open. Opening them is a need
//! of its own, see [`files`](super::files).

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::Test::Is;
use nbdkit_sandbox::seccomp::{Line, any, with};

#[rustfmt::skip]
pub(super) const DISK: &[Line] = &[
    // Data.
    any(c::SYS_pread64),          // a block of a file or memfd is read
    any(c::SYS_pwrite64),         // a block of a file or memfd is written
    any(c::SYS_preadv2),          // files, RWF_NOWAIT: only what is cached
    any(c::SYS_pwritev2),         // file plugin, RWF_DSYNC: FUA
    any(c::SYS_lseek),            // file plugin, SEEK_HOLE and SEEK_DATA: extents, size
    any(c::SYS_fallocate),        // trim and zero
    any(c::SYS_ftruncate),        // SharedFile: tables in shared memory grow
    any(c::SYS_fdatasync),        // flush
    any(c::SYS_fsync),            // flush where metadata count: block devices, log files
    any(c::SYS_sync_file_range),  // file plugin, cache=none: write out behind the client
    any(c::SYS_fadvise64),        // NBD_CMD_CACHE; fadvise= of file and split

    // Block devices: what linux/fs.h has that changes nothing but blocks.
    with(c::SYS_ioctl, &[Is(1, 0x1268)]),      // BLKSSZGET: size of a sector
    with(c::SYS_ioctl, &[Is(1, 0x1277)]),      // BLKDISCARD: trim
    with(c::SYS_ioctl, &[Is(1, 0x1278)]),      // BLKIOMIN: block_size, minimum
    with(c::SYS_ioctl, &[Is(1, 0x1279)]),      // BLKIOOPT: block_size, preferred
    with(c::SYS_ioctl, &[Is(1, 0x127e)]),      // BLKROTATIONAL: is_rotational
    with(c::SYS_ioctl, &[Is(1, 0x127f)]),      // BLKZEROOUT: zero
    with(c::SYS_ioctl, &[Is(1, 0x8008_1272)]), // BLKGETSIZE64: size

    // Files and paths are looked at, not opened.
    any(c::SYS_fstat),            // size and kind of what is open
    any(c::SYS_newfstatat),       // glibc stat(3): Kept, is_single_threaded; whether a file exists: error filter
    any(c::SYS_statx),            // std metadata: cow-on-read, exitwhen
    any(c::SYS_openat),           // EACCES by OPENING, or left to Landlock, so that glibc may try
];
