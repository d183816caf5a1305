//! The secret part of TLS, and answers to workers.

#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use nbdkit_ipc::keys::{KeyAnswer, KeyRequest, MAX_IDENTITY, MAX_SIGNED};
use rustls::SignatureScheme;
use rustls::sign::{Signer, SigningKey};

use super::psk::PskFile;
use super::transcript;

/// What the server authenticates itself with.
pub(crate) enum Keys {
    /// The private key of the certificate.
    Certificate(Arc<dyn SigningKey>),
    /// Pre-shared keys by identity.
    Psk(PskFile),
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Keys::Certificate(_) => "Certificate(..)",
            Keys::Psk(_) => "Psk(..)",
        })
    }
}

/// A request that an honest worker may make. Answering it may take a millisecond, checking it does
/// not.
#[derive(Debug)]
pub(crate) enum Checked {
    /// A transcript, to be signed.
    Sign(Box<dyn Signer>, Vec<u8>),
    /// The answer is known.
    Known(KeyAnswer),
}

impl Checked {
    pub(crate) fn answer(self) -> KeyAnswer {
        match self {
            // The random number generator may fail: this client's handshake fails then.
            Checked::Sign(signer, message) => {
                signer.sign(&message).map_or(KeyAnswer::Denied, KeyAnswer::Signature)
            }
            Checked::Known(answer) => answer,
        }
    }
}

impl Keys {
    /// Checks a worker's request.
    ///
    /// # Errors
    /// A request that no honest worker sends; which, for the log.
    pub(crate) fn check(&self, request: KeyRequest) -> Result<Checked, &'static str> {
        match (self, request) {
            (Keys::Certificate(key), KeyRequest::Sign { key: _, scheme, message }) => {
                check(&**key, scheme, message)
            }
            (Keys::Psk(file), KeyRequest::Psk { identity }) => {
                if identity.len() > MAX_IDENTITY {
                    return Err("the key of an identity that is too long");
                }
                let answer = file.key(&identity).map_or(KeyAnswer::Denied, KeyAnswer::Psk);
                Ok(Checked::Known(answer))
            }
            (Keys::Certificate(_), KeyRequest::Psk { .. }) => {
                Err("a pre-shared key where there are none")
            }
            (Keys::Psk(_), KeyRequest::Sign { .. }) => Err("a signature where there is no key"),
        }
    }
}

fn check(key: &dyn SigningKey, scheme: u16, message: Vec<u8>) -> Result<Checked, &'static str> {
    if message.len() > MAX_SIGNED {
        return Err("a signature of something that is too long");
    }
    let Some(signer) = key.choose_scheme(&[SignatureScheme::from(scheme)]) else {
        return Err("a signature that this key cannot make");
    };
    transcript::check(scheme, &message)?;
    Ok(Checked::Sign(signer, message))
}

/// The signature schemes of a key, the preferred one first.
pub(super) fn schemes(key: &dyn SigningKey) -> Vec<u16> {
    [
        SignatureScheme::ED25519,
        SignatureScheme::ECDSA_NISTP256_SHA256,
        SignatureScheme::ECDSA_NISTP384_SHA384,
        SignatureScheme::RSA_PSS_SHA256,
        SignatureScheme::RSA_PSS_SHA384,
        SignatureScheme::RSA_PSS_SHA512,
        SignatureScheme::RSA_PKCS1_SHA256,
        SignatureScheme::RSA_PKCS1_SHA384,
        SignatureScheme::RSA_PKCS1_SHA512,
    ]
    .into_iter()
    .filter(|scheme| key.choose_scheme(&[*scheme]).is_some())
    .map(u16::from)
    .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use nbdkit_ipc::KeyId;
    use rustls::crypto::ring::sign::any_supported_type;
    use rustls::pki_types::PrivateKeyDer;

    /// An Ed25519 key of RFC 8410, 10.3.
    pub(crate) const KEY: &[u8] =
        b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20\
        \xd4\xee\x72\xdb\xf9\x13\x58\x4a\xd5\xb6\xd8\xf1\xf7\x69\xf8\xad\
        \x3a\xfe\x7c\x28\xcb\xf1\xd4\xfb\xe0\x97\xa8\x8f\x44\x75\x58\x42";

    fn keys() -> Keys {
        let der = PrivateKeyDer::try_from(KEY).unwrap();
        Keys::Certificate(any_supported_type(&der).unwrap())
    }

    fn verify13() -> Vec<u8> {
        let mut message = vec![0x20; 64];
        message.extend_from_slice(b"TLS 1.3, server CertificateVerify\0");
        message.extend([7; 32]);
        message
    }

    fn ask(scheme: SignatureScheme, message: Vec<u8>) -> Result<KeyAnswer, &'static str> {
        let checked =
            keys().check(KeyRequest::Sign { key: KeyId::ONLY, scheme: scheme.into(), message });
        checked.map(Checked::answer)
    }

    #[test]
    fn a_transcript_is_signed() {
        let answer = ask(SignatureScheme::ED25519, verify13());
        assert!(matches!(answer, Ok(KeyAnswer::Signature(bytes)) if bytes.len() == 64));
    }

    #[test]
    fn nothing_else_is_signed() {
        assert!(ask(SignatureScheme::ED25519, b"I owe you".to_vec()).is_err());
        assert!(ask(SignatureScheme::ED25519, vec![0x20; MAX_SIGNED + 1]).is_err());
        assert!(ask(SignatureScheme::RSA_PSS_SHA256, verify13()).is_err());
        assert!(keys().check(KeyRequest::Psk { identity: b"alice".to_vec() }).is_err());
    }

    #[test]
    fn a_key_knows_its_schemes() {
        let Keys::Certificate(key) = keys() else { panic!() };
        assert_eq!(schemes(&*key), [0x0807]);
    }
}
