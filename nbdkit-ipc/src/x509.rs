//! The fields of an X.509 certificate that both ends of TLS look at. Nothing is verified here. RFC
//! 5280, 4.1.

#![forbid(unsafe_code)]

use crate::der::{Der, SEQUENCE};

/// Stands before the version, which version 1 leaves out.
const VERSION: u8 = 0xa0;

/// Why a certificate of version 1 is refused, and the remedy. `openssl x509 -req` makes one unless
/// an extension is requested.
pub const VERSION_1: &str = "X.509 version 1, which cannot say what the certificate is for; issue one of version 3, \
                             for instance with certtool(1), or with 'openssl x509 -req ... -extfile FILE' where FILE \
                             says 'keyUsage=digitalSignature'";

/// The beginning of a certificate (DER).
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    /// Version 1: no extensions.
    pub is_version_1: bool,
    /// Name of the issuer, the content of its SEQUENCE.
    pub issuer: &'a [u8],
    /// Name of the subject, likewise.
    pub subject: &'a [u8],
    /// SubjectPublicKeyInfo, the whole of it.
    pub public_key_info: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Reads a certificate as far as its public key; `None` if it is none.
    ///
    /// tbsCertificate begins with version, serialNumber, signature, issuer, validity, subject,
    /// subjectPublicKeyInfo.
    pub fn of(certificate: &'a [u8]) -> Option<Fields<'a>> {
        let mut tbs = Der(Der(Der(certificate).take(SEQUENCE)?).take(SEQUENCE)?);
        let is_version_1 = tbs.tag() != Some(VERSION);
        if !is_version_1 {
            tbs.any()?;
        }
        tbs.any()?;
        tbs.take(SEQUENCE)?;
        let issuer = tbs.take(SEQUENCE)?;
        tbs.take(SEQUENCE)?;
        let subject = tbs.take(SEQUENCE)?;
        let (SEQUENCE, _, public_key_info) = tbs.any()? else { return None };
        Some(Fields { is_version_1, issuer, subject, public_key_info })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        assert!(content.len() < 128);
        [&[tag, content.len() as u8], content].concat()
    }

    #[test]
    fn the_fields_of_both_versions_are_found_and_of_half_a_certificate_none() {
        for (version, is_version_1) in [(vec![], true), (der(VERSION, &der(2, &[2])), false)] {
            let tbs = [
                version,
                der(2, &[7]),
                der(SEQUENCE, &[]),
                der(SEQUENCE, b"issuer"),
                der(SEQUENCE, &[]),
                der(SEQUENCE, b"subject"),
                der(SEQUENCE, b"key"),
            ]
            .concat();
            let certificate = der(SEQUENCE, &der(SEQUENCE, &tbs));
            let fields = Fields::of(&certificate).unwrap();
            assert_eq!(fields.is_version_1, is_version_1);
            assert_eq!((fields.issuer, fields.subject), (&b"issuer"[..], &b"subject"[..]));
            assert_eq!(fields.public_key_info, der(SEQUENCE, b"key"));
            for cut in 0..certificate.len() {
                assert!(Fields::of(&certificate[..cut]).is_none(), "{cut}");
            }
        }
    }
}
