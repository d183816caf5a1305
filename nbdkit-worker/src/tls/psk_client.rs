//! The client's end of sessions with pre-shared keys, for the nbd plugin, by OpenSSL as the
//! server's end is ([`psk`](super::psk)).

#![forbid(unsafe_code)]

use nbdkit_api::{Errno, Error, Result};
use nbdkit_plugins::nbd::Session;
use openssl::error::ErrorStack;
use openssl::ssl::{
    self, ErrorCode, Ssl, SslContextBuilder, SslMethod, SslMode, SslOptions, SslStream,
    SslVerifyMode, SslVersion,
};

use super::pipes::{Pipes, words};

/// Ciphers of TLS 1.2 that go with pre-shared keys, those that keep past sessions secret first.
const CIPHERS: &str = "ECDHE-PSK-CHACHA20-POLY1305:DHE-PSK-AES128-GCM-SHA256:\
                       DHE-PSK-AES256-GCM-SHA384:PSK-AES128-GCM-SHA256:PSK-AES256-GCM-SHA384";
/// Of TLS 1.3: external keys go with SHA-256 (RFC 8446, 4.2.11).
const CIPHERSUITES: &str = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
/// Encrypted at a time, bytes.
const OUTPUT: usize = 64 * 1024;

/// A session that has yet to shake hands, with the key of an identity.
///
/// # Errors
/// The library's.
pub(super) fn session(identity: &str, key: &[u8]) -> Result<Box<dyn Session>> {
    make(identity, key).map_err(|errors| failed(&words(&errors)))
}

fn make(identity: &str, key: &[u8]) -> std::result::Result<Box<dyn Session>, ErrorStack> {
    let (identity, key) = (identity.as_bytes().to_vec(), key.to_vec());
    let mut context = SslContextBuilder::new(SslMethod::tls_client())?;
    context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    // The key is the proof of who the server is: without it there is no session.
    context.set_verify(SslVerifyMode::NONE);
    context.set_cipher_list(CIPHERS)?;
    context.set_ciphersuites(CIPHERSUITES)?;
    context.set_options(SslOptions::NO_COMPRESSION | SslOptions::NO_RENEGOTIATION);
    context.set_mode(SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER);
    context.set_psk_client_callback(move |_, _, out_identity, out_key| {
        // The identity ends in NUL.
        let fits = identity.len() < out_identity.len() && key.len() <= out_key.len();
        if !fits {
            return Ok(0);
        }
        out_identity[..identity.len()].copy_from_slice(&identity);
        out_identity[identity.len()] = 0;
        out_key[..key.len()].copy_from_slice(&key);
        Ok(key.len())
    });
    let mut ssl = Ssl::new(&context.build())?;
    ssl.set_connect_state();
    Ok(Box::new(Client(SslStream::new(ssl, Pipes::default())?)))
}

struct Client(SslStream<Pipes>);

fn failed(why: &str) -> Error {
    Error::new(Errno::EIO, format!("TLS: {why}"))
}

fn failure(error: &ssl::Error) -> Error {
    failed(&error.ssl_error().map_or_else(|| "connection broken".to_owned(), words))
}

impl Session for Client {
    fn handshake(&mut self) -> Result<bool> {
        match self.0.do_handshake() {
            // A server without the key could shake hands by a certificate, which nobody checks.
            Ok(()) if self.0.ssl().peer_certificate().is_some() => {
                Err(failed("the server has no pre-shared key"))
            }
            Ok(()) => Ok(true),
            Err(error) if error.code() == ErrorCode::WANT_READ => Ok(false),
            Err(error) => Err(failure(&error)),
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.get_mut().feed(bytes);
        Ok(bytes.len())
    }

    fn read(&mut self, out: &mut [u8]) -> Result<Option<usize>> {
        match self.0.ssl_read(out) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.code() == ErrorCode::WANT_READ => Ok(None),
            Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(Some(0)),
            Err(error) => Err(failure(&error)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut written = 0;
        while written < bytes.len() && self.0.get_ref().output.len() < OUTPUT {
            written += self.0.ssl_write(&bytes[written..]).map_err(|error| failure(&error))?;
        }
        Ok(written)
    }

    fn output(&mut self, sink: &mut Vec<u8>) {
        sink.append(&mut self.0.get_mut().output);
    }

    fn close(&mut self) {
        let _ = self.0.shutdown();
    }
}
