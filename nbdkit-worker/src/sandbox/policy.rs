//! The lists: what may be called, by need, each line with its reason. Data only; [`super::filter`]
//! compiles it. What is refused at the other levels is in [`nbdkit_sandbox_policy::lists`].
//!
//! Adding a line is a decision about every worker of that need. What is bounded here is bounded
//! because the call does more than we want of it: new processes by clone, code by mmap, signals to
//! others by fcntl, sockets by family.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox_policy::Test::{Has, Is, IsNot, Lacks};
use nbdkit_sandbox_policy::{Line, NEW_NAMESPACES, Test, any, with};

const THREAD: u64 = c::CLONE_THREAD as u64;
/// Flags of an open file that would change what the next client reads and writes, which may be
/// given the same description.
const FOR_GOOD: u64 = (c::O_APPEND | c::O_DIRECT | c::O_NOATIME) as u64;
const EXEC: u64 = c::PROT_EXEC as u64;

/// Every stack: memory, threads of the pool, the client's socket, the control channel, files that
/// are open.
#[rustfmt::skip]
pub(super) const BASE: &[Line] = &[
    // The client, the control channel, the disk.
    any(c::SYS_read),             // eventfds, pipes, the client when it is standard input
    any(c::SYS_write),            // standard output as a client (-s)
    any(c::SYS_readv),            // the same in pieces
    any(c::SYS_writev),           // header and payload of a reply at once
    any(c::SYS_pread64),          // a block of a file or memfd
    any(c::SYS_pwrite64),         // the same, to be written
    any(c::SYS_preadv),           // glibc's preadv2 where the kernel has none
    any(c::SYS_pwritev),          // the same, to be written
    any(c::SYS_preadv2),          // RWF_NOWAIT: only what is cached
    any(c::SYS_pwritev2),         // RWF_DSYNC: FUA
    any(c::SYS_recvfrom),         // requests
    any(c::SYS_sendto),           // replies; the last words of a refused process
    any(c::SYS_recvmsg),          // control channel, descriptors of clients
    any(c::SYS_sendmsg),          // the template: descriptors for the listener; see PASSING
    any(c::SYS_shutdown),         // disconnect, quiesce
    any(c::SYS_getsockopt),       // what kind of socket the client's is; bytes in its queue
    with(c::SYS_setsockopt, &[Is(1, c::SOL_SOCKET as u64), Is(2, c::SO_RCVTIMEO as u64)]), // deadline of the handshake
    any(c::SYS_getsockname),      // plugins ask for the client's address
    any(c::SYS_getpeername),      // the same
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_poll),             // deadline of the handshake; delays that end with the client
    any(c::SYS_ppoll),            // the same where there is no poll
    any(c::SYS_splice),           // large reads without a copy
    any(c::SYS_pipe2),            // for splice
    any(c::SYS_close),            // end of everything
    any(c::SYS_close_range),      // glibc's closefrom
    any(c::SYS_lseek),            // SEEK_HOLE and SEEK_DATA: extents, size
    any(c::SYS_fallocate),        // trim and zero
    any(c::SYS_ftruncate),        // tables in shared memory grow
    any(c::SYS_fdatasync),        // flush
    any(c::SYS_fsync),            // flush of metadata
    any(c::SYS_sync_file_range),  // cache=none: write out behind the client
    any(c::SYS_fadvise64),        // NBD_CMD_CACHE, fadvise=
    any(c::SYS_copy_file_range),  // std's copy between open files
    any(c::SYS_memfd_create),     // see SHARED_MEMORY
    any(c::SYS_flock),            // locks of files that are open

    // What is a descriptor for, and what may become of it. Not F_SETOWN, F_SETSIG: signals to other
    // processes.
    with(c::SYS_fcntl, &[Is(1, c::F_GETFD as u64)]),         // debug builds of std check before close
    with(c::SYS_fcntl, &[Is(1, c::F_SETFD as u64)]),         // close-on-exec
    with(c::SYS_fcntl, &[Is(1, c::F_GETFL as u64)]),         // whether a descriptor is writable
    with(c::SYS_fcntl, &[Is(1, c::F_SETFL as u64), Lacks(2, FOR_GOOD)]), // O_NONBLOCK, O_ASYNC
    with(c::SYS_fcntl, &[Is(1, c::F_DUPFD_CLOEXEC as u64)]), // fd=: a descriptor for each client
    with(c::SYS_fcntl, &[Is(1, c::F_ADD_SEALS as u64)]),     // a memfd that is mapped must not shrink
    with(c::SYS_fcntl, &[Is(1, c::F_GET_SEALS as u64)]),     // the same
    with(c::SYS_fcntl, &[Is(1, c::F_SETPIPE_SZ as u64)]),    // splice in larger pieces
    with(c::SYS_fcntl, &[Is(1, c::F_GETPIPE_SZ as u64)]),    // the same
    with(c::SYS_fcntl, &[Is(1, c::F_SETLK as u64)]),         // a place in a shared file (limit, exitlast)
    with(c::SYS_fcntl, &[Is(1, c::F_GETLK as u64)]),         // who has one
    with(c::SYS_fcntl, &[Is(1, c::F_OFD_SETLK as u64)]),     // ranges of shared files
    with(c::SYS_fcntl, &[Is(1, c::F_OFD_SETLKW as u64)]),    // the same, waiting
    with(c::SYS_fcntl, &[Is(1, c::F_OFD_GETLK as u64)]),     // the same, asking

    // Block devices that are open: linux/fs.h has no others that change nothing but blocks.
    with(c::SYS_ioctl, &[Is(1, 0x1268)]),                    // BLKSSZGET: size of a sector
    with(c::SYS_ioctl, &[Is(1, 0x1277)]),                    // BLKDISCARD: trim
    with(c::SYS_ioctl, &[Is(1, 0x1278)]),                    // BLKIOMIN: preferred size of a request
    with(c::SYS_ioctl, &[Is(1, 0x1279)]),                    // BLKIOOPT: the same
    with(c::SYS_ioctl, &[Is(1, 0x127e)]),                    // BLKROTATIONAL: is_rotational
    with(c::SYS_ioctl, &[Is(1, 0x127f)]),                    // BLKZEROOUT: zero
    with(c::SYS_ioctl, &[Is(1, 0x8008_1272)]),               // BLKGETSIZE64: size
    with(c::SYS_ioctl, &[Is(1, c::FIONBIO)]),                // std's set_nonblocking
    with(c::SYS_ioctl, &[Is(1, c::FIONREAD)]),               // bytes that wait in a socket
    with(c::SYS_ioctl, &[Is(1, c::TCGETS)]),                 // is it a terminal?

    // Looking at files. Opening is in FILE and OPENING.
    any(c::SYS_fstat),            // size and kind of what is open
    any(c::SYS_newfstatat),       // whether a file is there: error-file, cow-on-read; the number of threads
    any(c::SYS_statx),            // the same by std
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_access),           // the same
    any(c::SYS_faccessat),        // the same
    any(c::SYS_faccessat2),       // the same
    any(c::SYS_openat),           // refused with EACCES or left to Landlock, so that glibc may try

    // Memory: never code.
    // What is shared and without a file is made before: no limit counts it (RLIMIT_DATA).
    with(c::SYS_mmap, &[Lacks(2, EXEC), Lacks(3, c::MAP_SHARED as u64)]),    // buffers, stacks of threads
    with(c::SYS_mmap, &[Lacks(2, EXEC), Lacks(3, c::MAP_ANONYMOUS as u64)]), // tables in shared files
    with(c::SYS_mprotect, &[Lacks(2, EXEC)]), // guard pages, malloc's arenas
    any(c::SYS_munmap),           // the end of those
    any(c::SYS_mremap),           // realloc
    any(c::SYS_madvise),          // malloc gives back; stacks of ended threads
    any(c::SYS_msync),            // shared memory in files
    any(c::SYS_brk),              // malloc
    any(c::SYS_mlock),            // allocator=malloc,mlock=true
    any(c::SYS_munlock),          // the same

    // Threads.
    with(c::SYS_clone, &[Has(0, THREAD), Lacks(0, NEW_NAMESPACES)]), // the pool's
    any(c::SYS_clone3),           // see ABSENT
    any(c::SYS_futex),            // locks, also between processes
    any(c::SYS_set_robust_list),  // start of a thread
    any(c::SYS_rseq),             // the same
    any(c::SYS_set_tid_address),  // the same
    any(c::SYS_sched_getaffinity),// where a thread's stack is; number of processors
    any(c::SYS_sched_yield),      // waiting for a lock whose holder died
    any(c::SYS_gettid),           // who holds a lock
    any(c::SYS_exit),             // end of a thread
    any(c::SYS_exit_group),       // end of the process
    any(c::SYS_restart_syscall),  // what the kernel does after a stop
    with(c::SYS_prctl, &[Is(0, c::PR_SET_NAME as u64)]),     // names of threads

    // Signals: abort(3) is the only one sent; see also GIVEN_UP.
    any(c::SYS_rt_sigaction),     // abort takes its handler away
    any(c::SYS_rt_sigprocmask),   // start of a thread, fork
    any(c::SYS_rt_sigreturn),     // end of a handler
    any(c::SYS_sigaltstack),      // std's guard against overflow of the stack
    with(c::SYS_tgkill, &[Is(2, c::SIGABRT as u64)]),        // abort

    // Facts.
    any(c::SYS_clock_gettime),    // deadlines, logs; mostly done without a system call
    any(c::SYS_clock_getres),     // the same
    any(c::SYS_gettimeofday),     // the same
    any(c::SYS_clock_nanosleep),  // delay filters
    with(c::SYS_getrusage, &[Is(0, c::RUSAGE_THREAD as u64)]), // whether writes wait
    any(c::SYS_nanosleep),        // the same
    any(c::SYS_getrandom),        // seeds, hash tables
    any(c::SYS_getpid),           // abort; who made a directory
    any(c::SYS_getppid),          // plugins ask
    any(c::SYS_getuid),           // the same
    any(c::SYS_geteuid),          // the same
    any(c::SYS_getgid),           // the same
    any(c::SYS_getegid),          // the same
    any(c::SYS_uname),            // the same
    any(c::SYS_sysinfo),          // qsort of glibc 2.36, once
    any(c::SYS_getrlimit),        // stack of the main thread
    with(c::SYS_prlimit64, &[Is(0, 0), Lacks(2, u64::MAX)]), // the same: this process, no new limit (a pointer)
];

/// What the template does beyond that, and workers give up.
#[rustfmt::skip]
pub(super) const TEMPLATE: &[Line] = &[
    with(c::SYS_clone, &[Lacks(0, NEW_NAMESPACES)]),         // a worker
    any(c::SYS_pidfd_open),       // a handle on it, for the listener
    any(c::SYS_wait4),            // how it ended
    any(c::SYS_signalfd4),        // that one ended
    any(c::SYS_mlockall),         // --swap, in each worker
    any(c::SYS_seccomp),          // the filter of each worker
    with(c::SYS_prctl, &[Is(0, c::PR_SET_NO_NEW_PRIVS as u64)]), // the same
    with(c::SYS_fcntl, &[Is(1, c::F_SETOWN as u64)]), // a message on the control channel is a signal to the worker
];

/// What a worker cannot do although its template can.
#[rustfmt::skip]
pub(super) const GIVEN_UP: &[Line] = &[
    with(c::SYS_clone, &[Lacks(0, THREAD)]), // one client, one process
    any(c::SYS_pidfd_open),       // processes are not its business
    any(c::SYS_signalfd4),        // it has no children
    any(c::SYS_mlockall),         // done
    any(c::SYS_seccomp),          // done
    with(c::SYS_prctl, &[Is(0, c::PR_SET_NO_NEW_PRIVS as u64)]), // done
    with(c::SYS_fcntl, &[Is(1, c::F_SETOWN as u64)]), // it would signal other workers
];

/// What a process gives up that serves one client; one that serves them all waits for its broker at
/// the end.
#[rustfmt::skip]
pub(super) const CHILDREN: &[Line] = &[
    any(c::SYS_wait4),            // it has no children
];

/// What a worker gives up that makes no socket: the one that it may have been given, its client's,
/// could pass the descriptor of the disk to a local client. What sends no descriptor is send(2).
#[rustfmt::skip]
pub(super) const PASSING: &[Line] = &[
    any(c::SYS_sendmsg),          // SCM_RIGHTS
];

/// Need: paths that are opened without a broker.
#[rustfmt::skip]
pub(super) const FILE: &[Line] = &[
    any(c::SYS_getdents64),       // dir=: the list of exports
    any(c::SYS_readlinkat),       // symbolic links in it
    any(c::SYS_statfs),           // the kind of file system
    any(c::SYS_fstatfs),          // the same
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_readlink),         // std's canonicalize
    any(c::SYS_getcwd),           // the same
];

/// Need: paths that are written by themselves: code in files, `--allow-path=PATH:rw`. Landlock
/// restricts what they reach.
#[rustfmt::skip]
pub(super) const TREE: &[Line] = &[
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

/// Need: code in a file. What libraries in C call and what leads nowhere beyond the process.
#[rustfmt::skip]
pub(super) const IN_FILE: &[Line] = &[
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

/// Need: what a broker opens (the file and split plugins).
#[rustfmt::skip]
pub(super) const BROKERED: &[Line] = &[
    any(c::SYS_getdents64),       // dir=: the list of exports
];

/// To fail with EACCES where no path is needed, rather than to end the process: libraries try to
/// read settings.
#[rustfmt::skip]
pub(super) const OPENING: &[Line] = &[
    any(c::SYS_openat),           // open(3) of glibc and std
];

/// To fail with EACCES where no programs are run: memory in files, which no limit counts. It is
/// made before.
#[rustfmt::skip]
pub(super) const SHARED_MEMORY: &[Line] = &[
    any(c::SYS_memfd_create),     // libraries try it, and go on without
];

/// To fail with ENOSYS: what has another way that can be checked.
#[rustfmt::skip]
pub(super) const ABSENT: &[Line] = &[
    any(c::SYS_clone3),           // its flags are in memory; libraries fall back to clone
];

/// To fail with EAFNOSUPPORT, which is what kernels say that have been built without them: sockets
/// of all families but those of clients, disks and names; and what configures firewalls and
/// tunnels.
#[rustfmt::skip]
pub(super) const FAMILIES: &[Line] = &[
    with(c::SYS_socket, NO_FAMILY_OF_SERVERS),               // crypto, radio, buses, raw packets
    with(c::SYS_socketpair, NO_FAMILY_OF_SERVERS),           // the same
    with(c::SYS_socket, &[Is(0, c::AF_NETLINK as u64), Is(2, c::NETLINK_NETFILTER as u64)]), // firewalls
    with(c::SYS_socket, &[Is(0, c::AF_NETLINK as u64), Is(2, c::NETLINK_XFRM as u64)]), // tunnels
];
const NO_FAMILY_OF_SERVERS: &[Test] = &[
    IsNot(0, c::AF_UNIX as u64),
    IsNot(0, c::AF_INET as u64),
    IsNot(0, c::AF_INET6 as u64),
    IsNot(0, c::AF_NETLINK as u64),
    IsNot(0, c::AF_VSOCK as u64),
];

/// To fail with EOPNOTSUPP where a broker connects or ports are declared, as where it is switched
/// off: a socket that is not connected yet, or any more, would connect to another address without
/// connect(2), which Landlock would notice. tcp(7), TCP fast open.
#[rustfmt::skip]
pub(super) const FAST_OPEN: &[Line] = &[
    with(c::SYS_sendto, &[Has(3, c::MSG_FASTOPEN as u64)]),  // past what is declared
    with(c::SYS_sendmsg, &[Has(2, c::MSG_FASTOPEN as u64)]), // past what is declared
];

/// To fail with EPROTONOSUPPORT where TCP ports are declared: Landlock restricts the ports of TCP
/// sockets only.
#[rustfmt::skip]
pub(super) const OTHER_TRANSPORTS: &[Line] = &[
    with(c::SYS_socket, &[Is(0, c::AF_INET as u64), IsNot(2, 0), IsNot(2, TCP), IsNot(2, UDP)]),  // MPTCP, SCTP
    with(c::SYS_socket, &[Is(0, c::AF_INET6 as u64), IsNot(2, 0), IsNot(2, TCP), IsNot(2, UDP)]), // MPTCP, SCTP
    with(c::SYS_socket, &[Is(0, c::AF_INET as u64), Has(1, NO_STREAM_OR_DATAGRAM)]),  // SCTP, DCCP by their types
    with(c::SYS_socket, &[Is(0, c::AF_INET6 as u64), Has(1, NO_STREAM_OR_DATAGRAM)]), // SCTP, DCCP by their types
];
const TCP: u64 = c::IPPROTO_TCP as u64;
const UDP: u64 = c::IPPROTO_UDP as u64;
/// A bit that SOCK_SEQPACKET, SOCK_DCCP and SOCK_RDM have, and SOCK_STREAM and SOCK_DGRAM have not.
const NO_STREAM_OR_DATAGRAM: u64 = 4;

/// Need: threads of a plugin's own, and how such threads usually wait.
#[rustfmt::skip]
pub(super) const THREADS: &[Line] = &[
    any(c::SYS_epoll_create1),    // event loops
    any(c::SYS_epoll_ctl),        // the same
    any(c::SYS_epoll_pwait),      // the same
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_epoll_wait),       // the same
    any(c::SYS_eventfd2),         // waking another thread
    any(c::SYS_timerfd_create),   // timers
    any(c::SYS_timerfd_settime),  // the same
    any(c::SYS_membarrier),       // lock-free queues
];

/// Need: sockets of the Unix domain.
#[rustfmt::skip]
pub(super) const UNIX: &[Line] = &[
    with(c::SYS_socket, &[Is(0, c::AF_UNIX as u64)]),     // a connection
    with(c::SYS_socketpair, &[Is(0, c::AF_UNIX as u64)]), // between threads
    any(c::SYS_connect),          // to a server
    with(c::SYS_setsockopt, &[Is(1, c::SOL_SOCKET as u64), Is(2, c::SO_SNDTIMEO as u64)]), // deadlines
    with(c::SYS_setsockopt, &[Is(1, c::SOL_SOCKET as u64), Is(2, c::SO_SNDBUF as u64)]),   // several replies at once
    with(c::SYS_setsockopt, &[Is(1, c::SOL_SOCKET as u64), Is(2, c::SO_RCVBUF as u64)]),   // the same
    with(c::SYS_setsockopt, &[Is(1, c::SOL_SOCKET as u64), Is(2, c::SO_PASSCRED as u64)]), // who the server is
];

/// Need: the network. The families are those of TCP, UDP and of asking which of them there are.
#[rustfmt::skip]
pub(super) const INET: &[Line] = &[
    with(c::SYS_socket, &[Is(0, c::AF_INET as u64)]),     // TCP, DNS
    with(c::SYS_socket, &[Is(0, c::AF_INET6 as u64)]),    // the same
    with(c::SYS_socket, &[Is(0, c::AF_NETLINK as u64), Is(2, c::NETLINK_ROUTE as u64)]), // getaddrinfo
    any(c::SYS_bind),             // source addresses, getaddrinfo
    // Not what attaches programs of filters to sockets, joins groups, or configures firewalls and
    // tunnels.
    with(c::SYS_setsockopt, &[Is(1, c::SOL_SOCKET as u64), Is(2, c::SO_KEEPALIVE as u64)]), // dead servers are noticed
    with(c::SYS_setsockopt, &[Is(1, c::SOL_SOCKET as u64), Is(2, c::SO_REUSEADDR as u64)]), // source ports
    with(c::SYS_setsockopt, &[Is(1, c::SOL_SOCKET as u64), Is(2, c::SO_LINGER as u64)]),    // ends of connections
    with(c::SYS_setsockopt, &[Is(1, c::SOL_SOCKET as u64), Is(2, c::SO_PRIORITY as u64)]),  // kind of service
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_IP as u64), Is(2, c::IP_TOS as u64)]),       // the same
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_IP as u64), Is(2, c::IP_RECVERR as u64)]),   // the resolver
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_IP as u64), Is(2, c::IP_MTU_DISCOVER as u64)]), // the same
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_IPV6 as u64), Is(2, c::IPV6_RECVERR as u64)]), // the same
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_IPV6 as u64), Is(2, c::IPV6_V6ONLY as u64)]), // sockets of one family
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_IPV6 as u64), Is(2, c::IPV6_TCLASS as u64)]), // kind of service
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_TCP as u64), Is(2, c::TCP_NODELAY as u64)]), // requests go at once
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_TCP as u64), Is(2, c::TCP_CORK as u64)]),    // or together
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_TCP as u64), Is(2, c::TCP_QUICKACK as u64)]), // the same
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_TCP as u64), Is(2, c::TCP_KEEPIDLE as u64)]), // dead servers are noticed
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_TCP as u64), Is(2, c::TCP_KEEPINTVL as u64)]), // the same
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_TCP as u64), Is(2, c::TCP_KEEPCNT as u64)]), // the same
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_TCP as u64), Is(2, c::TCP_USER_TIMEOUT as u64)]), // the same
    with(c::SYS_setsockopt, &[Is(1, c::IPPROTO_TCP as u64), Is(2, c::TCP_FASTOPEN_CONNECT as u64)]), // curl
    any(c::SYS_sendmmsg),         // the resolver: two questions at once
    any(c::SYS_recvmmsg),         // the same
    any(c::SYS_getdents64),       // certificates
    any(c::SYS_readlinkat),       // the same
];

/// Need: programs (sh, eval, scripts of filters). What ordinary programs call without privileges;
/// no sockets but Unix ones, no namespaces, nothing that administers the machine.
#[rustfmt::skip]
pub(super) const PROGRAMS: &[Line] = &[
    // Processes.
    any(c::SYS_execve),           // the program
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_fork),             // shells that are linked statically
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_vfork),            // posix_spawn elsewhere than in glibc
    any(c::SYS_waitid),           // std, shells
    any(c::SYS_kill),             // a script that prints too much; jobs of shells. Landlock keeps it inside
    any(c::SYS_tkill),            // raise(3) of old
    any(c::SYS_tgkill),           // raise(3)
    any(c::SYS_pidfd_open),       // std, newer shells
    any(c::SYS_pidfd_send_signal),// the same
    any(c::SYS_prctl),            // names, parents' deaths: nothing that gives rights
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_arch_prctl),       // thread-local storage, at start
    any(c::SYS_setpgid),          // jobs of shells
    any(c::SYS_getpgid),          // the same
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_getpgrp),          // the same
    any(c::SYS_setsid),           // daemons, setsid(1)
    any(c::SYS_getsid),           // the same
    any(c::SYS_prlimit64),        // ulimit; never above what is left
    any(c::SYS_setrlimit),        // the same
    any(c::SYS_getrusage),        // time(1)
    any(c::SYS_times),            // times of shells
    any(c::SYS_getpriority),      // nice(1)
    any(c::SYS_setpriority),      // the same
    any(c::SYS_sched_setaffinity),// taskset(1), interpreters
    any(c::SYS_sched_getparam),   // interpreters
    any(c::SYS_sched_getscheduler), // the same
    any(c::SYS_getgroups),        // id(1), shells
    any(c::SYS_getresuid),        // the same
    any(c::SYS_getresgid),        // the same
    any(c::SYS_capget),           // ls(1) and others look
    any(c::SYS_personality),      // setarch(1), interpreters
    any(c::SYS_getcpu),           // allocators
    any(c::SYS_get_robust_list),  // runtimes
    any(c::SYS_membarrier),       // the same

    // Code: programs are mapped.
    any(c::SYS_mmap),             // libraries
    any(c::SYS_mprotect),         // relocation
    any(c::SYS_mincore),          // allocators
    any(c::SYS_mlock2),           // secrets
    any(c::SYS_pkey_alloc),       // the same
    any(c::SYS_pkey_free),        // the same
    any(c::SYS_pkey_mprotect),    // the same

    // Signals and time.
    any(c::SYS_rt_sigsuspend),    // wait of shells
    any(c::SYS_rt_sigtimedwait),  // timeout(1)
    any(c::SYS_rt_sigpending),    // interpreters
    any(c::SYS_setitimer),        // alarms
    any(c::SYS_getitimer),        // the same
    any(c::SYS_timer_create),     // timeout(1)
    any(c::SYS_timer_settime),    // the same
    any(c::SYS_timer_gettime),    // the same
    any(c::SYS_timer_delete),     // the same
    any(c::SYS_timerfd_gettime),  // event loops
    any(c::SYS_signalfd4),        // the same
    any(c::SYS_pselect6),         // the same
    any(c::SYS_epoll_pwait2),     // the same
    any(c::SYS_inotify_init1),    // tail -f
    any(c::SYS_inotify_add_watch),// the same
    any(c::SYS_inotify_rm_watch), // the same

    // Files, as far as Landlock lets them.
    any(c::SYS_fcntl),            // redirection
    any(c::SYS_ioctl),            // is it a terminal, how large
    any(c::SYS_dup),              // redirection
    any(c::SYS_dup3),             // the same
    any(c::SYS_getdents64),       // ls(1), globs
    any(c::SYS_getcwd),           // pwd(1)
    any(c::SYS_chdir),            // cd
    any(c::SYS_fchdir),           // the same
    any(c::SYS_readlinkat),       // readlink(1)
    any(c::SYS_openat2),          // newer tools
    any(c::SYS_mkdirat),          // mkdir(1)
    any(c::SYS_unlinkat),         // rm(1), rmdir(1)
    any(c::SYS_renameat),         // mv(1)
    any(c::SYS_renameat2),        // the same
    any(c::SYS_linkat),           // ln(1)
    any(c::SYS_symlinkat),        // the same
    any(c::SYS_mknodat),          // mkfifo(1)
    any(c::SYS_fchmod),           // chmod(1)
    any(c::SYS_fchmodat),         // the same
    any(c::SYS_fchmodat2),        // the same
    any(c::SYS_fchown),           // cp -p tries
    any(c::SYS_fchownat),         // the same
    any(c::SYS_utimensat),        // touch(1)
    any(c::SYS_umask),            // umask
    any(c::SYS_truncate),         // truncate(1)
    any(c::SYS_statfs),           // df(1), coreutils
    any(c::SYS_fstatfs),          // the same
    any(c::SYS_sync),             // sync(1)
    any(c::SYS_syncfs),           // the same
    any(c::SYS_readahead),        // dd(1), qemu-img(1)
    any(c::SYS_sendfile),         // copies
    any(c::SYS_tee),              // pipes
    any(c::SYS_vmsplice),         // the same
    any(c::SYS_getxattr),         // ls(1), cp(1): labels
    any(c::SYS_lgetxattr),        // the same
    any(c::SYS_fgetxattr),        // the same
    any(c::SYS_listxattr),        // the same
    any(c::SYS_llistxattr),       // the same
    any(c::SYS_flistxattr),       // the same

    // Sockets that lead nowhere else: syslog, name services, between processes.
    with(c::SYS_socket, &[Is(0, c::AF_UNIX as u64)]),     // logger(1), NSS
    with(c::SYS_socketpair, &[Is(0, c::AF_UNIX as u64)]), // interpreters
    any(c::SYS_connect),          // the same; Landlock keeps abstract names inside
    any(c::SYS_setsockopt),       // the same
    any(c::SYS_bind),             // the same
    any(c::SYS_listen),           // the same
    any(c::SYS_accept4),          // the same
    any(c::SYS_sendmmsg),         // the same
    any(c::SYS_recvmmsg),         // the same
    with(c::SYS_socket, &[Is(0, c::AF_NETLINK as u64), Is(2, c::NETLINK_ROUTE as u64)]), // getaddrinfo, of nothing

    // The same by their old names.
    #[cfg(target_arch = "x86_64")] any(c::SYS_open),         // programs of all ages
    #[cfg(target_arch = "x86_64")] any(c::SYS_creat),        // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_stat),         // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_lstat),        // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_access),       // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_readlink),     // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_getdents),     // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_mkdir),        // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_rmdir),        // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_unlink),       // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_rename),       // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_link),         // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_symlink),      // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_mknod),        // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_chmod),        // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_chown),        // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_lchown),       // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_utime),        // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_utimes),       // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_futimesat),    // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_pipe),         // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_dup2),         // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_select),       // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_pause),        // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_alarm),        // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_time),         // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_epoll_create), // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_eventfd),      // the same
    #[cfg(target_arch = "x86_64")] any(c::SYS_inotify_init), // the same
    any(c::SYS_accept),           // the same
];
