//! Whose bandwidth it is: clients that have the same one share a bucket.

use std::net::IpAddr;

use nbdkit_api::client::{Peer, PeerAddress};

/// Where a client comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) enum Address {
    /// Without a name: one for all of them.
    #[default]
    Unknown,
    /// An IPv4 address.
    Host(IpAddr),
    /// The first half of an IPv6 address, of which one host may have as many as it likes.
    /// RFC 4291, section 2.5.4.
    Network(u64),
    /// A user of this machine.
    User(u32),
    /// A virtual machine.
    Vsock(u32),
}

impl Address {
    pub(super) fn of(peer: &Peer) -> Address {
        match &peer.address {
            PeerAddress::Inet(address) => match address.ip().to_canonical() {
                IpAddr::V6(ip) => Address::Network((ip.to_bits() >> 64) as u64),
                ip @ IpAddr::V4(_) => Address::Host(ip),
            },
            PeerAddress::Unix => {
                peer.credentials.map_or(Address::Unknown, |(_, user, _)| Address::User(user))
            }
            PeerAddress::Vsock { cid, .. } => Address::Vsock(*cid),
            PeerAddress::Unknown => Address::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_a_network_a_user_or_a_machine() {
        let inet = |text: &str| {
            let address = PeerAddress::Inet(text.parse().unwrap());
            Address::of(&Peer { address, ..Peer::default() })
        };
        assert_eq!(inet("192.0.2.1:5"), inet("[::ffff:192.0.2.1]:6"));
        assert_ne!(inet("192.0.2.1:5"), inet("192.0.2.2:5"));
        assert_eq!(inet("[2001:db8::1]:5"), inet("[2001:db8::ffff:1]:6"));
        assert_ne!(inet("[2001:db8::1]:5"), inet("[2001:db8:0:1::1]:5"));
        let user = |credentials| {
            Address::of(&Peer { address: PeerAddress::Unix, credentials, ..Peer::default() })
        };
        assert_eq!(user(Some((1, 1000, 5))), user(Some((2, 1000, 6))));
        assert_ne!(user(Some((1, 1000, 5))), user(None));
        let vsock = |cid, port| {
            let address = PeerAddress::Vsock { cid, port };
            Address::of(&Peer { address, ..Peer::default() })
        };
        assert_eq!(vsock(3, 1), vsock(3, 2));
    }
}
