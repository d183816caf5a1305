//! Pre-shared keys: `tls-psk=` and `tls-username=`. rustls has none; the program that is linked
//! with a library that does has to say so, with [`use_pre_shared_keys`].

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::OnceLock;

use nbdkit_api::{Error, Result};

use super::read;
use crate::nbd::session::Session;

/// Makes a client's session with the key of an identity.
pub type MakeSession = fn(identity: &str, key: &[u8]) -> Result<Box<dyn Session>>;

static MAKE: OnceLock<MakeSession> = OnceLock::new();

/// Has sessions with pre-shared keys made by `make`. The first call counts.
pub fn use_pre_shared_keys(make: MakeSession) {
    let _ = MAKE.set(make);
}

/// Longest key, bytes: OpenSSL's limit.
const MAX_KEY: usize = 512;
/// Longest identity, bytes: OpenSSL's limit for a client in TLS 1.2.
const MAX_IDENTITY: usize = 127;

/// Whom this server says it is, and how it proves that.
pub(in crate::nbd) struct PreSharedKey {
    identity: String,
    key: Vec<u8>,
    make: MakeSession,
}

impl PreSharedKey {
    /// Takes the key of `username`, or of the user who starts the server, from the file.
    ///
    /// # Errors
    /// One line: the file cannot be read, or has no such key; this program has no such sessions.
    pub(super) fn load(path: &Path, username: Option<&str>) -> Result<PreSharedKey> {
        let make = *MAKE.get().ok_or_else(|| Error::msg("tls-psk: not in this program"))?;
        let identity = username.map_or_else(login, |name| Ok(name.to_owned()))?;
        if identity.is_empty() || identity.len() > MAX_IDENTITY {
            return Err(Error::msg("tls-username: the name is empty or too long"));
        }
        let key = find(&read(path)?, &identity)
            .map_err(|why| Error::msg(format!("{}: {why}", path.display())))?;
        Ok(PreSharedKey { identity, key, make })
    }

    pub(super) fn session(&self) -> Result<Box<dyn Session>> {
        (self.make)(&self.identity, &self.key)
    }
}

/// The name of the user who starts the server.
fn login() -> Result<String> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    user.ok()
        .flatten()
        .map(|user| user.name)
        .ok_or_else(|| Error::msg("the user who runs this has no name: use tls-username=NAME"))
}

/// The key behind `IDENTITY:` in a file as psktool(1) makes it. The first one counts.
fn find(file: &[u8], identity: &str) -> Result<Vec<u8>, String> {
    let digits = file.split(|byte| *byte == b'\n').find_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        line.strip_prefix(identity.as_bytes())?.strip_prefix(b":")
    });
    let digits = digits.ok_or_else(|| {
        format!("there is no key for the user name {}", identity.escape_default())
    })?;
    let value = |digit: u8| char::from(digit).to_digit(16);
    let byte = |pair: &[u8]| u8::try_from(value(*pair.first()?)? << 4 | value(*pair.get(1)?)?).ok();
    let key: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    key.filter(|key| (1..=MAX_KEY).contains(&key.len()))
        .ok_or_else(|| "the key is not hexadecimal, or empty, or too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_user_name() {
        let file = b"alice:00ff\r\nbob:0A\nbob:11\nbad:0\nbad2:xx\nempty:\n";
        assert_eq!(find(file, "alice"), Ok(vec![0, 255]));
        assert_eq!(find(file, "bob"), Ok(vec![10]));
        for name in ["ali", "bad", "bad2", "empty", "alice:00"] {
            assert!(find(file, name).is_err(), "{name}");
        }
    }
}
