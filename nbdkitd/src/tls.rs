//! The listener's part of TLS. It loads certificates and keys at start-up, as the user who started
//! it, and keeps the secret part. Workers speak TLS and ask the listener to sign; it never reads a
//! byte that a client sent.
//!
//! - `file`: reading one; `certificates`: the files and where they are looked for; `revocations`:
//!   when a list is out of date; `scalar`: keys as GnuTLS writes them; `psk`: the file of
//!   pre-shared keys
//! - `keys`: the secret part, and answers to workers; `transcript`: what may be signed

#![forbid(unsafe_code)]

mod certificates;
mod file;
#[cfg(test)]
mod handshakes;
mod keys;
mod priority;
mod psk;
mod revocations;
mod scalar;
mod transcript;

use std::path::Path;

use jiff::Timestamp;
use nbdkit_ipc::KeyId;
use nbdkit_ipc::keys::{Algorithms, Credentials, MAX_PIECE, PieceKind, TlsPiece};
use nbdkit_sandbox::process::forbid_dumps;
use thiserror::Error;

use crate::cli::command_line::{self, CrlExpiry, Options, TlsMode, TlsVersion};
use crate::log::Log;
use certificates::{Certificates, CertificatesError, Missing};

pub(crate) use keys::{Checked, Keys};
use priority::PriorityError;
use psk::PskError;

/// The message where nbdkit(1) has a warning or an error of several lines.
const REMEDY: &str = "Try --tls-certificates=/path/to/certificates, or see \"Default location of certificates\" in nbdkit-tls(1)";

/// Why TLS cannot be had as the options want it.
#[derive(Debug, Error)]
pub(crate) enum TlsError {
    /// `--tls-priority`.
    #[error(
        "--tls-priority={text}: {why}: TLS 1.2 and 1.3 with authenticated encryption is all there is"
    )]
    Priority { text: String, why: PriorityError },
    /// `--tls-min-version`.
    #[error("--tls-min-version=1.3: --tls-priority leaves out TLS 1.3")]
    MinVersion,
    /// `--tls-psk`.
    #[error(transparent)]
    Psk(#[from] PskError),
    /// `--tls-certificates`, or where certificates usually are.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// There are none.
    #[error("--tls=require but could not load TLS certificates: {0}. {REMEDY}")]
    Required(Missing),
    /// The keys cannot be kept out of core files.
    #[error(transparent)]
    Dumpable(nbdkit_sandbox::Error),
}

/// For the fuzz targets: whether a worker gets a signature of this.
#[cfg(any(test, feature = "fuzz"))]
pub fn is_signed(scheme: u16, message: &[u8]) -> bool {
    transcript::check(scheme, message).is_ok()
}

/// For the fuzz targets: whether this is a file of pre-shared keys.
#[cfg(any(test, feature = "fuzz"))]
pub fn is_key_file(bytes: &[u8]) -> bool {
    psk::parse(bytes).is_ok()
}

/// TLS that is on.
#[derive(Debug)]
pub(crate) struct Tls {
    /// `On` or `Require`.
    pub(crate) mode: TlsMode,
    /// The secret part.
    pub(crate) keys: Keys,
    /// The configuration for the template.
    pub(crate) configure: nbdkit_ipc::keys::Tls,
    /// Certificates and revocation lists for the template.
    pub(crate) pieces: Vec<TlsPiece>,
}

/// Loads what the options name; `None` if TLS is off. nbdkit-tls(1), "Default TLS behaviour".
///
/// # Errors
/// TLS is required and there are no keys, or files are there and cannot be used.
pub(crate) fn load(
    all: &Options,
    root_directory: &Path,
    log: &Log,
) -> Result<Option<Tls>, TlsError> {
    let options = &all.tls;
    if options.mode == Some(TlsMode::Off) {
        return Ok(None);
    }
    let algorithms = match &options.priority {
        Some(text) => {
            priority::parse(text).map_err(|why| TlsError::Priority { text: text.clone(), why })?
        }
        None => Algorithms::ALL,
    };
    let algorithms = at_least(options.min_version, algorithms)?;
    if all.debug_flags.iter().any(|flag| flag.is_server() && flag.flag == "tls.log") {
        log.error("-D nbdkit.tls.log: there is no GnuTLS whose log it could be; see -D nbdkit.tls.session=1");
    }
    let mode = options.mode.unwrap_or(TlsMode::On);
    let require = mode == TlsMode::Require;
    let loaded = if let Some(file) = &options.psk {
        log.debug(|| "TLS enabled using: Pre-Shared Keys (PSK)".to_owned());
        Tls {
            mode,
            keys: Keys::Psk(psk::load(Path::new(file))?),
            configure: nbdkit_ipc::keys::Tls {
                require,
                verify_peer: false,
                enforce_crl_expiry: false,
                credentials: Credentials::PreSharedKeys,
                algorithms,
            },
            pieces: Vec::new(),
        }
    } else {
        let given = options.certificates.as_ref().map(Path::new);
        let (directory, certificates) = match certificates::find(given, root_directory)? {
            Ok(found) => found,
            Err(missing) => return without(options, missing, log).map(|()| None),
        };
        log.debug(|| format!("successfully loaded TLS certificates from {}", directory.display()));
        log.debug(|| "TLS enabled using: X.509 certificates".to_owned());
        if options.verify_peer {
            warn_of_overdue_lists(options.crl_expiry, &certificates, log);
        }
        with_certificates(mode, options, certificates, algorithms)
    };
    // Keys must not reach a core file, nor another process of the same user.
    forbid_dumps().map_err(TlsError::Dumpable)?;
    Ok(Some(loaded))
}

fn with_certificates(
    mode: TlsMode,
    options: &command_line::Tls,
    from: Certificates,
    algorithms: Algorithms,
) -> Tls {
    let verify_peer = options.verify_peer;
    let mut pieces = Vec::new();
    for der in &from.chain {
        cut(PieceKind::Chain, der, &mut pieces);
    }
    if verify_peer {
        for der in &from.authorities {
            cut(PieceKind::Authority, der, &mut pieces);
        }
        for der in &from.revocations {
            cut(PieceKind::Revocation, der, &mut pieces);
        }
    }
    let schemes = keys::schemes(&*from.key);
    Tls {
        mode,
        keys: Keys::Certificate(from.key),
        configure: nbdkit_ipc::keys::Tls {
            require: mode == TlsMode::Require,
            verify_peer,
            enforce_crl_expiry: options.crl_expiry == CrlExpiry::Enforce,
            credentials: Credentials::Certificates { key: KeyId::ONLY, schemes },
            algorithms,
        },
        pieces,
    }
}

/// `--tls-min-version`.
fn at_least(
    version: Option<TlsVersion>,
    mut algorithms: Algorithms,
) -> Result<Algorithms, TlsError> {
    if version == Some(TlsVersion::V1_3) {
        if !algorithms.tls_1_3 {
            return Err(TlsError::MinVersion);
        }
        algorithms.tls_1_2 = false;
    }
    Ok(algorithms)
}

/// Warns of revocation lists whose next update is overdue, since GnuTLS and rustls use them without
/// a warning.
fn warn_of_overdue_lists(expiry: CrlExpiry, certificates: &Certificates, log: &Log) {
    let follows = match expiry {
        CrlExpiry::Warn => "certificates that were revoked later are let in",
        CrlExpiry::Enforce => "clients of its authority are refused",
    };
    for der in &certificates.revocations {
        if let Some(due) = revocations::next_update(der)
            && due <= Timestamp::now()
        {
            log.error(&format!("warning: ca-crl.pem: the next list was due at {due}: {follows}"));
        }
    }
}

/// There are no certificates: an error, a warning or nothing.
fn without(options: &command_line::Tls, missing: Missing, log: &Log) -> Result<(), TlsError> {
    match options.mode {
        Some(TlsMode::Require) => Err(TlsError::Required(missing)),
        Some(TlsMode::On) => {
            log.error(&format!(
                "warning: --tls=on but could not load TLS certificates: {missing}. TLS is disabled. {REMEDY}"
            ));
            Ok(())
        }
        // nbdkit has no message here; a user who gives one of these options expects TLS.
        _ if options.certificates.is_some() || options.verify_peer => {
            log.error(&format!(
                "warning: could not load TLS certificates: {missing}. TLS is disabled. {REMEDY}"
            ));
            Ok(())
        }
        _ => {
            log.debug(|| "TLS disabled: could not load TLS certificates".to_owned());
            Ok(())
        }
    }
}

/// Appends `der` in pieces that fit a message.
fn cut(kind: PieceKind, der: &[u8], pieces: &mut Vec<TlsPiece>) {
    let mut chunks = der.chunks(MAX_PIECE).peekable();
    while let Some(chunk) = chunks.next() {
        pieces.push(TlsPiece { kind, bytes: chunk.to_vec(), last: chunks.peek().is_none() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_into_pieces_that_fit() {
        let der = vec![1; 2 * MAX_PIECE + 1];
        let mut pieces = Vec::new();
        cut(PieceKind::Revocation, &der, &mut pieces);
        let lengths: Vec<_> = pieces.iter().map(|piece| (piece.bytes.len(), piece.last)).collect();
        assert_eq!(lengths, [(MAX_PIECE, false), (MAX_PIECE, false), (1, true)]);
    }
}
