//! TLS to an upstream server, as its client: with certificates by rustls, with pre-shared keys by
//! what the program has for them. nbdkit-tls(1); nbd_set_tls_certificates(3) for the directories.
//!
//! Files are read when the server starts, as the user who starts it. The key of the client's
//! certificate is in the memory of every worker from then on: it is what the upstream server knows
//! this one by, and a worker that serves a client speaks for it anyway.

#![forbid(unsafe_code)]

mod psk;
mod verifier;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbdkit_api::{Errno, Error, Result, ResultExt};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use self::psk::PreSharedKey;
pub use self::psk::{MakeSession, use_pre_shared_keys};
use self::verifier::Verifier;
use super::session::Session;

/// Encrypted at a time, bytes.
const OUTPUT: usize = 64 * 1024;
/// Longest file that is read, bytes: the system's certificates of authorities are a quarter of one.
const MAX_FILE: u64 = 1 << 20;

/// Certificates of authorities that the system trusts.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What the parameters say.
#[derive(Debug, Clone, Default)]
pub(super) struct Options {
    /// `tls-certificates`
    pub(super) certificates: Option<PathBuf>,
    /// `tls-verify`
    pub(super) verify: Option<bool>,
    /// `tls-username`
    pub(super) username: Option<String>,
    /// `tls-psk`
    pub(super) psk: Option<PathBuf>,
    /// Whom the server's certificate has to be about: `tls-hostname` of a URI, or the host.
    pub(super) hostname: Option<String>,
}

impl Options {
    /// Whether any was given that asks for TLS.
    pub(super) fn any(&self) -> bool {
        self.certificates.is_some()
            || self.verify.is_some()
            || self.username.is_some()
            || self.psk.is_some()
    }
}

/// What sessions are made from.
pub(super) enum Tls {
    Certificates { config: Arc<ClientConfig>, name: ServerName<'static> },
    PreSharedKey(PreSharedKey),
}

impl Tls {
    /// Reads what the options name.
    ///
    /// # Errors
    /// One line: a file cannot be read or used.
    pub(super) fn new(options: &Options) -> Result<Tls> {
        match &options.psk {
            Some(file) => {
                PreSharedKey::load(file, options.username.as_deref()).map(Tls::PreSharedKey)
            }
            None => certificates(options),
        }
    }

    /// A session that has yet to shake hands.
    ///
    /// # Errors
    /// Out of memory or the like.
    pub(super) fn session(&self) -> Result<Box<dyn Session>> {
        match self {
            Tls::Certificates { config, name } => {
                let mut connection = ClientConnection::new(Arc::clone(config), name.clone())
                    .map_err(|error| failed(&error))?;
                connection.set_buffer_limit(Some(OUTPUT));
                Ok(Box::new(Rustls(connection)))
            }
            Tls::PreSharedKey(key) => key.session(),
        }
    }
}

fn certificates(options: &Options) -> Result<Tls> {
    let verify = options.verify.unwrap_or(true);
    let directory = options.certificates.clone().or_else(default_directory);
    let mut roots = RootCertStore::empty();
    let authorities = match &directory {
        Some(directory) => Some(directory.join("ca-cert.pem")),
        None => SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists()),
    };
    if verify {
        let file = authorities.ok_or_else(|| {
            Error::msg("TLS: there are no certificates of authorities: use tls-certificates=DIR")
        })?;
        let found = pem_certificates(&file)?;
        // Of the system's, some have names that are not according to the book.
        let (used, _) = roots.add_parsable_certificates(found);
        if used == 0 {
            return Err(Error::msg(format!("{}: no certificate can be used", file.display())));
        }
    }
    // A name that is none of the DNS is no name in a certificate either.
    let host = options.hostname.as_deref();
    let name = host.map(|host| {
        ServerName::try_from(host.to_owned()).map_err(|_| {
            Error::msg(format!("TLS: {}: not the name of a host", host.escape_default()))
        })
    });
    let name = name.transpose()?;
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier {
        roots: verify.then_some(roots),
        has_name: name.is_some(),
        algorithms: provider.signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let own = directory
        .map(|directory| (directory.join("client-cert.pem"), directory.join("client-key.pem")));
    let mut config = match own.filter(|(certificate, _)| certificate.exists()) {
        Some((certificate, key)) => {
            let chain = pem_certificates(&certificate)?;
            let key_bytes = read(&key)?;
            let no_key = || Error::msg(format!("{}: no private key", key.display()));
            let private = PrivateKeyDer::from_pem_slice(&key_bytes).map_err(|_| no_key())?;
            builder
                .with_client_auth_cert(chain, private)
                .map_err(|error| Error::msg(format!("{}: {error}", key.display())))?
        }
        None => builder.with_no_client_auth(),
    };
    config.enable_sni = matches!(name, Some(ServerName::DnsName(_)));
    // Without a host there is none to be named, nor to be checked.
    let nobody = || ServerName::try_from("localhost").map_err(|_| Error::msg("TLS: localhost"));
    let name = name.map_or_else(nobody, Ok)?;
    Ok(Tls::Certificates { config: Arc::new(config), name })
}

/// Where certificates are looked for if no parameter names a directory.
fn default_directory() -> Option<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Some(PathBuf::from("/etc/pki/libnbd")).filter(|path| path.is_dir());
    }
    let home = PathBuf::from(std::env::var_os("HOME")?);
    [".pki/libnbd", ".config/pki/libnbd"].iter().map(|it| home.join(it)).find(|it| it.is_dir())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).or_error(|| format!("open: {}", path.display()))?;
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .or_error(|| format!("read: {}", path.display()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::msg(format!("{}: the file is too long", path.display())));
    }
    Ok(bytes)
}

fn pem_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Error::msg(format!("{}: no certificate", path.display()))),
    }
}

fn failed(error: &dyn std::error::Error) -> Error {
    // The library's words for what a server sends are its own, without the server's bytes.
    Error::new(Errno::EIO, format!("TLS: {error}"))
}

struct Rustls(ClientConnection);

impl Session for Rustls {
    fn handshake(&mut self) -> Result<bool> {
        Ok(!self.0.is_handshaking())
    }

    fn feed(&mut self, mut bytes: &[u8]) -> Result<usize> {
        let count = self.0.read_tls(&mut bytes).or_error(|| "TLS")?;
        self.0.process_new_packets().map_err(|error| failed(&error))?;
        Ok(count)
    }

    fn read(&mut self, out: &mut [u8]) -> Result<Option<usize>> {
        match self.0.reader().read(out) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(Error::io("TLS", &error)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.writer().write(bytes).or_error(|| "TLS")
    }

    fn output(&mut self, sink: &mut Vec<u8>) {
        // To memory, which does not fail.
        while self.0.wants_write() && self.0.write_tls(sink).is_ok_and(|count| count > 0) {}
    }

    fn close(&mut self) {
        self.0.send_close_notify();
    }
}
