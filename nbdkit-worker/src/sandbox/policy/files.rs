//! Need: paths that are opened while the stack serves.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::{Line, any};

/// Paths that are opened without a broker. Landlock restricts which.
#[rustfmt::skip]
pub(in crate::sandbox) const FILE: &[Line] = &[
    any(c::SYS_getdents64),       // file plugin, dir=: the list of exports
    any(c::SYS_readlinkat),       // std read_link, canonicalize: links in dir=
    any(c::SYS_statfs),           // statfs(3): on which file system a path is
    any(c::SYS_fstatfs),          // direct::file: nothing of /proc is a disk
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_readlink),         // realpath(3): std canonicalize
    any(c::SYS_getcwd),           // realpath(3) of a relative path
];

/// Paths that a broker opens (the file and split plugins).
#[rustfmt::skip]
pub(in crate::sandbox) const BROKERED: &[Line] = &[
    any(c::SYS_getdents64),       // file plugin, dir=: the list of exports, of a descriptor
];

/// To fail with EACCES where no path is needed, rather than to end the process: libraries try to
/// read settings.
#[rustfmt::skip]
pub(in crate::sandbox) const OPENING: &[Line] = &[
    any(c::SYS_openat),           // any file of the machine, where Landlock is missing
];
