//! Settings of a client's socket that make it faster. Without them it is served all the same.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::fd::OwnedFd;

use nbdkit_ipc::messages::{Peer, PeerAddress};
use nix::sys::socket::{setsockopt, sockopt};

/// What a Unix socket may hold that its client has not read, bytes. The kernel counts twice as
/// much, and allows no more than net.core.wmem_max. Of its default, 208 KiB, no reply to a read of
/// 256 KiB has room, so that server and client sleep once for each.
const UNIX_SEND_BUFFER: usize = 512 << 10;

/// How TCP decides when to send to a client on this machine: at once. A path that neither loses nor
/// queues has nothing to be found out about, and where the system has BBR, which sends by timers at
/// the rate that it takes the path for, a client that is quicker than these is kept waiting. This
/// one every kernel has and every process may choose. tcp(7), TCP_CONGESTION.
const WITHIN_MACHINE: &str = "reno";

/// Sets what is good for the socket of this client.
pub(crate) fn tune(client: &OwnedFd, peer: &Peer) {
    // Each may fail.
    match &peer.address {
        PeerAddress::Inet(address) => {
            let _ = setsockopt(client, sockopt::TcpNoDelay, &true);
            // A client of an IPv6 socket that came by IPv4 has an address of both.
            if address.ip().to_canonical().is_loopback() {
                let name = OsString::from(WITHIN_MACHINE);
                let _ = setsockopt(client, sockopt::TcpCongestion, &name);
            }
        }
        PeerAddress::Unix => {
            let _ = setsockopt(client, sockopt::SndBuf, &UNIX_SEND_BUFFER);
        }
        PeerAddress::Vsock { .. } | PeerAddress::Unknown => {}
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::getsockopt;

    use super::*;
    use crate::sockets::peer;

    #[test]
    fn a_client_on_this_machine_is_sent_to_at_once() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            // The machine may have no IPv6.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            let host = if address.starts_with("[::1]") { "::1" } else { "127.0.0.1" };
            let Ok(_client) = TcpStream::connect((host, port)) else { continue };
            let accepted = OwnedFd::from(listener.accept().unwrap().0);
            tune(&accepted, &peer(&accepted));
            let name = getsockopt(&accepted, sockopt::TcpCongestion).unwrap();
            let name = name.to_string_lossy();
            assert_eq!(name.trim_end_matches('\0'), WITHIN_MACHINE, "{address}");
            assert!(getsockopt(&accepted, sockopt::TcpNoDelay).unwrap());
        }
    }

    #[test]
    fn a_unix_socket_has_room_for_a_reply() {
        let (accepted, _client) = UnixStream::pair().unwrap();
        let before = getsockopt(&accepted, sockopt::SndBuf).unwrap();
        let accepted = OwnedFd::from(accepted);
        tune(&accepted, &Peer { address: PeerAddress::Unix, ..Peer::default() });
        let most: usize =
            std::fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap().trim().parse().unwrap();
        let wanted = 2 * UNIX_SEND_BUFFER.min(most);
        assert_eq!(getsockopt(&accepted, sockopt::SndBuf).unwrap(), wanted, "before: {before}");
    }
}
