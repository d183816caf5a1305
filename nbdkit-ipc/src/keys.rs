//! TLS: the worker's requests to the listener, which alone has the keys, and the configuration.
//!
//! The private key of the certificate never leaves the listener, which signs. A pre-shared key has
//! to be known to the process that speaks TLS with it, so a worker gets the key of the identity
//! that its client has sent, and no other.

#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::KeyId;

/// Longest message to be signed that can be well-formed, bytes. RFC 8446, 4.4.3; RFC 8422, 5.4.
pub const MAX_SIGNED: usize = 256;
/// Longest identity of a pre-shared key, bytes.
pub const MAX_IDENTITY: usize = 256;
/// Longest pre-shared key, bytes.
pub const MAX_PSK: usize = 256;

/// Sent at most once for each connection, before its handshake is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyRequest {
    /// Sign the server's part of a handshake. Answer: [`KeyAnswer::Signature`].
    Sign {
        /// The key to sign with.
        key: KeyId,
        /// TLS SignatureScheme, one of those in [`Credentials::Certificates`].
        scheme: u16,
        /// What to sign, before hashing: the content of CertificateVerify (RFC 8446, 4.4.3) or of
        /// the signature in ServerKeyExchange (RFC 8422, 5.4).
        message: Vec<u8>,
    },
    /// The pre-shared key of an identity. Answer: [`KeyAnswer::Psk`], or [`KeyAnswer::Denied`] if
    /// there is none.
    Psk {
        /// As the client sent it, at most [`MAX_IDENTITY`] bytes: hostile.
        identity: Vec<u8>,
    },
}

impl KeyRequest {
    /// Checks that there is such a key.
    ///
    /// # Errors
    /// The violation, for the log.
    pub fn check_id(&self) -> Result<(), &'static str> {
        match self {
            KeyRequest::Sign { key, .. } => key.check(),
            KeyRequest::Psk { .. } => Ok(()),
        }
    }
}

/// The listener's answer to a [`KeyRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyAnswer {
    /// The signature, encoded as TLS has it.
    Signature(Vec<u8>),
    /// The key.
    Psk(Secret),
    /// There is no such key, or signing has failed.
    Denied,
}

/// Secret bytes, which `Debug` does not print.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The configuration of TLS. Certificates and revocation lists follow in [`TlsPiece`]s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// Clients without TLS are refused (`--tls=require`).
    pub require: bool,
    /// Clients have to show a certificate that our authority has signed (`--tls-verify-peer`).
    pub verify_peer: bool,
    /// Clients are refused, too, if their authority's revocation list is out of date
    /// (`--tls-crl-expiry=enforce`).
    pub enforce_crl_expiry: bool,
    /// What the server authenticates itself with.
    pub credentials: Credentials,
    /// What may be negotiated (`--tls-priority`).
    pub algorithms: Algorithms,
}

/// What may be negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Algorithms {
    /// TLS 1.2.
    pub tls_1_2: bool,
    /// TLS 1.3.
    pub tls_1_3: bool,
    /// AES-128-GCM.
    pub aes_128_gcm: bool,
    /// AES-256-GCM.
    pub aes_256_gcm: bool,
    /// CHACHA20-POLY1305.
    pub chacha20_poly1305: bool,
    /// Pre-shared keys without an exchange of ephemeral keys, with TLS 1.2.
    pub static_psk: bool,
}

impl Algorithms {
    /// All of them.
    pub const ALL: Algorithms = Algorithms::each(true);
    /// None of them.
    pub const NONE: Algorithms = Algorithms::each(false);

    const fn each(on: bool) -> Algorithms {
        Algorithms {
            tls_1_2: on,
            tls_1_3: on,
            aes_128_gcm: on,
            aes_256_gcm: on,
            chacha20_poly1305: on,
            static_psk: on,
        }
    }
}

/// What the server authenticates itself with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credentials {
    /// A certificate.
    Certificates {
        /// The key of the certificate.
        key: KeyId,
        /// The TLS SignatureSchemes of the key, the preferred one first.
        schemes: Vec<u16>,
    },
    /// Pre-shared keys.
    PreSharedKeys,
}

/// Longest piece, bytes: certificate lists and revocation lists may be longer than a packet.
pub const MAX_PIECE: usize = 128 * 1024;

/// Part of a certificate or revocation list. All that this carries is public.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsPiece {
    /// The list that it is part of.
    pub kind: PieceKind,
    /// DER, at most [`MAX_PIECE`] bytes.
    pub bytes: Vec<u8>,
    /// Whether it is the last piece of the list.
    pub last: bool,
}

/// The list that a [`TlsPiece`] is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PieceKind {
    /// The server's certificate first, then those that lead to its authority.
    Chain,
    /// A certificate of an authority for clients.
    Authority,
    /// A revocation list.
    Revocation,
}
