//! A client's address, credentials and label, as the kernel reports them. Nothing is read from the
//! client.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use nbdkit_ipc::messages::{Peer, PeerAddress};
use nix::sys::socket::{
    AddressFamily, SockaddrLike, SockaddrStorage, UnixCredentials, getpeername, getsockopt, sockopt,
};

/// The peer of `socket`. What the kernel does not report is left out; a descriptor that is no
/// socket has no address.
pub(crate) fn peer(socket: impl AsFd) -> Peer {
    let socket = socket.as_fd();
    let address = address(socket);
    let credentials = (address == PeerAddress::Unix)
        .then(|| getsockopt(&socket, sockopt::PeerCredentials).ok())
        .flatten()
        .map(|peer: UnixCredentials| (peer.pid(), peer.uid(), peer.gid()));
    let security_context = crate::sys::socket::peer_label(socket)
        .map(|label| String::from_utf8_lossy(&label).into_owned());
    Peer { address, credentials, security_context }
}

fn address(socket: impl AsFd) -> PeerAddress {
    let Ok(name) = getpeername::<SockaddrStorage>(socket.as_fd().as_raw_fd()) else {
        return PeerAddress::Unknown;
    };
    match name.family() {
        Some(AddressFamily::Inet) => name
            .as_sockaddr_in()
            .map_or(PeerAddress::Unknown, |name| PeerAddress::Inet((*name).into())),
        Some(AddressFamily::Inet6) => name
            .as_sockaddr_in6()
            .map_or(PeerAddress::Unknown, |name| PeerAddress::Inet((*name).into())),
        Some(AddressFamily::Unix) => PeerAddress::Unix,
        Some(AddressFamily::Vsock) => name.as_vsock_addr().map_or(PeerAddress::Unknown, |name| {
            PeerAddress::Vsock { cid: name.cid(), port: name.port() }
        }),
        _ => PeerAddress::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    #[test]
    fn tcp_peers_have_an_address_and_no_credentials() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(any) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (socket, address) = listener.accept().unwrap();
            let peer = peer(&socket);
            assert_eq!(peer.address, PeerAddress::Inet(address));
            assert_eq!(address, client.local_addr().unwrap());
            assert_eq!(peer.credentials, None);
        }
    }

    #[test]
    fn unix_peers_have_credentials() {
        let (socket, _client) = UnixStream::pair().unwrap();
        let peer = peer(&socket);
        assert_eq!(peer.address, PeerAddress::Unix);
        let (pid, uid, _) = peer.credentials.unwrap();
        assert_eq!(pid, std::process::id() as i32);
        assert_eq!(uid, nix::unistd::geteuid().as_raw());
    }

    #[test]
    fn a_descriptor_that_is_no_socket_has_no_address() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(
            peer(&file),
            Peer { address: PeerAddress::Unknown, credentials: None, security_context: None }
        );
    }
}
