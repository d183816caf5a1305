//! The system calls of a listener that serves, each line with its reason. Data only.
//!
//! Adding a line is a decision about the one process that may be root. No call on the list forks,
//! executes a program, changes user or group, or opens a file for writing.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_ipc::process::Process;
use nbdkit_sandbox::seccomp::Test::{Is, Lacks};
use nbdkit_sandbox::seccomp::{Line, any, with};

const EXEC: u64 = c::PROT_EXEC as u64;

/// Flags of open(2) that would do more than read a file.
const MORE_THAN_READ: u64 =
    (c::O_WRONLY | c::O_RDWR | c::O_CREAT | c::O_TRUNC | c::O_APPEND | c::O_PATH) as u64;

/// The type of channels, as nbdkit-ipc makes them.
const CHANNEL: u64 = (c::SOCK_SEQPACKET | c::SOCK_CLOEXEC) as u64;

/// The listener, once it serves.
#[rustfmt::skip]
pub(super) const LISTENER: &[Line] = &[
    // Clients.
    any(c::SYS_accept4),          // from the queues; there is no bind and no listen
    any(c::SYS_getpeername),      // their addresses
    any(c::SYS_getsockname),      // the families of their sockets
    any(c::SYS_getsockopt),       // who they are: SO_PEERCRED, SO_PEERSEC
    any(c::SYS_setsockopt),       // TCP_NODELAY; the buffers of channels

    // Channels and signals.
    // A worker's channel. Not datagrams, which need no connect to go anywhere.
    with(c::SYS_socketpair, &[Is(0, c::AF_UNIX as u64), Is(1, CHANNEL)]),
    any(c::SYS_sendmsg),          // what template and workers are told; clients' sockets to the template
    any(c::SYS_recvmsg),          // what they say
    any(c::SYS_sendto),           // the system log, the service manager: sockets that are there; a restarted one by its path
    any(c::SYS_recvfrom),         // signals that arrived: a socket of our own
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_epoll_wait),       // the loop
    any(c::SYS_epoll_pwait),      // the same where there is no epoll_wait
    any(c::SYS_epoll_ctl),        // channels come and go
    any(c::SYS_rt_sigreturn),     // end of a handler
    any(c::SYS_restart_syscall),  // what the kernel does after a stop

    // Processes: their ends, by us and by themselves. There is no clone and no execve.
    any(c::SYS_wait4),            // how they ended
    with(c::SYS_ioctl, &[Is(1, Process::GET_INFO)]),         // whose child a worker is
    any(c::SYS_pidfd_open),       // a handle on a worker, if the template had no room for one
    any(c::SYS_getsid),           // whether it is the template's, on old kernels without /proc
    any(c::SYS_waitid),           // whether it is ours, the same
    any(c::SYS_pidfd_send_signal),// SIGKILL for it; whether it lives
    any(c::SYS_kill),             // the template and the command of --run: children that are not reaped yet

    // /proc (whose child a worker is), the time zone. Which paths: Landlock. Nothing is removed.
    with(c::SYS_openat, &[Lacks(2, MORE_THAN_READ)]),        // read only
    any(c::SYS_read),             // the same
    any(c::SYS_getdents64),       // children that dead templates have left, where /proc has no list of them
    any(c::SYS_lseek),            // std's read_to_string; glibc's tzset
    any(c::SYS_fstat),            // the same
    any(c::SYS_newfstatat),       // the same, in other versions of glibc
    any(c::SYS_statx),            // the same by std
    any(c::SYS_close),            // end of everything

    // The log: open already.
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_poll),             // whether somebody reads standard error
    any(c::SYS_ppoll),            // the same where there is no poll
    any(c::SYS_write),            // standard error, --log=FILE; the signal handlers' socket
    any(c::SYS_writev),           // panics
    with(c::SYS_ioctl, &[Is(1, c::TCGETS)]),                 // is standard error a terminal?
    with(c::SYS_fcntl, &[Is(1, c::F_GETFD as u64)]),         // debug builds of std check before close
    with(c::SYS_fcntl, &[Is(1, c::F_GETFL as u64)]),         // nix and std before they change flags
    with(c::SYS_fcntl, &[Is(1, c::F_SETFL as u64)]),         // O_NONBLOCK

    // Memory: never code.
    with(c::SYS_mmap, &[Lacks(2, EXEC)]),                    // malloc
    with(c::SYS_mprotect, &[Lacks(2, EXEC)]),                // malloc's arenas
    any(c::SYS_munmap),           // the end of those
    any(c::SYS_mremap),           // realloc
    any(c::SYS_madvise),          // malloc gives back
    any(c::SYS_brk),              // malloc

    // A panic, an abort, the end.
    any(c::SYS_futex),            // std's locks; one thread never waits for long
    any(c::SYS_rt_sigprocmask),   // abort(3), the end of std's main
    any(c::SYS_rt_sigaction),     // abort takes its handler away
    any(c::SYS_sigaltstack),      // the end of std's main
    any(c::SYS_getpid),           // abort; the system log
    any(c::SYS_gettid),           // abort
    with(c::SYS_tgkill, &[Is(2, c::SIGABRT as u64)]),        // abort
    any(c::SYS_exit_group),       // the end

    // Facts.
    any(c::SYS_clock_gettime),    // deadlines, logs; mostly done without a system call
    any(c::SYS_gettimeofday),     // the same
    any(c::SYS_getrandom),        // hash tables
    any(c::SYS_getcwd),           // paths in a panic's backtrace
];
