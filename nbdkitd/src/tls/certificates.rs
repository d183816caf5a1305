//! The files of certificates: `server-cert.pem`, `server-key.pem`, `ca-cert.pem` and perhaps
//! `ca-crl.pem`. nbdkit-tls(1), "TLS with X.509 certificates", "Default location of certificates".
//!
//! They are read once, at start-up, by the user who started the server. A directory that lacks one
//! of the first three is skipped. A file that cannot be used is an error, so that a server that was
//! meant to have TLS does not start without.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbdkit_ipc::x509::Fields;
use nix::unistd::geteuid;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::SigningKey;
use thiserror::Error;

use super::file::{FileError, Unusable, read};

/// Longest file of certificates or keys, bytes.
const MAX_CERTIFICATES: u64 = 4 << 20;
/// Longest revocation list, bytes.
const MAX_REVOCATIONS: u64 = 64 << 20;

/// The content of the files.
#[derive(Debug)]
pub(super) struct Certificates {
    /// The server's certificate first. DER.
    pub(super) chain: Vec<Vec<u8>>,
    /// The server's private key.
    pub(super) key: Arc<dyn SigningKey>,
    /// Authorities for clients' certificates. DER.
    pub(super) authorities: Vec<Vec<u8>>,
    /// Revocation lists. DER.
    pub(super) revocations: Vec<Vec<u8>>,
}

/// The files that were not found, each with its error.
#[derive(Debug)]
pub(crate) struct Missing(Vec<FileError>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// Why there are no certificates.
#[derive(Debug, Error)]
pub(crate) enum CertificatesError {
    /// The files are there and cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// They can be used, but not together.
    #[error("{}, {}: the certificate and the key do not match", certificate.display(), key.display())]
    Mismatch { certificate: PathBuf, key: PathBuf },
}

/// Loads the certificates in `given`, or else in the first usual directory that has them.
///
/// # Errors
/// The files are there and cannot be used.
pub(super) fn find(
    given: Option<&Path>,
    root_directory: &Path,
) -> Result<Result<(PathBuf, Certificates), Missing>, CertificatesError> {
    let home = std::env::var_os("HOME");
    let mut missing = Vec::new();
    for directory in directories(given, root_directory, geteuid().is_root(), home.as_deref()) {
        match load(&directory, given.is_some())? {
            Ok(certificates) => return Ok(Ok((directory, certificates))),
            Err(what) => missing.push(what),
        }
    }
    Ok(Err(Missing(missing)))
}

/// The directories to search.
fn directories(
    given: Option<&Path>,
    root_directory: &Path,
    root: bool,
    home: Option<&OsStr>,
) -> Vec<PathBuf> {
    match (given, home) {
        (Some(given), _) => vec![given.to_owned()],
        (None, _) if root => vec![root_directory.to_owned()],
        (None, Some(home)) => {
            [".pki/nbdkit", ".config/pki/nbdkit"].map(|path| Path::new(home).join(path)).into()
        }
        (None, None) => Vec::new(),
    }
}

/// Loads one directory; or the first file that is missing. A directory that may not even be looked
/// into, `$HOME` of another user for instance, counts as one without files, unless the user has
/// `named` it.
fn load(
    directory: &Path,
    named: bool,
) -> Result<Result<Certificates, FileError>, CertificatesError> {
    let path = |name: &str| directory.join(name);
    let (ca, cert, key) = (path("ca-cert.pem"), path("server-cert.pem"), path("server-key.pem"));
    for path in [&ca, &cert, &key] {
        if let Err(error) = path.metadata() {
            let missing =
                is_missing(&error) || !named && error.kind() == ErrorKind::PermissionDenied;
            let error = FileError::at(path)(error);
            return if missing { Ok(Err(error)) } else { Err(error.into()) };
        }
    }
    let authorities = certificates(&ca)?;
    let chain = certificates(&cert)?;
    let key = private_key(&key, &cert, &chain)?;
    let crl = path("ca-crl.pem");
    let revocations = match crl.metadata() {
        Err(error) if is_missing(&error) => Vec::new(),
        // Other errors are reported when it is read.
        _ => revocations(&crl)?,
    };
    Ok(Ok(Certificates { chain, key, authorities, revocations }))
}

fn is_missing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, FileError> {
    let bytes = read(path, MAX_CERTIFICATES)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(FileError::at(path))?;
    if found.is_empty() {
        return Err(FileError::at(path)(Unusable::Lacks("certificate")));
    }
    Ok(found.iter().map(|der| der.to_vec()).collect())
}

fn revocations(path: &Path) -> Result<Vec<Vec<u8>>, FileError> {
    let bytes = read(path, MAX_REVOCATIONS)?;
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(FileError::at(path))?;
    if found.is_empty() {
        return Err(FileError::at(path)(Unusable::Lacks("revocation list")));
    }
    Ok(found.iter().map(|der| der.to_vec()).collect())
}

/// The private key, which must be that of the first certificate.
fn private_key(
    path: &Path,
    cert: &Path,
    chain: &[Vec<u8>],
) -> Result<Arc<dyn SigningKey>, CertificatesError> {
    let bytes = read(path, MAX_CERTIFICATES)?;
    let der =
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| FileError::at(path)(Unusable::NoKey))?;
    let der = match super::scalar::padded(&der) {
        Some(padded) => {
            wipe(der);
            padded
        }
        None => der,
    };
    let key = any_supported_type(&der).map_err(|_| FileError::at(path)(Unusable::KeyKind))?;
    wipe(der);
    let Some(fields) = chain.first().and_then(|der| Fields::of(der)) else {
        return Err(FileError::at(cert)(Unusable::NoCertificate).into());
    };
    // Not rustls's own comparison: it does not read certificates of version 1, which clients take
    // all the same.
    if key.public_key().is_none_or(|public| *public != *fields.public_key_info) {
        return Err(CertificatesError::Mismatch {
            certificate: cert.to_owned(),
            key: path.to_owned(),
        });
    }
    Ok(key)
}

/// The bytes that were decoded on the way to the key.
fn wipe(der: PrivateKeyDer<'static>) {
    use zeroize::Zeroize;
    let mut der = der;
    der.zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_path_is_that_of_the_manual() {
        let of = |given: Option<&str>, root, home: Option<&str>| {
            directories(
                given.map(Path::new),
                Path::new("/etc/pki/nbdkit"),
                root,
                home.map(OsStr::new),
            )
        };
        assert_eq!(of(Some("here"), true, Some("/h")), [Path::new("here")]);
        assert_eq!(of(None, true, Some("/h")), [Path::new("/etc/pki/nbdkit")]);
        assert_eq!(
            of(None, false, Some("/h")),
            [Path::new("/h/.pki/nbdkit"), Path::new("/h/.config/pki/nbdkit")]
        );
        assert!(of(None, false, None).is_empty());
    }

    #[test]
    fn missing_files_are_named() {
        let missing = find(Some(Path::new("/no/such")), Path::new("")).unwrap().unwrap_err();
        assert_eq!(missing.to_string(), "/no/such/ca-cert.pem: No such file or directory");
    }
}
