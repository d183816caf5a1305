//! What the listener signs: the server's part of a TLS handshake and nothing else. Pure.
//!
//! A worker that was taken over chooses what it asks to be signed. With what is accepted here it
//! can impersonate this server in one handshake; it cannot have a document, a client's
//! CertificateVerify or another protocol's message signed.

#![forbid(unsafe_code)]

/// RFC 8446, 4.4.3: 64 spaces and this precede the hash of the handshake.
const SPACES: [u8; 64] = [0x20; 64];
const CONTEXT: &[u8] = b"TLS 1.3, server CertificateVerify\0";

/// Both sides' random numbers. RFC 5246, 7.4.1.
const RANDOMS: usize = 64;
/// ECCurveType named_curve. RFC 8422, 5.4.
const NAMED_CURVE: u8 = 3;

/// Signatures of TLS 1.2 alone: RSA with PKCS #1 v1.5. RFC 8446, 4.2.3.
const PKCS1: [u8; 1] = [0x01];

/// Whether `message` is what the server of a handshake signs with `scheme` (TLS SignatureScheme).
///
/// # Errors
/// What it is instead, for the log.
pub(super) fn check(scheme: u16, message: &[u8]) -> Result<(), &'static str> {
    if let Some(rest) = message.strip_prefix(&SPACES) {
        return verify(scheme, rest);
    }
    match message.get(RANDOMS..) {
        Some(parameters) => key_exchange(parameters),
        None => Err("a signature of something that is no handshake"),
    }
}

/// CertificateVerify of TLS 1.3, after the spaces.
fn verify(scheme: u16, rest: &[u8]) -> Result<(), &'static str> {
    let [_, algorithm] = scheme.to_be_bytes();
    // 0x0401, 0x0501, 0x0601; Ed25519 is 0x0807.
    if PKCS1.contains(&algorithm) {
        return Err("a signature that TLS 1.3 does not have");
    }
    match rest.strip_prefix(CONTEXT) {
        // SHA-256 and SHA-384: the hashes of the cipher suites.
        Some(hash) if matches!(hash.len(), 32 | 48) => Ok(()),
        _ => Err("a signature of something that is no CertificateVerify"),
    }
}

/// ServerECDHParams of TLS 1.2, after the random numbers. RFC 8422, 5.4.
fn key_exchange(parameters: &[u8]) -> Result<(), &'static str> {
    let [NAMED_CURVE, high, low, length, point @ ..] = parameters else {
        return Err("a signature of something that is no ServerKeyExchange");
    };
    // Uncompressed points begin with 4; RFC 8422, 5.4.1.
    let expected = match u16::from_be_bytes([*high, *low]) {
        0x17 => (65, Some(4)), // secp256r1
        0x18 => (97, Some(4)), // secp384r1
        0x1d => (32, None),    // x25519
        _ => return Err("a signature of a key exchange on a curve that is not offered"),
    };
    let (size, first) = expected;
    if point.len() != size
        || usize::from(*length) != size
        || first.is_some_and(|first| point.first() != Some(&first))
    {
        return Err("a signature of something that is no ServerKeyExchange");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECDSA: u16 = 0x0403;
    const RSA_PSS: u16 = 0x0804;
    const RSA_PKCS1: u16 = 0x0401;

    fn verify13(hash: usize) -> Vec<u8> {
        [&SPACES[..], CONTEXT, &vec![7; hash]].concat()
    }

    fn exchange(group: [u8; 2], point: &[u8]) -> Vec<u8> {
        [&[1; 64][..], &[3], &group, &[point.len() as u8], point].concat()
    }

    #[test]
    fn certificate_verify_is_accepted_with_both_hashes_and_nothing_behind() {
        assert_eq!(check(ECDSA, &verify13(32)), Ok(()));
        assert_eq!(check(RSA_PSS, &verify13(48)), Ok(()));
        for hash in [0, 20, 31, 33, 47, 49, 64] {
            assert!(check(ECDSA, &verify13(hash)).is_err(), "{hash}");
        }
    }

    #[test]
    fn the_client_s_certificate_verify_is_not_ours() {
        let client = [&SPACES[..], b"TLS 1.3, client CertificateVerify\0", &[7; 32]].concat();
        assert!(check(ECDSA, &client).is_err());
    }

    #[test]
    fn tls_1_3_does_not_have_pkcs_1() {
        assert!(check(RSA_PKCS1, &verify13(32)).is_err());
        assert_eq!(check(RSA_PKCS1, &exchange([0, 0x1d], &[9; 32])), Ok(()));
    }

    #[test]
    fn key_exchanges_are_accepted_on_the_offered_curves_with_points_of_their_size() {
        let point = |size: usize| [vec![4], vec![9; size - 1]].concat();
        assert_eq!(check(ECDSA, &exchange([0, 0x17], &point(65))), Ok(()));
        assert_eq!(check(ECDSA, &exchange([0, 0x18], &point(97))), Ok(()));
        assert_eq!(check(ECDSA, &exchange([0, 0x1d], &[9; 32])), Ok(()));
        for wrong in [
            exchange([0, 0x17], &point(64)),
            exchange([0, 0x17], &[9; 65]),
            exchange([0, 0x19], &point(133)),
            exchange([0, 0x1d], &[9; 33]),
            exchange([1, 0x00], &[9; 32]),
            [exchange([0, 0x1d], &[9; 32]), vec![0]].concat(),
            exchange([0, 0x1d], &[9; 32])[..99].to_vec(),
        ] {
            assert!(check(ECDSA, &wrong).is_err(), "{wrong:?}");
        }
        let mut explicit = exchange([0, 0x17], &point(65));
        explicit[64] = 1;
        assert!(check(ECDSA, &explicit).is_err());
    }

    #[test]
    fn short_messages_are_refused() {
        for length in 0..=68 {
            assert!(check(ECDSA, &vec![3; length]).is_err(), "{length}");
        }
    }
}
