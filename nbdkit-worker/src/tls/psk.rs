//! Sessions with pre-shared keys, by OpenSSL, since rustls has none. The listener tells the key of
//! the identity that a client names; a client that names one which does not exist is treated as one
//! that has the wrong key.
//!
//! The library reads its configuration and gathers what it needs when the template makes the
//! context, before the sandbox closes. The bytes come and go by memory, as with rustls.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use nbdkit_api::{Error, Result, debug, quoted};
use nbdkit_ipc::keys::{Algorithms, KeyAnswer, KeyRequest, MAX_IDENTITY, Secret};
use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::rand::rand_bytes;
use openssl::ssl::{
    self, ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslRef,
    SslSessionCacheMode, SslStream, SslVerifyMode, SslVersion,
};

use super::pipes::{Pipes, words};
use super::session::{Failure, Session, Sessions};
use crate::authority::Authority;

/// TLS 1.2 with an exchange of ephemeral keys first, so that a key that becomes known later does
/// not reveal what was sent.
fn ciphers(allowed: Algorithms) -> Vec<&'static str> {
    let Algorithms { aes_128_gcm, aes_256_gcm, chacha20_poly1305, static_psk, .. } = allowed;
    let all = [
        (chacha20_poly1305, "ECDHE-PSK-CHACHA20-POLY1305"),
        (static_psk && aes_128_gcm, "PSK-AES128-GCM-SHA256"),
        (static_psk && aes_256_gcm, "PSK-AES256-GCM-SHA384"),
        (static_psk && chacha20_poly1305, "PSK-CHACHA20-POLY1305"),
    ];
    all.into_iter().filter(|(on, _)| *on && allowed.tls_1_2).map(|(_, name)| name).collect()
}

/// TLS 1.3: external keys go with SHA-256 (RFC 8446, 4.2.11), AES first because it is the fastest.
fn ciphersuites(allowed: Algorithms) -> Vec<&'static str> {
    let all = [
        (allowed.aes_128_gcm, "TLS_AES_128_GCM_SHA256"),
        (allowed.chacha20_poly1305, "TLS_CHACHA20_POLY1305_SHA256"),
    ];
    all.into_iter().filter(|(on, _)| *on && allowed.tls_1_3).map(|(_, name)| name).collect()
}

/// Encrypted at a time, bytes: some records that leave in one system call while they are in the
/// cache, and so few that malloc does not give their memory back each time.
const OUTPUT: usize = 64 * 1024;

/// What a connection's callback needs.
struct Asker {
    authority: Arc<dyn Authority>,
    /// The identity that was asked for, and the answer: the library may ask again about the same
    /// ClientHello, the listener answers once.
    asked: Mutex<Option<(Vec<u8>, Option<Secret>)>>,
}

/// What all sessions have in common.
pub(super) struct PreSharedKeys {
    context: SslContext,
    asker: Index<Ssl, Asker>,
}

impl std::fmt::Debug for PreSharedKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PreSharedKeys(..)")
    }
}

impl PreSharedKeys {
    /// Makes the library ready.
    ///
    /// # Errors
    /// The library's; nothing of what is allowed goes with pre-shared keys.
    pub(super) fn new(allowed: Algorithms) -> Result<PreSharedKeys> {
        let (ciphers, ciphersuites) = (ciphers(allowed), ciphersuites(allowed));
        let (min, max) = match (ciphers.is_empty(), ciphersuites.is_empty()) {
            (false, false) => (SslVersion::TLS1_2, SslVersion::TLS1_3),
            (false, true) => (SslVersion::TLS1_2, SslVersion::TLS1_2),
            (true, false) => (SslVersion::TLS1_3, SslVersion::TLS1_3),
            (true, true) => {
                return Err(Error::msg(
                    "--tls-priority: no cipher is left that goes with pre-shared keys",
                ));
            }
        };
        openssl::init();
        let make = || -> std::result::Result<PreSharedKeys, ErrorStack> {
            // Seeds the generator, which notices a fork by itself.
            rand_bytes(&mut [0; 16])?;
            let asker = Ssl::new_ex_index()?;
            let mut context = SslContextBuilder::new(SslMethod::tls_server())?;
            context.set_min_proto_version(Some(min))?;
            context.set_max_proto_version(Some(max))?;
            if !ciphers.is_empty() {
                context.set_cipher_list(&ciphers.join(":"))?;
            }
            context.set_ciphersuites(&ciphersuites.join(":"))?;
            context.set_options(
                SslOptions::CIPHER_SERVER_PREFERENCE
                    | SslOptions::NO_COMPRESSION
                    | SslOptions::NO_RENEGOTIATION
                    | SslOptions::NO_TICKET,
            );
            context.set_mode(SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER);
            // A session that is resumed would come to another process, which knows nothing of it.
            context.set_session_cache_mode(SslSessionCacheMode::OFF);
            context.set_num_tickets(0)?;
            context.set_verify(SslVerifyMode::NONE);
            context.set_psk_server_callback(move |ssl: &mut SslRef, identity, key| {
                Ok(ssl.ex_data(asker).map_or(0, |asker: &Asker| asker.key(identity, key)))
            });
            let keys = PreSharedKeys { context: context.build(), asker };
            // A failure here is one of each client, and is reported to it.
            let _ = rehearse(&keys);
            Ok(keys)
        };
        make().map_err(|errors| Error::msg(format!("TLS: {}", words(&errors))))
    }
}

impl Sessions for PreSharedKeys {
    fn session(
        &self,
        authority: Arc<dyn Authority>,
    ) -> std::result::Result<Box<dyn Session>, Failure> {
        let make = || -> std::result::Result<Box<dyn Session>, ErrorStack> {
            let mut ssl = Ssl::new(&self.context)?;
            ssl.set_ex_data(self.asker, Asker { authority, asked: Mutex::new(None) });
            ssl.set_accept_state();
            let stream = SslStream::new(ssl, Pipes::default())?;
            Ok(Box::new(OpenSslSession { stream, done: false, asker: self.asker }))
        };
        make().map_err(|errors| Failure(words(&errors)))
    }
}

/// Shakes hands with a client of our own. The library fetches algorithms when they are first used
/// and keeps them: what the template has used, workers need not fetch, each for itself. True if the
/// client was heard in the end.
fn rehearse(keys: &PreSharedKeys) -> std::result::Result<bool, Failure> {
    let client = || -> std::result::Result<SslStream<Pipes>, ErrorStack> {
        let mut context = SslContextBuilder::new(SslMethod::tls_client())?;
        context.set_verify(SslVerifyMode::NONE);
        context.set_ciphersuites(&ciphersuites(Algorithms::ALL).join(":"))?;
        context.set_psk_client_callback(|_, _, identity, key| {
            let name = b"rehearsal\0";
            let (Some(identity), Some(key)) = (identity.get_mut(..name.len()), key.get_mut(..32))
            else {
                return Ok(0);
            };
            identity.copy_from_slice(name);
            key.fill(1);
            Ok(key.len())
        });
        let mut ssl = Ssl::new(&context.build())?;
        ssl.set_connect_state();
        SslStream::new(ssl, Pipes::default())
    };
    let mut client = client().map_err(|errors| Failure(words(&errors)))?;
    let mut server = keys.session(Arc::new(Rehearsal))?;
    // Client, server, client, server; and then a word.
    let mut heard = false;
    for _ in 0..3 {
        let _ = client.do_handshake();
        let _ = client.ssl_write(b"?");
        server.feed(&std::mem::take(&mut client.get_mut().output))?;
        if server.handshake()? {
            heard = server.read(&mut [0])?.is_some();
            server.write(b"!")?;
        }
        let _ = server.send(&mut client.get_mut().input);
    }
    Ok(heard)
}

/// Has the key of [`rehearse`].
#[derive(Debug)]
struct Rehearsal;

impl Authority for Rehearsal {
    fn ask(&self, _: KeyRequest) -> KeyAnswer {
        KeyAnswer::Psk(Secret(vec![1; 32]))
    }
}

impl Asker {
    /// Puts the key of an identity into `out`; its length, 0 if there is none.
    fn key(&self, identity: Option<&[u8]>, out: &mut [u8]) -> usize {
        let Some(identity) = identity.filter(|identity| identity.len() <= MAX_IDENTITY) else {
            return 0;
        };
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let (named, key) = asked.get_or_insert_with(|| {
            let request = KeyRequest::Psk { identity: identity.to_vec() };
            let key = match self.authority.ask(request) {
                KeyAnswer::Psk(key) => Some(key),
                KeyAnswer::Signature(_) | KeyAnswer::Denied => {
                    debug!("TLS: no pre-shared key for identity '{}'", quoted(identity));
                    None
                }
            };
            (identity.to_vec(), key)
        });
        if named != identity {
            return 0;
        }
        let key = key.as_ref().map_or_else(decoy, |key| key.0.clone());
        match out.get_mut(..key.len()) {
            Some(out) => {
                out.copy_from_slice(&key);
                key.len()
            }
            None => 0,
        }
    }
}

/// A key that nobody has: the handshake fails as it does for a wrong key, so that clients cannot
/// find out which identities there are.
fn decoy() -> Vec<u8> {
    let mut key = vec![0; 32];
    match rand_bytes(&mut key) {
        Ok(()) => key,
        Err(_) => Vec::new(),
    }
}

struct OpenSslSession {
    stream: SslStream<Pipes>,
    done: bool,
    asker: Index<Ssl, Asker>,
}

fn failure(error: &ssl::Error) -> Failure {
    Failure(error.ssl_error().map_or_else(|| "connection broken".to_owned(), words))
}

impl Session for OpenSslSession {
    fn handshake(&mut self) -> std::result::Result<bool, Failure> {
        if !self.done {
            match self.stream.do_handshake() {
                Ok(()) => self.done = true,
                Err(error) if error.code() == ErrorCode::WANT_READ => {}
                Err(error) => return Err(failure(&error)),
            }
        }
        Ok(self.done)
    }

    fn feed(&mut self, bytes: &[u8]) -> std::result::Result<usize, Failure> {
        self.stream.get_mut().feed(bytes);
        Ok(bytes.len())
    }

    fn read(&mut self, out: &mut [u8]) -> std::result::Result<Option<usize>, Failure> {
        match self.stream.ssl_read(out) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.code() == ErrorCode::WANT_READ => Ok(None),
            Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(Some(0)),
            Err(error) => Err(failure(&error)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::result::Result<usize, Failure> {
        let mut written = 0;
        while written < bytes.len() && self.stream.get_ref().output.len() < OUTPUT {
            match self.stream.ssl_write(&bytes[written..]) {
                Ok(count) => written += count,
                Err(error) => return Err(failure(&error)),
            }
        }
        Ok(written)
    }

    fn send(&mut self, sink: &mut dyn Write) -> io::Result<()> {
        let pipes = self.stream.get_mut();
        while pipes.sent < pipes.output.len() {
            pipes.sent += sink.write(&pipes.output[pipes.sent..])?;
        }
        pipes.output.clear();
        pipes.sent = 0;
        Ok(())
    }

    fn close(&mut self) {
        let _ = self.stream.shutdown();
    }

    fn peer_certificate(&self) -> Option<Vec<u8>> {
        None
    }

    fn describe(&self) -> Vec<String> {
        let ssl: &SslRef = self.stream.ssl();
        let version = ssl.version_str().replace("TLSv", "TLS");
        let cipher = ssl.current_cipher().map_or("", |cipher| cipher.name());
        let asked = ssl.ex_data(self.asker).and_then(|asker| {
            let asked = asker.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.as_ref().map(|(identity, _)| identity.escape_ascii().to_string())
        });
        vec![
            format!("TLS session: ({version})-({cipher})"),
            "TLS: authentication: PSK (Pre-Shared Key)".to_owned(),
            format!("TLS: PSK username: {}", asked.unwrap_or_default()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rehearsal_is_a_whole_session() {
        let keys = PreSharedKeys::new(Algorithms::ALL).unwrap();
        assert!(rehearse(&keys).unwrap());
    }
}
