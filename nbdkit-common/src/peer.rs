//! Who a client is: found out by the listener when it accepts, sent to the worker, and shown to
//! plugins and filters (`nbdkit_peer_*`).

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A client's address and credentials, as of accept(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its address.
    pub address: PeerAddress,
    /// Process, user and group id; Unix domain sockets only.
    pub credentials: Option<(i32, u32, u32)>,
    /// Its SELinux label or the like; `None` where the kernel has none.
    pub security_context: Option<String>,
}

impl Default for Peer {
    fn default() -> Peer {
        Peer { address: PeerAddress::Unknown, credentials: None, security_context: None }
    }
}

/// A client's address. The order of the variants is the one on the control channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerAddress {
    /// TCP.
    Inet(SocketAddr),
    /// A Unix domain socket; clients rarely bind a path of their own.
    Unix,
    /// AF_VSOCK.
    Vsock {
        /// Context id of the virtual machine.
        cid: u32,
        /// Its port.
        port: u32,
    },
    /// Standard input and output, or a socket family that has no address for us.
    Unknown,
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerAddress::Inet(address) => address.fmt(f),
            PeerAddress::Unix => f.write_str("unix"),
            PeerAddress::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            PeerAddress::Unknown => f.write_str("stdin"),
        }
    }
}

/// What TLS established about the client; empty strings where there is nothing to tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsPeer {
    /// Subject of the client's certificate, RFC 4514.
    pub dn: String,
    /// Its issuer.
    pub issuer_dn: String,
}
