//! Checks clients' certificates with webpki, and reports in plain words why a certificate of X.509
//! version 1 is refused.
//!
//! webpki reads no such certificate, except an authority's own. nbdkit's GnuTLS takes one from a
//! client; here it would need a verifier of our own for what strangers send before they are known.

#![forbid(unsafe_code)]

use std::sync::Arc;

use nbdkit_ipc::x509::{Fields, VERSION_1};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

/// webpki's verifier, with words of ours for one of its refusals.
#[derive(Debug)]
pub(super) struct Verifier(pub(super) Arc<dyn ClientCertVerifier>);

/// The certificate that was refused.
#[derive(Debug)]
struct Version1;

impl std::error::Error for Version1 {}

impl std::fmt::Display for Version1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it, or an intermediate authority's, is of {VERSION_1}")
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now);
        let is_version_1 =
            |der: &CertificateDer<'_>| Fields::of(der).is_some_and(|fields| fields.is_version_1);
        verified.map_err(|error| {
            if is_version_1(end_entity) || intermediates.iter().any(is_version_1) {
                let other = CertificateError::Other(OtherError(Arc::new(Version1)));
                return Error::InvalidCertificate(other);
            }
            error
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
