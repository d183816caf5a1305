//! Need: paths that the stack writes to by itself: code in files, and `--allow-path=PATH:rw`.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::{Line, any};

/// Names that are made, changed and removed. Landlock restricts which.
#[rustfmt::skip]
pub(in crate::sandbox) const TREE: &[Line] = &[
    any(c::SYS_mkdirat),          // mkdir(3)
    any(c::SYS_unlinkat),         // unlink(3), rmdir(3)
    any(c::SYS_renameat),         // glibc's rename(3) elsewhere than on x86_64
    any(c::SYS_renameat2),        // std's and newer libraries' rename
    any(c::SYS_linkat),           // a temporary file gets its name
    any(c::SYS_symlinkat),        // symlink(3)
    any(c::SYS_utimensat),        // touch
    any(c::SYS_fchmod),           // modes of what was created
    #[cfg(target_arch = "x86_64")] any(c::SYS_mkdir),   // glibc's mkdir(3)
    #[cfg(target_arch = "x86_64")] any(c::SYS_rmdir),   // glibc's rmdir(3)
    #[cfg(target_arch = "x86_64")] any(c::SYS_unlink),  // glibc's unlink(3)
    #[cfg(target_arch = "x86_64")] any(c::SYS_rename),  // glibc's rename(3)
    #[cfg(target_arch = "x86_64")] any(c::SYS_link),    // glibc's link(3)
    #[cfg(target_arch = "x86_64")] any(c::SYS_symlink), // glibc's symlink(3)
];
