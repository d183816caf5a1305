//! The list: what a broker calls once it is confined, each line with its reason. Data only.
//!
//! Adding a line is a decision about the one process of a stack that opens paths and connects.
//! There is no call on it that makes a process, executes a program, makes, removes or names a file,
//! or listens; sockets are of the families of declared endpoints.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::Test::{Has, Is, Lacks};
use nbdkit_sandbox::seccomp::{Line, NEW_NAMESPACES, any, with};

const EXEC: u64 = c::PROT_EXEC as u64;

/// Flags of open(2) that would do more than open what is there.
const MORE_THAN_OPEN: u64 =
    (c::O_CREAT | c::O_TRUNC | c::O_APPEND | c::O_PATH | (c::O_TMPFILE & !c::O_DIRECTORY)) as u64;
/// And those that would do more than read it.
const MORE_THAN_READ: u64 = MORE_THAN_OPEN | (c::O_WRONLY | c::O_RDWR) as u64;

/// Opening, for a stack that writes.
pub(super) const WRITING: &[Line] = &[
    with(c::SYS_openat, &[Lacks(2, MORE_THAN_OPEN)]), // direct::file, for Open: a declared path
];

/// Opening, for a stack that only reads.
pub(super) const READING: &[Line] = &[
    with(c::SYS_openat, &[Lacks(2, MORE_THAN_READ)]), // direct::file, for Open: a declared path
];

/// Every broker.
#[rustfmt::skip]
pub(super) const BROKER: &[Line] = &[
    // Requests and answers.
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_epoll_wait),       // Channels::wait
    any(c::SYS_epoll_pwait),      // Channels::wait, on machines without epoll_wait
    any(c::SYS_epoll_ctl),        // Channels: workers come and go, or have to wait
    any(c::SYS_recvmsg),          // Open and Connect of workers; their channels from the listener
    any(c::SYS_sendmsg),          // descriptors for workers, log lines
    any(c::SYS_sendto),           // report_refusals: the message of a refused process
    any(c::SYS_read),             // signalfd: the template has ended
    any(c::SYS_close),            // descriptors that were sent; channels that ended

    // What a path leads to.
    any(c::SYS_newfstatat),       // direct::file: its type, before it is opened
    any(c::SYS_fstat),            // direct::file: its type, when it is open
    any(c::SYS_statx),            // std metadata
    any(c::SYS_fstatfs),          // direct::file: nothing of /proc is a disk
    with(c::SYS_fcntl, &[Is(1, c::F_GETFD as u64)]), // debug builds of std check before close

    // Memory: never code.
    with(c::SYS_mmap, &[Lacks(2, EXEC)]),     // malloc: large blocks
    with(c::SYS_mprotect, &[Lacks(2, EXEC)]), // malloc's arenas
    any(c::SYS_munmap),           // malloc gives large blocks back
    any(c::SYS_mremap),           // realloc of large blocks
    any(c::SYS_madvise),          // malloc gives memory back
    any(c::SYS_brk),              // malloc: small blocks
    any(c::SYS_futex),            // std's locks; one thread never waits

    // A panic, an abort, the end.
    any(c::SYS_rt_sigprocmask),   // abort(3)
    any(c::SYS_rt_sigaction),     // abort resets SIGABRT
    any(c::SYS_rt_sigreturn),     // the kernel's return from a handler
    any(c::SYS_sigaltstack),      // std's guard against overflow of the stack
    any(c::SYS_getpid),           // abort; the first debug line
    any(c::SYS_getppid),          // start: whether the template has ended already
    any(c::SYS_gettid),           // abort
    with(c::SYS_tgkill, &[Is(2, c::SIGABRT as u64)]), // abort
    any(c::SYS_restart_syscall),  // the kernel continues an interrupted wait
    any(c::SYS_exit_group),       // exit_now

    // Facts.
    any(c::SYS_clock_gettime),    // rate: the time between questions, where the vDSO has no clock
    any(c::SYS_getrandom),        // std hash tables
    with(c::SYS_prlimit64, &[Is(0, 0), Lacks(2, u64::MAX)]), // channels: how many descriptors; pthread_getattr_np. This process, no new limit (a pointer)
    any(c::SYS_getcwd),           // std: paths in the backtrace of a panic
];

/// Types of sockets, as connect and glibc's resolver ask for them.
const STREAM: u64 = (c::SOCK_STREAM | c::SOCK_CLOEXEC) as u64;
const DATAGRAM: u64 = (c::SOCK_DGRAM | c::SOCK_CLOEXEC) as u64;
const RAW: u64 = (c::SOCK_RAW | c::SOCK_CLOEXEC) as u64;
const NONBLOCK: u64 = c::SOCK_NONBLOCK as u64;
const INET4: u64 = c::AF_INET as u64;
const INET6: u64 = c::AF_INET6 as u64;
const THREAD: u64 = c::CLONE_THREAD as u64;

/// Need: endpoints. Threads that wait for names and paths, and connecting.
#[rustfmt::skip]
pub(super) const CONNECTING: &[Line] = &[
    any(c::SYS_connect),          // declared endpoints; glibc res_send; rfc3484 sorting asks the kernel for source addresses
    any(c::SYS_write),            // eventfd: a thread has an answer
    with(c::SYS_clone, &[Has(0, THREAD), Lacks(0, NEW_NAMESPACES)]), // pthread_create
    any(c::SYS_clone3),           // pthread_create tries it first; see ABSENT
    any(c::SYS_set_robust_list),  // glibc start_thread
    any(c::SYS_rseq),             // glibc start_thread
    any(c::SYS_sched_getaffinity),// pthread_getattr_np: std looks where a thread's stack is
    with(c::SYS_prctl, &[Is(0, c::PR_SET_NAME as u64)]), // std names its threads
    any(c::SYS_exit),             // the end of a thread
    any(c::SYS_sched_yield),      // std mpsc: a thread is in the middle of sending an answer
    any(c::SYS_mmap),             // stacks of threads; see CODE
    any(c::SYS_mprotect),         // guard pages, arenas of threads; see CODE
];

/// Need: endpoints of TCP.
#[rustfmt::skip]
pub(super) const INET: &[Line] = &[
    with(c::SYS_socket, &[Is(0, INET4), Is(1, STREAM | NONBLOCK)]), // a declared endpoint
    with(c::SYS_socket, &[Is(0, INET6), Is(1, STREAM | NONBLOCK)]), // a declared endpoint
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_TCP as u64), Is(2, c::TCP_NODELAY as u64)]),      // requests go at once
    with(c::SYS_setsockopt, &[Is(1, c::SOL_SOCKET as u64), Is(2, c::SO_KEEPALIVE as u64)]),      // dead servers are noticed
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_TCP as u64), Is(2, c::TCP_KEEPIDLE as u64)]),     // how soon they are
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_TCP as u64), Is(2, c::TCP_KEEPINTVL as u64)]),    // how often they are asked
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_TCP as u64), Is(2, c::TCP_USER_TIMEOUT as u64)]), // how long they are waited for
];

/// Need: names of hosts. What getaddrinfo(3) of glibc calls, with `files` and `dns`.
#[rustfmt::skip]
pub(super) const RESOLVING: &[Line] = &[
    with(c::SYS_socket, &[Is(0, INET4), Is(1, DATAGRAM)]),            // rfc3484 sorting
    with(c::SYS_socket, &[Is(0, INET6), Is(1, DATAGRAM)]),            // rfc3484 sorting
    with(c::SYS_socket, &[Is(0, INET4), Is(1, DATAGRAM | NONBLOCK)]), // res_send: questions
    with(c::SYS_socket, &[Is(0, INET6), Is(1, DATAGRAM | NONBLOCK)]), // res_send: questions
    with(c::SYS_socket, &[Is(0, INET4), Is(1, STREAM)]),              // res_send: an answer too long for UDP
    with(c::SYS_socket, &[Is(0, INET6), Is(1, STREAM)]),              // res_send: an answer too long for UDP
    with(c::SYS_socket, &[Is(0, c::AF_NETLINK as u64), Is(1, RAW), Is(2, c::NETLINK_ROUTE as u64)]), // check_pf: which addresses this host has
    any(c::SYS_bind),             // check_pf; Landlock has no port to listen on
    any(c::SYS_getsockname),      // check_pf, rfc3484 sorting
    any(c::SYS_getpeername),      // res_send over TCP: whether it is still connected
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_poll),             // res_send and nscd: until there is an answer
    any(c::SYS_ppoll),            // res_send and nscd: glibc poll(3) on machines without a poll system call
    any(c::SYS_recvfrom),         // res_send: answers
    any(c::SYS_sendmmsg),         // res_send: parallel A and AAAA queries
    any(c::SYS_writev),           // res_send over TCP
    with(c::SYS_ioctl, &[Is(1, c::FIONREAD)]), // res_send: how long the answer is
    with(c::SYS_socket, &[Is(0, c::AF_UNIX as u64), Is(1, DATAGRAM)]), // if_nametoindex: a name server of a link, fe80::1%eth0
    with(c::SYS_ioctl, &[Is(1, c::SIOCGIFINDEX)]), // if_nametoindex
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_IP as u64), Is(2, c::IP_RECVERR as u64)]),       // res_send: who refuses is not waited for
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_IPV6 as u64), Is(2, c::IPV6_RECVERR as u64)]),   // res_send: who refuses is not waited for
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_IP as u64), Is(2, c::IP_MTU_DISCOVER as u64)]),  // res_send, where the C library has it: no forged fragments
    any(c::SYS_lseek),            // /etc/hosts, nsswitch.conf
    any(c::SYS_uname),            // res_init: the domain of this host
];

/// Need: endpoints of the Unix domain; and names, for which glibc asks a cache first (nscd(8)).
#[rustfmt::skip]
pub(super) const UNIX: &[Line] = &[
    with(c::SYS_socket, &[Is(0, c::AF_UNIX as u64), Is(1, STREAM | NONBLOCK)]), // a declared endpoint; nscd
    with(c::SYS_setsockopt, &[Is(1, c::SOL_SOCKET as u64), Is(2, c::SO_SNDBUF as u64)]), // large requests leave at once
    any(c::SYS_readv),            // nscd: its answer
];

/// Need: endpoints of vsock.
#[rustfmt::skip]
pub(super) const VSOCK: &[Line] = &[
    with(c::SYS_socket, &[Is(0, c::AF_VSOCK as u64), Is(1, STREAM | NONBLOCK)]), // a declared endpoint
];

/// To fail with ENOSYS: what has another way that can be checked.
#[rustfmt::skip]
pub(super) const ABSENT: &[Line] = &[
    any(c::SYS_clone3),           // its flags are in memory; pthread_create falls back to clone
];

/// To fail with EOPNOTSUPP, as where it is switched off: TCP fast open connects without connect(2),
/// past Landlock's ports.
#[rustfmt::skip]
pub(super) const FAST_OPEN: &[Line] = &[
    with(c::SYS_sendto, &[Has(3, c::MSG_FASTOPEN as u64)]),   // to a port that is not declared
    with(c::SYS_sendmsg, &[Has(2, c::MSG_FASTOPEN as u64)]),  // to a port that is not declared
    with(c::SYS_sendmmsg, &[Has(3, c::MSG_FASTOPEN as u64)]), // to a port that is not declared
];

/// To fail with EACCES: code. glibc goes on without the modules of nsswitch.conf(5) that it cannot
/// load.
#[rustfmt::skip]
pub(super) const CODE: &[Line] = &[
    with(c::SYS_mmap, &[Has(2, EXEC)]),     // dlopen
    with(c::SYS_mprotect, &[Has(2, EXEC)]), // dlopen
];

/// To fail with EAFNOSUPPORT, where no endpoint is of the Unix domain: glibc goes on without its
/// cache, and asks for interfaces by another socket.
#[rustfmt::skip]
pub(super) const NO_UNIX: &[Line] = &[
    with(c::SYS_socket, &[Is(0, c::AF_UNIX as u64)]), // nscd(8), if_nametoindex
];
