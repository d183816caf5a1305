//! Sessions with certificates, by rustls. The key is with the listener: [`RemoteKey`] asks it to
//! sign.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::sync::Arc;

use nbdkit_api::{Error, Result};
use nbdkit_ipc::KeyId;
use nbdkit_ipc::keys::{Algorithms, KeyAnswer, KeyRequest, Tls};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, RootCertStore, ServerConfig, ServerConnection, SignatureAlgorithm,
    SignatureScheme,
};

use super::Material;
use super::session::{Failure, Session, Sessions};
use super::verifier::Verifier;
use crate::authority::Authority;

/// Encrypted at a time, bytes: some records that leave in one system call while they are in the
/// cache, and so few that malloc does not give their memory back each time.
const OUTPUT: usize = 64 * 1024;

/// What all sessions have in common.
#[derive(Debug)]
pub(super) struct Certificates {
    config: ServerConfig,
    chain: Vec<CertificateDer<'static>>,
    key: KeyId,
    schemes: Vec<SignatureScheme>,
}

/// AES-128 first: nothing is known against it, and it is the fastest. The server's order counts.
fn provider(allowed: Algorithms) -> CryptoProvider {
    use ring::cipher_suite::{
        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let suites = [
        (allowed.aes_128_gcm, TLS13_AES_128_GCM_SHA256),
        (allowed.aes_256_gcm, TLS13_AES_256_GCM_SHA384),
        (allowed.chacha20_poly1305, TLS13_CHACHA20_POLY1305_SHA256),
        (allowed.aes_128_gcm, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        (allowed.aes_128_gcm, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
        (allowed.aes_256_gcm, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
        (allowed.aes_256_gcm, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
        (allowed.chacha20_poly1305, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
        (allowed.chacha20_poly1305, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ];
    CryptoProvider {
        cipher_suites: suites.into_iter().filter(|(on, _)| *on).map(|(_, suite)| suite).collect(),
        ..ring::default_provider()
    }
}

impl Certificates {
    /// `key`: the listener's key; `schemes`: what it can sign.
    ///
    /// # Errors
    /// The authority's certificates or the revocation lists cannot be used.
    pub(super) fn new(
        tls: &Tls,
        key: KeyId,
        schemes: &[u16],
        from: Material,
    ) -> Result<Certificates> {
        let allowed = tls.algorithms;
        let provider = Arc::new(provider(allowed));
        let versions: Vec<_> = [(allowed.tls_1_3, &TLS13), (allowed.tls_1_2, &TLS12)]
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, version)| version)
            .collect();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)
            .map_err(|error| Error::msg(format!("TLS: {error}")))?;
        let chain: Vec<_> = from.chain.into_iter().map(CertificateDer::from).collect();
        let builder = if tls.verify_peer {
            let mut roots = RootCertStore::empty();
            for der in from.authorities {
                roots
                    .add(CertificateDer::from(der))
                    .map_err(|error| Error::msg(format!("ca-cert.pem: {error}")))?;
            }
            let revocations = from.revocations.into_iter().map(CertificateRevocationListDer::from);
            // A list does not cover certificates of other authorities.
            let mut verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .with_crls(revocations)
                    .allow_unknown_revocation_status();
            if tls.enforce_crl_expiry {
                verifier = verifier.enforce_revocation_expiration();
            }
            let verifier = verifier
                .build()
                .map_err(|error| Error::msg(format!("ca-cert.pem, ca-crl.pem: {error}")))?;
            builder.with_client_cert_verifier(Arc::new(Verifier(verifier)))
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(Arc::new(Nobody));
        config.ignore_client_order = true;
        // A session that is resumed would come to another process, which knows nothing of it.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let schemes = schemes.iter().copied().map(SignatureScheme::from).collect();
        Ok(Certificates { config, chain, key, schemes })
    }
}

impl Sessions for Certificates {
    fn session(
        &self,
        authority: Arc<dyn Authority>,
    ) -> std::result::Result<Box<dyn Session>, Failure> {
        let key = RemoteKey { authority, id: self.key, schemes: self.schemes.clone() };
        let certified = CertifiedKey::new(self.chain.clone(), Arc::new(key));
        let mut config = self.config.clone();
        config.cert_resolver = Arc::new(Resolver(Arc::new(certified)));
        let mut connection = ServerConnection::new(Arc::new(config)).map_err(failure)?;
        connection.set_buffer_limit(Some(OUTPUT));
        Ok(Box::new(RustlsSession { connection }))
    }
}

/// Stands where each session puts its own [`Resolver`].
#[derive(Debug)]
struct Nobody;

impl ResolvesServerCert for Nobody {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// One certificate for all names: clients of a disk know where they connect to.
#[derive(Debug)]
struct Resolver(Arc<CertifiedKey>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// The server's private key, which another process has.
#[derive(Debug)]
struct RemoteKey {
    authority: Arc<dyn Authority>,
    id: KeyId,
    schemes: Vec<SignatureScheme>,
}

impl SigningKey for RemoteKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = *self.schemes.iter().find(|scheme| offered.contains(scheme))?;
        Some(Box::new(RemoteSigner {
            authority: Arc::clone(&self.authority),
            key: self.id,
            scheme,
        }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.schemes.first() {
            Some(&SignatureScheme::ED25519) => SignatureAlgorithm::ED25519,
            Some(
                &SignatureScheme::ECDSA_NISTP256_SHA256 | &SignatureScheme::ECDSA_NISTP384_SHA384,
            ) => SignatureAlgorithm::ECDSA,
            _ => SignatureAlgorithm::RSA,
        }
    }
}

/// The same, for one signature.
#[derive(Debug)]
struct RemoteSigner {
    authority: Arc<dyn Authority>,
    key: KeyId,
    scheme: SignatureScheme,
}

impl Signer for RemoteSigner {
    fn sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, rustls::Error> {
        let request = KeyRequest::Sign {
            key: self.key,
            scheme: self.scheme.into(),
            message: message.to_vec(),
        };
        match self.authority.ask(request) {
            KeyAnswer::Signature(signature) => Ok(signature),
            KeyAnswer::Psk(_) | KeyAnswer::Denied => {
                Err(rustls::Error::General("the listener did not sign".to_owned()))
            }
        }
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

struct RustlsSession {
    connection: ServerConnection,
}

fn failure(error: rustls::Error) -> Failure {
    match error {
        // rustls prints the structure.
        rustls::Error::InvalidCertificate(CertificateError::Other(why)) => {
            Failure(format!("invalid peer certificate: {why}"))
        }
        error => Failure(error.to_string()),
    }
}

impl Session for RustlsSession {
    fn handshake(&mut self) -> std::result::Result<bool, Failure> {
        Ok(!self.connection.is_handshaking())
    }

    fn feed(&mut self, bytes: &[u8]) -> std::result::Result<usize, Failure> {
        let mut rest = bytes;
        let used = self
            .connection
            .read_tls(&mut rest)
            .map_err(|error| Failure(format!("record buffer: {error}")))?;
        self.connection.process_new_packets().map_err(failure)?;
        Ok(used)
    }

    fn read(&mut self, out: &mut [u8]) -> std::result::Result<Option<usize>, Failure> {
        match self.connection.reader().read(out) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(Failure(error.to_string())),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::result::Result<usize, Failure> {
        self.connection.writer().write(bytes).map_err(|error| Failure(error.to_string()))
    }

    fn send(&mut self, sink: &mut dyn Write) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(sink)?;
        }
        Ok(())
    }

    fn close(&mut self) {
        self.connection.send_close_notify();
    }

    fn peer_certificate(&self) -> Option<Vec<u8>> {
        Some(self.connection.peer_certificates()?.first()?.to_vec())
    }

    fn describe(&self) -> Vec<String> {
        let version = match self.connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLS1.3",
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLS1.2",
            _ => "unknown",
        };
        let group = self
            .connection
            .negotiated_key_exchange_group()
            .map_or_else(String::new, |group| format!("{:?}", group.name()));
        let suite = self
            .connection
            .negotiated_cipher_suite()
            .map_or_else(String::new, |suite| format!("{:?}", suite.suite()));
        vec![
            format!("TLS session: ({version})-({group})-({suite})"),
            "TLS: authentication: certificate".to_owned(),
        ]
    }
}
