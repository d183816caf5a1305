//! Need: code in a file, a plugin or filter in C, and the libraries that it brings. Everything here
//! reads facts, or moves data of descriptors that are open. Nothing in a stack's needs tells yet
//! whether it has such code, so every stack has this list.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::{Line, any};

#[rustfmt::skip]
pub(super) const IN_FILE: &[Line] = &[
    // Data of open files.
    any(c::SYS_readv),            // readv(3): scattered reads
    any(c::SYS_preadv),           // preadv(3): scattered reads of disks
    any(c::SYS_pwritev),          // pwritev(3): scattered writes to disks
    any(c::SYS_copy_file_range),  // plugins that copy between two open files
    any(c::SYS_flock),            // flock(3) of an open file
    any(c::SYS_msync),            // databases that map their files
    any(c::SYS_munlock),          // libgcrypt: secure memory is given back

    // Whether paths exist.
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_access),           // access(3); sh plugin: whether a script can be read
    any(c::SYS_faccessat),        // glibc access(3) on machines without the system call; eaccess(3) before 5.8
    any(c::SYS_faccessat2),       // eaccess(3), euidaccess(3)

    // Facts.
    any(c::SYS_getppid),          // libraries that notice a fork
    any(c::SYS_getuid),           // libraries that look for a user's settings
    any(c::SYS_geteuid),          // libraries that distrust the environment of set-user-id programs
    any(c::SYS_getgid),           // libraries that look for a user's settings
    any(c::SYS_getegid),          // libraries that distrust the environment of set-group-id programs
    any(c::SYS_uname),            // libraries that put the host's name into a request
    any(c::SYS_sysinfo),          // glibc qsort(3) before 2.37: how much memory there is
    any(c::SYS_getrlimit),        // C libraries other than glibc: how many descriptors there may be
    any(c::SYS_gettimeofday),     // gettimeofday(3), where the vDSO has no clock
    any(c::SYS_clock_getres),     // clock_getres(3): event loops
    any(c::SYS_nanosleep),        // nanosleep(3) of C libraries other than glibc
    any(c::SYS_set_tid_address),  // the dynamic linker of a program that a script runs
];
