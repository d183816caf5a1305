//! Files of certificates and keys.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::errno_text;

/// A file that cannot be used.
#[derive(Debug, Error)]
#[error("{}: {why}", path.display())]
pub(crate) struct FileError {
    path: PathBuf,
    why: Unusable,
}

impl FileError {
    /// For `map_err`.
    pub(super) fn at<E: Into<Unusable>>(path: &Path) -> impl Fn(E) -> FileError {
        |why| FileError { path: path.to_owned(), why: why.into() }
    }
}

/// Why a file cannot be used.
#[derive(Debug, Error)]
pub(super) enum Unusable {
    /// It cannot be read, or not looked at.
    #[error("{}", errno_text(.0))]
    Read(#[from] io::Error),
    /// It is longer than that many bytes.
    #[error("longer than {0} bytes")]
    Long(u64),
    /// It is not in the format that RFC 7468 describes.
    #[error("not PEM: {0}")]
    NotPem(#[from] rustls::pki_types::pem::Error),
    /// It has nothing of this kind in it.
    #[error("there is no {0} in it")]
    Lacks(&'static str),
    /// Nothing here can decrypt a key.
    #[error("no private key, or one that takes a password")]
    NoKey,
    /// A key of another kind.
    #[error(
        "not a private key that can be used (RSA of 2048 to 8192 bits, ECDSA on P-256 or P-384, or Ed25519)"
    )]
    KeyKind,
    /// Not even the public key can be found in it.
    #[error("not a certificate that can be used")]
    NoCertificate,
}

/// The bytes of a file of at most `most` bytes, which may be secret.
///
/// # Errors
/// It cannot be read, or is longer.
pub(super) fn read(path: &Path, most: u64) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = File::open(path).map_err(FileError::at(path))?;
    let length = file.metadata().map_err(FileError::at(path))?.len().min(most);
    // Large enough from the start: a buffer that is moved while it grows would leave copies of the
    // key.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length as usize + 1));
    file.take(most + 1).read_to_end(&mut bytes).map_err(FileError::at(path))?;
    if bytes.len() as u64 > most {
        return Err(FileError::at(path)(Unusable::Long(most)));
    }
    Ok(bytes)
}
