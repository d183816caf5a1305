//! The list: what a broker calls once it is confined, each line with its reason. Data only.
//!
//! Adding a line is a decision about the one process of a stack that opens paths. There is no call on it that makes a
//! process, executes a program, makes, removes or names a file, or makes a socket.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox_policy::Test::{Is, Lacks};
use nbdkit_sandbox_policy::{Line, any, with};

const EXEC: u64 = c::PROT_EXEC as u64;

/// Flags of open(2) that would do more than open what is there.
const MORE_THAN_OPEN: u64 =
    (c::O_CREAT | c::O_TRUNC | c::O_APPEND | c::O_PATH | (c::O_TMPFILE & !c::O_DIRECTORY)) as u64;
/// And those that would do more than read it.
const MORE_THAN_READ: u64 = MORE_THAN_OPEN | (c::O_WRONLY | c::O_RDWR) as u64;

/// Opening, for a stack that writes.
pub(super) const WRITING: &[Line] = &[
    with(c::SYS_openat, &[Lacks(2, MORE_THAN_OPEN)]), // what was asked for
];

/// Opening, for a stack that only reads.
pub(super) const READING: &[Line] = &[
    with(c::SYS_openat, &[Lacks(2, MORE_THAN_READ)]), // what was asked for
];

/// Every broker.
#[rustfmt::skip]
pub(super) const BROKER: &[Line] = &[
    // Questions and answers.
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_poll),             // the loop
    any(c::SYS_ppoll),            // the same where there is no poll
    any(c::SYS_recvmsg),          // questions, channels
    any(c::SYS_sendmsg),          // answers, log lines
    any(c::SYS_sendto),           // the last words of a refused process
    any(c::SYS_read),             // a signal: the template has ended
    any(c::SYS_close),            // what was handed over

    // What a path leads to.
    any(c::SYS_newfstatat),       // its type, before it is opened
    any(c::SYS_fstat),            // and afterwards
    any(c::SYS_statx),            // the same by std
    any(c::SYS_fstatfs),          // nothing of /proc
    with(c::SYS_fcntl, &[Is(1, c::F_GETFD as u64)]), // debug builds of std check before close

    // Memory: never code.
    with(c::SYS_mmap, &[Lacks(2, EXEC)]),     // malloc
    with(c::SYS_mprotect, &[Lacks(2, EXEC)]), // malloc's arenas
    any(c::SYS_munmap),           // the end of those
    any(c::SYS_mremap),           // realloc
    any(c::SYS_madvise),          // malloc gives back
    any(c::SYS_brk),              // malloc
    any(c::SYS_futex),            // std's locks; one thread never waits

    // A panic, an abort, the end.
    any(c::SYS_rt_sigprocmask),   // abort(3)
    any(c::SYS_rt_sigaction),     // abort takes its handler away
    any(c::SYS_rt_sigreturn),     // end of a handler
    any(c::SYS_sigaltstack),      // std's guard against overflow of the stack
    any(c::SYS_getpid),           // abort; the first debug line
    any(c::SYS_getppid),          // whether the template has ended already
    any(c::SYS_gettid),           // abort
    with(c::SYS_tgkill, &[Is(2, c::SIGABRT as u64)]), // abort
    any(c::SYS_restart_syscall),  // what the kernel does after a stop
    any(c::SYS_exit_group),       // the end

    // Facts.
    any(c::SYS_clock_gettime),    // how often somebody asks; mostly done without a system call
    any(c::SYS_getrandom),        // hash tables
    with(c::SYS_prlimit64, &[Is(0, 0), Lacks(2, u64::MAX)]), // no new limit (a pointer): how many descriptors; stack of the main thread
    any(c::SYS_getcwd),           // paths in a panic's backtrace
];
