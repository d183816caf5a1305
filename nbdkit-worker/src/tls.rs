//! TLS as a worker speaks it. Set up by the template, so that connections inherit what takes long;
//! no key of the server is here or ever comes here but the pre-shared one of the identity that a
//! client has named.
//!
//! - `certificates`: with rustls; `psk`: with OpenSSL, since rustls has no pre-shared keys, in a
//!   program of its own
//! - `psk_client`: the other end of the latter, for the nbd plugin; `pipes`: what OpenSSL reads and
//!   writes
//! - `session`: what both are to the rest: bytes in, bytes out, no sockets; `name`: who a
//!   certificate is about

#![forbid(unsafe_code)]

mod certificates;
mod name;
mod pipes;
mod psk;
mod psk_client;
mod session;
mod verifier;

use std::sync::Arc;

use nbdkit_api::{Error, Result};
use nbdkit_ipc::keys::{self, Algorithms, Credentials, PieceKind, TlsPiece};

use crate::authority::Authority;
use certificates::Certificates;
use psk::PreSharedKeys;

pub(crate) use name::{issuer, subject};
pub(crate) use session::{Failure, Session, Sessions};

/// Certificates and revocation lists, DER.
#[derive(Debug, Default)]
pub(crate) struct Material {
    chain: Vec<Vec<u8>>,
    authorities: Vec<Vec<u8>>,
    revocations: Vec<Vec<u8>>,
    /// What has begun to come.
    partial: Vec<u8>,
}

impl Material {
    /// Takes the next piece.
    pub(crate) fn add(&mut self, piece: TlsPiece) {
        self.partial.extend(piece.bytes);
        if !piece.last {
            return;
        }
        let list = match piece.kind {
            PieceKind::Chain => &mut self.chain,
            PieceKind::Authority => &mut self.authorities,
            PieceKind::Revocation => &mut self.revocations,
        };
        list.push(std::mem::take(&mut self.partial));
    }
}

/// TLS of this server, when it is on.
#[derive(Debug)]
pub(crate) struct Tls {
    /// Nothing is served without it.
    pub(crate) require: bool,
    sessions: Box<dyn Sessions>,
}

/// Makes the library behind sessions ready.
pub(crate) type MakeSessions = fn(Algorithms) -> Result<Box<dyn Sessions>>;

/// Sessions with pre-shared keys. Whatever calls this is linked with OpenSSL.
///
/// # Errors
/// The library's.
pub(crate) fn pre_shared_keys(algorithms: Algorithms) -> Result<Box<dyn Sessions>> {
    Ok(Box::new(PreSharedKeys::new(algorithms)?))
}

/// Has the nbd plugin speak TLS with pre-shared keys. Whatever calls this is linked with OpenSSL.
pub(crate) fn lend_pre_shared_keys() {
    nbdkit_plugins::nbd::use_pre_shared_keys(psk_client::session);
}

impl Tls {
    /// From what the listener has loaded; `pre_shared_keys` if this program has them.
    ///
    /// # Errors
    /// The certificates cannot be used; this is the program without pre-shared keys.
    pub(crate) fn new(
        tls: &keys::Tls,
        material: Material,
        pre_shared_keys: Option<MakeSessions>,
    ) -> Result<Tls> {
        let sessions: Box<dyn Sessions> = match &tls.credentials {
            Credentials::Certificates { key, schemes } => {
                Box::new(Certificates::new(tls, *key, schemes, material)?)
            }
            Credentials::PreSharedKeys => {
                let make = pre_shared_keys
                    .ok_or_else(|| Error::msg("TLS: this worker has no pre-shared keys"))?;
                make(tls.algorithms)?
            }
        };
        Ok(Tls { require: tls.require, sessions })
    }

    /// A session for one connection, which has yet to shake hands.
    ///
    /// # Errors
    /// Out of memory or the like.
    pub(crate) fn session(
        &self,
        authority: Arc<dyn Authority>,
    ) -> std::result::Result<Box<dyn Session>, Failure> {
        self.sessions.session(authority)
    }
}
