//! Which connections count as those of one peer, for limits and quotas.

#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};

use nbdkit_ipc::messages::{Peer, PeerAddress};

/// A peer whose connections are counted together. An IPv6 host owns the whole of a /64, so that is
/// one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PeerKey {
    V4(u32),
    V6Network(u64),
    User(u32),
    VirtualMachine(u32),
    Unknown,
}

impl From<&Peer> for PeerKey {
    fn from(peer: &Peer) -> PeerKey {
        match (&peer.address, peer.credentials) {
            (PeerAddress::Inet(address), _) => match address.ip().to_canonical() {
                IpAddr::V4(ip) => PeerKey::V4(ip.to_bits()),
                IpAddr::V6(ip) => PeerKey::V6Network((Ipv6Addr::to_bits(ip) >> 64) as u64),
            },
            (PeerAddress::Unix, Some((_, uid, _))) => PeerKey::User(uid),
            (PeerAddress::Vsock { cid, .. }, _) => PeerKey::VirtualMachine(*cid),
            (PeerAddress::Unix | PeerAddress::Unknown, _) => PeerKey::Unknown,
        }
    }
}
