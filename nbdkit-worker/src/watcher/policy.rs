//! The lists: what a watcher calls once it is confined, each line with its reason. Data only.
//!
//! There is no call on them that makes a process or a socket, executes a program, opens a file, or
//! connects.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::Test::{Is, Lacks};
use nbdkit_sandbox::seccomp::{Line, any, with};

const EXEC: u64 = c::PROT_EXEC as u64;

/// Every watcher.
#[rustfmt::skip]
pub(super) const WATCHER: &[Line] = &[
    // Waiting, shared memory, messages.
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_poll),             // Server::wait
    any(c::SYS_ppoll),            // Server::wait: glibc poll(3) on machines without a poll system call
    any(c::SYS_read),             // eventfd of workers; inotify; commands of a control socket
    any(c::SYS_write),            // answers of a control socket
    any(c::SYS_sendmsg),          // Log and Notify for the template
    any(c::SYS_sendto),           // report_refusals: the message of a refused process
    any(c::SYS_close),            // connections that ended
    any(c::SYS_futex),            // SharedEvent, between processes; std's locks
    with(c::SYS_fcntl, &[Is(1, c::F_GETFD as u64)]), // debug builds of std check before close
    with(c::SYS_fcntl, &[Is(1, c::F_GETLK as u64)]), // Places: whether a worker lives
    with(c::SYS_fcntl, &[Is(1, c::F_SETLK as u64)]), // Places: that this watcher lives

    // Memory: never code.
    with(c::SYS_mmap, &[Lacks(2, EXEC)]),     // malloc: large blocks
    with(c::SYS_mprotect, &[Lacks(2, EXEC)]), // malloc's arenas
    any(c::SYS_munmap),           // malloc gives large blocks back
    any(c::SYS_mremap),           // realloc of large blocks
    any(c::SYS_madvise),          // malloc gives memory back
    any(c::SYS_brk),              // malloc: small blocks

    // A panic, an abort, the end.
    any(c::SYS_rt_sigprocmask),   // abort(3)
    any(c::SYS_rt_sigaction),     // abort resets SIGABRT
    any(c::SYS_rt_sigreturn),     // the kernel's return from a handler
    any(c::SYS_sigaltstack),      // std's guard against overflow of the stack
    any(c::SYS_getpid),           // abort; the first debug line
    any(c::SYS_gettid),           // abort
    with(c::SYS_tgkill, &[Is(2, c::SIGABRT as u64)]), // abort
    any(c::SYS_restart_syscall),  // the kernel continues an interrupted wait
    any(c::SYS_exit_group),       // exit_now
    any(c::SYS_getcwd),           // std: paths in the backtrace of a panic
    any(c::SYS_clock_gettime),    // deadlines, where the vDSO has no clock
    any(c::SYS_getrandom),        // std hash tables
];

/// Need: a control socket.
#[rustfmt::skip]
pub(super) const ACCEPTING: &[Line] = &[
    any(c::SYS_accept4),          // its next connection
    any(c::SYS_recvfrom),         // std UnixStream: commands
];

/// Need: files that come and go.
#[rustfmt::skip]
pub(super) const LOOKING: &[Line] = &[
    any(c::SYS_newfstatat),       // whether a file is there
    any(c::SYS_statx),            // whether a file is there: std
    any(c::SYS_inotify_add_watch),// its directory, which may come later
];

/// Need: a file that is removed at the end.
#[rustfmt::skip]
pub(super) const REMOVING: &[Line] = &[
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_unlink),           // the control socket: see also Landlock
    any(c::SYS_unlinkat),         // the control socket, where there is no unlink(2)
];
