//! The file of pre-shared keys, as psktool(1) makes it: `IDENTITY:KEY` on each line, the key in
//! hexadecimal; an identity that begins with `#` is in hexadecimal too. nbdkit-tls(1), "TLS with
//! Pre-Shared Keys (PSK)".

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nbdkit_ipc::keys::{MAX_IDENTITY, MAX_PSK, Secret};
use thiserror::Error;
use zeroize::Zeroizing;

use super::file::{FileError, read};

/// Longest file, bytes.
const MAX_FILE: u64 = 16 << 20;

/// Why a file of keys cannot be used.
#[derive(Debug, Error)]
pub(crate) enum PskError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line is no key.
    #[error("{}:{line}: {why}", path.display())]
    Line { path: PathBuf, line: usize, why: &'static str },
    /// No line is a key.
    #[error("{}: there is no key in it", .0.display())]
    Empty(PathBuf),
}

/// What is wrong with the text of a file of keys.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoKeys {
    /// A line, counted from 1, is no key.
    Line(usize, &'static str),
    /// No line is a key.
    Empty,
}

/// The keys by identity.
pub(crate) struct PskFile(HashMap<Vec<u8>, Zeroizing<Vec<u8>>>);

impl PskFile {
    /// The key of an identity.
    pub(super) fn key(&self, identity: &[u8]) -> Option<Secret> {
        self.0.get(identity).map(|key| Secret(key.to_vec()))
    }
}

/// Reads the file.
///
/// # Errors
/// The file cannot be read, or which of its lines is no key.
pub(super) fn load(path: &Path) -> Result<PskFile, PskError> {
    let bytes = read(path, MAX_FILE)?;
    parse(&bytes).map_err(|error| {
        let path = path.to_owned();
        match error {
            NoKeys::Line(line, why) => PskError::Line { path, line, why },
            NoKeys::Empty => PskError::Empty(path),
        }
    })
}

pub(super) fn parse(bytes: &[u8]) -> Result<PskFile, NoKeys> {
    let mut keys = HashMap::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let wrong = |why| NoKeys::Line(index + 1, why);
        let colon = line
            .iter()
            .rposition(|byte| *byte == b':')
            .ok_or_else(|| wrong("expected IDENTITY:KEY as psktool(1) writes it"))?;
        let (identity, key) = (&line[..colon], &line[colon + 1..]);
        let identity = match identity.strip_prefix(b"#") {
            None => identity.to_vec(),
            Some(digits) => hexadecimal(digits)
                .map(|bytes| bytes.to_vec())
                .ok_or_else(|| wrong("the identity is not hexadecimal"))?,
        };
        let key = hexadecimal(key).ok_or_else(|| wrong("the key is not hexadecimal"))?;
        if identity.is_empty() || identity.len() > MAX_IDENTITY {
            return Err(wrong("the identity is empty or too long"));
        }
        if key.is_empty() || key.len() > MAX_PSK {
            return Err(wrong("the key is empty or too long"));
        }
        // As in GnuTLS, the first counts.
        keys.entry(identity).or_insert(key);
    }
    if keys.is_empty() { Err(NoKeys::Empty) } else { Ok(PskFile(keys)) }
}

fn hexadecimal(digits: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let value = |digit: u8| char::from(digit).to_digit(16);
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(digits.len() / 2));
    for pair in digits.chunks_exact(2) {
        bytes.push((value(pair[0])? << 4 | value(pair[1])?) as u8);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_identity() {
        let file = parse(b"alice:00ff\n\nbob:x:0A\r\n#6361726f6c:01\nalice:11").unwrap();
        assert_eq!(file.key(b"alice"), Some(Secret(vec![0, 255])));
        assert_eq!(file.key(b"bob:x"), Some(Secret(vec![10])));
        assert_eq!(file.key(b"carol"), Some(Secret(vec![1])));
        assert_eq!(file.key(b"dave"), None);
    }

    #[test]
    fn a_line_that_is_no_key_is_named() {
        for (text, error) in [
            (&b""[..], NoKeys::Empty),
            (b"alice", NoKeys::Line(1, "expected IDENTITY:KEY as psktool(1) writes it")),
            (b"a:00\nb:0", NoKeys::Line(2, "the key is not hexadecimal")),
            (b"a:zz", NoKeys::Line(1, "the key is not hexadecimal")),
            (b"a:", NoKeys::Line(1, "the key is empty or too long")),
            (b":00", NoKeys::Line(1, "the identity is empty or too long")),
            (b"#0:00", NoKeys::Line(1, "the identity is not hexadecimal")),
        ] {
            assert_eq!(parse(text).err().unwrap(), error);
        }
    }
}
