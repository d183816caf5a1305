//! Need of every stack: a client's socket, the control channel, waiting for either.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::Test::{Is, Lacks};
use nbdkit_sandbox::seccomp::{Line, any, with};

/// Flags of an open file that would change what the next client reads and writes, which may be
/// given this open file description.
const FOR_GOOD: u64 = (c::O_APPEND | c::O_DIRECT | c::O_NOATIME) as u64;

#[rustfmt::skip]
pub(super) const CLIENT: &[Line] = &[
    // Requests, replies, messages.
    any(c::SYS_recvfrom),         // connection: requests
    any(c::SYS_sendto),           // connection: replies; report_refusals: the message of a refused process
    any(c::SYS_recvmsg),          // control channel: messages; template: descriptors of clients
    any(c::SYS_sendmsg),          // template: descriptors for the listener; see PASSING
    any(c::SYS_read),             // client on standard input (-s); script plugin: pipes; signalfd
    any(c::SYS_write),            // client on standard output (-s); log filter; eventfd
    any(c::SYS_writev),           // sender: header and payload of a reply at once
    any(c::SYS_splice),           // sender: a large read without a copy
    any(c::SYS_pipe2),            // splice: the pipe between disk and socket
    any(c::SYS_shutdown),         // disconnect; end_client, when the listener sends Quiesce
    with(c::SYS_setitimer, &[Is(0, c::ITIMER_REAL as u64)]), // end_client: how often a client is looked at
    any(c::SYS_close),            // every descriptor that is dropped
    any(c::SYS_close_range),      // fork_worker: descriptors that are kept for other clients

    // Facts about the socket.
    any(c::SYS_getsockopt),       // whether the client's is a stream; how much its queue has
    any(c::SYS_getsockname),      // nbdkit_peer_name and ip filter: which address was reached
    any(c::SYS_getpeername),      // nbdkit_peer_name: who the client is
    with(c::SYS_setsockopt, &[Is(1, c::SOL_SOCKET as u64), Is(2, c::SO_RCVTIMEO as u64)]), // deadline of the handshake
    with(c::SYS_ioctl, &[Is(1, c::FIONBIO)]),                // std set_nonblocking
    with(c::SYS_ioctl, &[Is(1, c::FIONREAD)]),               // reader: bytes that wait in the socket
    with(c::SYS_ioctl, &[Is(1, c::TCGETS)]),                 // std is_terminal, for standard error

    // Waiting.
    #[cfg(target_arch = "x86_64")]
    any(c::SYS_poll),             // deadline of the handshake; delays that end with the client
    any(c::SYS_ppoll),            // glibc poll(3) on machines without a poll system call

    // Descriptors. Not F_SETOWN, F_SETSIG: signals to other processes.
    with(c::SYS_fcntl, &[Is(1, c::F_GETFD as u64)]),         // debug builds of std check before close
    with(c::SYS_fcntl, &[Is(1, c::F_SETFD as u64)]),         // SharedFile: close-on-exec
    with(c::SYS_fcntl, &[Is(1, c::F_GETFL as u64)]),         // std and nix before they change flags; file plugin: is it writable
    with(c::SYS_fcntl, &[Is(1, c::F_SETFL as u64), Lacks(2, FOR_GOOD)]), // O_NONBLOCK; await_message: O_ASYNC
    with(c::SYS_fcntl, &[Is(1, c::F_DUPFD_CLOEXEC as u64)]), // file plugin, fd=: a descriptor for each client
    with(c::SYS_fcntl, &[Is(1, c::F_SETPIPE_SZ as u64)]),    // splice: fewer calls for a large read
    with(c::SYS_fcntl, &[Is(1, c::F_GETPIPE_SZ as u64)]),    // splice: what an unprivileged user was given
];
