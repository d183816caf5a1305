//! Need: code in a file, a plugin or filter in C, and the libraries that it brings; and programs,
//! which are such code. Everything here reads facts, or moves data of descriptors that are open.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::Test::Is;
use nbdkit_sandbox::seccomp::{Line, any, with};

#[rustfmt::skip]
pub(in crate::sandbox) const IN_FILE: &[Line] = &[
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

    // Descriptors, waiting, and further facts.
    any(c::SYS_dup),              // fdopen of a copy
    any(c::SYS_dup3),             // glibc's dup2 elsewhere than on x86_64
    #[cfg(target_arch = "x86_64")] any(c::SYS_dup2),    // glibc's dup2
    with(c::SYS_fcntl, &[Is(1, c::F_DUPFD as u64)]),    // dup by number
    with(c::SYS_fcntl, &[Is(1, c::F_SETLKW as u64)]),   // locks of files that are open
    any(c::SYS_pselect6),         // libraries that wait for sockets
    #[cfg(target_arch = "x86_64")] any(c::SYS_select),  // libraries that wait for sockets
    any(c::SYS_eventfd2),         // libraries that wake themselves
    any(c::SYS_getcwd),           // realpath(3)
    any(c::SYS_readlinkat),       // realpath(3)
    #[cfg(target_arch = "x86_64")] any(c::SYS_readlink), // realpath(3)
    #[cfg(target_arch = "x86_64")] any(c::SYS_time),    // time(2) without a vDSO
    #[cfg(target_arch = "x86_64")] any(c::SYS_pause),   // pause(3)
    any(c::SYS_times),            // clock(3), profilers
    with(c::SYS_getrusage, &[Is(0, c::RUSAGE_SELF as u64)]), // how much memory and time were used
    any(c::SYS_getcpu),           // allocators
    any(c::SYS_mincore),          // allocators
    any(c::SYS_membarrier),       // lock-free libraries
    any(c::SYS_getpriority),      // libraries ask
    any(c::SYS_sched_getparam),   // thread attributes
    any(c::SYS_sched_getscheduler), // thread attributes
];
