//! Tests that [`super::transcript`] accepts what rustls signs, with every version and group.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, ServerConnection,
    SignatureAlgorithm, SignatureScheme, SupportedProtocolVersion,
};

use super::keys::tests::KEY;
use super::transcript::check;

type Signed = Arc<Mutex<Vec<(u16, Vec<u8>)>>>;

/// A key that records what it signs.
#[derive(Debug)]
struct Recorder(Arc<dyn SigningKey>, Signed);

impl SigningKey for Recorder {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(RecordingSigner(self.0.choose_scheme(offered)?, Arc::clone(&self.1))))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

#[derive(Debug)]
struct RecordingSigner(Box<dyn Signer>, Signed);

impl Signer for RecordingSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.1.lock().unwrap().push((self.0.scheme().into(), message.to_vec()));
        self.0.sign(message)
    }

    fn scheme(&self) -> SignatureScheme {
        self.0.scheme()
    }
}

#[derive(Debug)]
struct Resolver(Arc<CertifiedKey>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Accepts every certificate, since these tests are about signatures.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// What the server signs in a handshake with this version and the group at this index of the list.
fn handshake(version: &'static SupportedProtocolVersion, group: usize) -> Vec<(u16, Vec<u8>)> {
    let signed = Signed::default();
    let key = any_supported_type(&PrivateKeyDer::try_from(KEY).unwrap()).unwrap();
    let key = Arc::new(Recorder(key, Arc::clone(&signed)));
    let certified = CertifiedKey::new(vec![CertificateDer::from(vec![0x30, 0])], key);
    let mut provider = ring::default_provider();
    provider.kx_groups = vec![provider.kx_groups[group]];
    let provider = Arc::new(provider);
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Resolver(Arc::new(certified))));
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let name = "localhost".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut &bytes[..]).unwrap();
        server.process_new_packets().unwrap();
        bytes.clear();
        server.write_tls(&mut bytes).unwrap();
        client.read_tls(&mut &bytes[..]).unwrap();
        client.process_new_packets().unwrap();
    }
    let signed = signed.lock().unwrap();
    signed.clone()
}

#[test]
fn what_rustls_signs_is_accepted_and_signed_once() {
    for version in [&TLS12, &TLS13] {
        for group in 0..ring::default_provider().kx_groups.len() {
            let signed = handshake(version, group);
            let [(scheme, message)] = &signed[..] else { panic!("{version:?}: {}", signed.len()) };
            assert_eq!(check(*scheme, message), Ok(()), "{version:?} {group}: {message:02x?}");
            // One byte less, one more: neither.
            assert!(check(*scheme, &message[..message.len() - 1]).is_err());
            assert!(check(*scheme, &[&message[..], &[0]].concat()).is_err());
        }
    }
}
