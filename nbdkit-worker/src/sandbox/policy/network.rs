//! Need: sockets that the stack makes by itself. With a broker it makes none.

#![forbid(unsafe_code)]

use libc as c;
use nbdkit_sandbox::seccomp::Test::{Has, Is, IsNot};
use nbdkit_sandbox::seccomp::{Line, any, with};

const SOCKET: u64 = c::SOL_SOCKET as u64;
const IP: u64 = c::IPPROTO_IP as u64;
const IPV6: u64 = c::IPPROTO_IPV6 as u64;
const TCP: u64 = c::IPPROTO_TCP as u64;
const UDP: u64 = c::IPPROTO_UDP as u64;
/// A bit that SOCK_SEQPACKET, SOCK_DCCP and SOCK_RDM have, and SOCK_STREAM and SOCK_DGRAM have not.
const NO_STREAM_OR_DATAGRAM: u64 = 4;

/// Sockets of the Unix domain.
#[rustfmt::skip]
pub(in crate::sandbox) const UNIX: &[Line] = &[
    with(c::SYS_socket, &[Is(0, c::AF_UNIX as u64)]),     // nbd plugin, socket=
    with(c::SYS_socketpair, &[Is(0, c::AF_UNIX as u64)]), // libcurl: one thread wakes another
    any(c::SYS_connect),          // to the server, or a name server
    with(c::SYS_setsockopt, &[Is(1, SOCKET), Is(2, c::SO_SNDTIMEO as u64)]), // a server that does not read is not waited for
    with(c::SYS_setsockopt, &[Is(1, SOCKET), Is(2, c::SO_SNDBUF as u64)]),   // several requests leave at once
    with(c::SYS_setsockopt, &[Is(1, SOCKET), Is(2, c::SO_RCVBUF as u64)]),   // several replies arrive at once
    with(c::SYS_setsockopt, &[Is(1, SOCKET), Is(2, c::SO_PASSCRED as u64)]), // libraries that ask who the server is
];

/// The network. The families are those of TCP, UDP and of asking which of them the host has. Not
/// the options that attach filter programs to sockets, join groups, or configure firewalls and
/// tunnels.
#[rustfmt::skip]
pub(in crate::sandbox) const INET: &[Line] = &[
    with(c::SYS_socket, &[Is(0, c::AF_INET as u64)]),     // TCP; glibc res_send: DNS
    with(c::SYS_socket, &[Is(0, c::AF_INET6 as u64)]),    // TCP; glibc res_send: DNS
    with(c::SYS_socket, &[Is(0, c::AF_NETLINK as u64), Is(2, c::NETLINK_ROUTE as u64)]), // getaddrinfo, check_pf: addresses of the host
    any(c::SYS_bind),             // libcurl: source addresses; getaddrinfo, check_pf
    with(c::SYS_setsockopt, &[Is(1, SOCKET), Is(2, c::SO_KEEPALIVE as u64)]),       // dead servers are noticed
    with(c::SYS_setsockopt, &[Is(1, SOCKET), Is(2, c::SO_REUSEADDR as u64)]),       // libcurl: a range of source ports
    with(c::SYS_setsockopt, &[Is(1, SOCKET), Is(2, c::SO_LINGER as u64)]),          // libnfs, libiscsi: how a connection ends
    with(c::SYS_setsockopt, &[Is(1, SOCKET), Is(2, c::SO_PRIORITY as u64)]),        // libcurl, libssh: kind of service
    with(c::SYS_setsockopt, &[Is(1, IP), Is(2, c::IP_TOS as u64)]),                 // libssh: kind of service
    with(c::SYS_setsockopt, &[Is(1, IP), Is(2, c::IP_RECVERR as u64)]),             // glibc res_send: who refuses is not waited for
    with(c::SYS_setsockopt, &[Is(1, IP), Is(2, c::IP_MTU_DISCOVER as u64)]),        // res_send of other C libraries: no forged fragments
    with(c::SYS_setsockopt, &[Is(1, IPV6), Is(2, c::IPV6_RECVERR as u64)]),         // glibc res_send: who refuses is not waited for
    with(c::SYS_setsockopt, &[Is(1, IPV6), Is(2, c::IPV6_V6ONLY as u64)]),          // libcurl: sockets of one family
    with(c::SYS_setsockopt, &[Is(1, IPV6), Is(2, c::IPV6_TCLASS as u64)]),          // libssh: kind of service
    with(c::SYS_setsockopt, &[Is(1, TCP), Is(2, c::TCP_NODELAY as u64)]),           // requests leave at once
    with(c::SYS_setsockopt, &[Is(1, TCP), Is(2, c::TCP_CORK as u64)]),              // libraries: header and payload in one segment
    with(c::SYS_setsockopt, &[Is(1, TCP), Is(2, c::TCP_QUICKACK as u64)]),          // libraries: no delayed acknowledgements
    with(c::SYS_setsockopt, &[Is(1, TCP), Is(2, c::TCP_KEEPIDLE as u64)]),          // how soon dead servers are noticed
    with(c::SYS_setsockopt, &[Is(1, TCP), Is(2, c::TCP_KEEPINTVL as u64)]),         // how often silent servers are probed
    with(c::SYS_setsockopt, &[Is(1, TCP), Is(2, c::TCP_KEEPCNT as u64)]),           // how many probes may be lost
    with(c::SYS_setsockopt, &[Is(1, TCP), Is(2, c::TCP_USER_TIMEOUT as u64)]),      // how long unacknowledged data is kept
    with(c::SYS_setsockopt, &[Is(1, TCP), Is(2, c::TCP_FASTOPEN_CONNECT as u64)]),  // libcurl, CURLOPT_TCP_FASTOPEN
    any(c::SYS_sendmmsg),         // glibc res_send: parallel A and AAAA queries
    any(c::SYS_recvmmsg),         // c-ares, libcurl over QUIC: several packets at once
    any(c::SYS_getdents64),       // OpenSSL: a directory of certificates
    any(c::SYS_readlinkat),       // GnuTLS: links in a directory of certificates
];

/// To fail with EOPNOTSUPP where a broker connects or ports are declared, as where it is switched
/// off: a socket that is not connected yet, or any more, would connect to another address without
/// connect(2), which Landlock would notice. tcp(7), TCP fast open.
#[rustfmt::skip]
pub(in crate::sandbox) const FAST_OPEN: &[Line] = &[
    with(c::SYS_sendto, &[Has(3, c::MSG_FASTOPEN as u64)]),  // past what is declared
    with(c::SYS_sendmsg, &[Has(2, c::MSG_FASTOPEN as u64)]), // past what is declared
];

/// To fail with EPROTONOSUPPORT where TCP ports are declared: Landlock restricts the ports of TCP
/// sockets only.
#[rustfmt::skip]
pub(in crate::sandbox) const OTHER_TRANSPORTS: &[Line] = &[
    with(c::SYS_socket, &[Is(0, c::AF_INET as u64), IsNot(2, 0), IsNot(2, TCP), IsNot(2, UDP)]),  // MPTCP, SCTP
    with(c::SYS_socket, &[Is(0, c::AF_INET6 as u64), IsNot(2, 0), IsNot(2, TCP), IsNot(2, UDP)]), // MPTCP, SCTP
    with(c::SYS_socket, &[Is(0, c::AF_INET as u64), Has(1, NO_STREAM_OR_DATAGRAM)]),  // SCTP, DCCP by their types
    with(c::SYS_socket, &[Is(0, c::AF_INET6 as u64), Has(1, NO_STREAM_OR_DATAGRAM)]), // SCTP, DCCP by their types
];
