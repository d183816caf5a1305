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

/// The flags of a file for the journal.
const MEMFD: u64 = (c::MFD_CLOEXEC | c::MFD_ALLOW_SEALING) as u64;

/// The listener, once it serves.
#[rustfmt::skip]
pub(super) const LISTENER: &[Line] = &[
    // Clients.
    any(c::SYS_accept4),          // accept: a client from the queue; there is no bind and no listen
    any(c::SYS_getpeername),      // peer: the address of a client
    any(c::SYS_getsockname),      // peer: the family of its socket
    any(c::SYS_getsockopt),       // peer: SO_PEERCRED, SO_PEERSEC
    any(c::SYS_setsockopt),       // TCP_NODELAY, TCP_CONGESTION; the buffers of channels and of Unix sockets

    // Channels and signals.
    with(c::SYS_socketpair, &[Is(0, c::AF_UNIX as u64), Is(1, CHANNEL)]), // Channel::pair, for a worker. Not datagrams, which go anywhere without connect
    any(c::SYS_sendmsg),          // messages to template and workers; clients' sockets for the template
    any(c::SYS_recvmsg),          // messages of template, workers, broker and spawner
    any(c::SYS_sendto),           // the system log and the service manager, by sockets that are open; by path when one was restarted
    any(c::SYS_recvfrom),         // signal-hook: the socket pair of its handlers
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_epoll_wait),       // mio: the loop
    any(c::SYS_epoll_pwait),      // mio: the loop, on machines without epoll_wait
    any(c::SYS_epoll_ctl),        // mio: channels come and go
    any(c::SYS_rt_sigreturn),     // the kernel's return from a handler
    any(c::SYS_restart_syscall),  // the kernel continues an interrupted wait

    // Processes: killing and reaping them. There is no clone and no execve.
    any(c::SYS_wait4),            // reap: how a child ended
    with(c::SYS_ioctl, &[Is(1, Process::GET_INFO)]),         // Process::identity: whose child a worker is
    any(c::SYS_pidfd_open),       // a handle on a worker, if the template had no room for one
    any(c::SYS_getsid),           // whether a worker is the template's, on old kernels without /proc
    any(c::SYS_waitid),           // whether a worker is a child of the listener, on old kernels without /proc
    any(c::SYS_pidfd_send_signal),// SIGKILL for a worker; whether it lives
    any(c::SYS_kill),             // SIGKILL for the template and the command of --run: children that are not reaped yet

    // /proc (whose child a worker is), the time zone. Which paths: Landlock. Nothing is removed.
    with(c::SYS_openat, &[Lacks(2, MORE_THAN_READ)]),        // /proc: parents of workers; glibc tzset
    any(c::SYS_read),             // /proc, the time zone; std reads a file
    any(c::SYS_getdents64),       // children that dead templates have left, where /proc has no list of them
    any(c::SYS_lseek),            // std read_to_string; glibc tzset
    any(c::SYS_fstat),            // glibc tzset, readdir; is standard error a file?
    any(c::SYS_newfstatat),       // fstat(3) and stat(3) of glibc since 2.33
    any(c::SYS_statx),            // std metadata, read_to_string
    any(c::SYS_close),            // every descriptor that is dropped

    // The log: open already.
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_poll),             // log: whether standard error can be written to
    any(c::SYS_ppoll),            // glibc poll(3) on machines without a poll system call
    with(c::SYS_memfd_create, &[Is(1, MEMFD)]),              // log: a line that is too long for a datagram to the journal
    with(c::SYS_fcntl, &[Is(1, c::F_ADD_SEALS as u64)]),     // log: seals of that file
    any(c::SYS_write),            // log: standard error, --log=FILE; signal-hook: the socket of its handlers
    any(c::SYS_writev),           // std: the message of a panic
    with(c::SYS_ioctl, &[Is(1, c::TCGETS)]),                 // std is_terminal: standard error
    with(c::SYS_fcntl, &[Is(1, c::F_GETFD as u64)]),         // debug builds of std check before close
    with(c::SYS_fcntl, &[Is(1, c::F_GETFL as u64)]),         // nix and std before they change flags
    with(c::SYS_fcntl, &[Is(1, c::F_SETFL as u64)]),         // nix and std set O_NONBLOCK

    // Memory: never code.
    with(c::SYS_mmap, &[Lacks(2, EXEC)]),                    // malloc: large blocks
    with(c::SYS_mprotect, &[Lacks(2, EXEC)]),                // malloc: arenas
    any(c::SYS_munmap),           // malloc gives large blocks back
    any(c::SYS_mremap),           // realloc of large blocks
    any(c::SYS_madvise),          // malloc gives memory back
    any(c::SYS_brk),              // malloc: small blocks

    // A panic, an abort, the end.
    any(c::SYS_futex),            // std locks; the one thread never waits
    any(c::SYS_rt_sigprocmask),   // abort(3); std: the end of main
    any(c::SYS_rt_sigaction),     // abort resets SIGABRT
    any(c::SYS_sigaltstack),      // std: the end of main
    any(c::SYS_getpid),           // abort; the system log
    any(c::SYS_gettid),           // abort
    with(c::SYS_tgkill, &[Is(2, c::SIGABRT as u64)]),        // abort
    any(c::SYS_exit_group),       // exit(3), exit_now

    // Facts.
    any(c::SYS_clock_gettime),    // deadlines, logs, where the vDSO has no clock
    any(c::SYS_gettimeofday),     // gettimeofday(3), where the vDSO has no clock
    any(c::SYS_getrandom),        // std hash tables; rustls: signatures
    any(c::SYS_getcwd),           // std: paths in the backtrace of a panic
];
