//! Private keys on elliptic curves as GnuTLS writes them: certtool(1) puts a zero before a scalar
//! whose first bit is set, as if it were an INTEGER, and leaves zeros out that belong there. RFC
//! 5915, 3, wants exactly the length of the curve, and so does ring.

#![forbid(unsafe_code)]

use nbdkit_ipc::der::{BIT_STRING, Der, INTEGER, OCTET_STRING, SEQUENCE};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use zeroize::Zeroizing;

/// The public key in ECPrivateKey.
const PUBLIC: u8 = 0xa1;

/// The key with a scalar of the right length; `None` if it is no key on a curve, or its length is
/// right.
pub(super) fn padded(key: &PrivateKeyDer<'_>) -> Option<PrivateKeyDer<'static>> {
    match key {
        PrivateKeyDer::Sec1(key) => {
            let der = sec1(key.secret_sec1_der())?;
            Some(PrivateSec1KeyDer::from(der.to_vec()).into())
        }
        PrivateKeyDer::Pkcs8(key) => {
            let mut info = Der(Der(key.secret_pkcs8_der()).take(SEQUENCE)?);
            let (_, _, version) = info.any()?;
            let (_, _, algorithm) = info.any()?;
            let inner = value(OCTET_STRING, &[&sec1(info.take(OCTET_STRING)?)?]);
            let der = value(SEQUENCE, &[version, algorithm, &inner]);
            Some(PrivatePkcs8KeyDer::from(der.to_vec()).into())
        }
        _ => None,
    }
}

/// ECPrivateKey ::= SEQUENCE { version, privateKey OCTET STRING, [0] parameters, [1] publicKey }.
/// RFC 5915, 3.
fn sec1(der: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut key = Der(Der(der).take(SEQUENCE)?);
    let (INTEGER, _, version) = key.any()? else { return None };
    let scalar = key.take(OCTET_STRING)?;
    let rest = key.0;
    let mut point = None;
    while !key.is_empty() {
        let (tag, content, _) = key.any()?;
        if tag == PUBLIC {
            point = Der(content).take(BIT_STRING);
        }
    }
    // No unused bits, an uncompressed point: 0, 4, x, y.
    let size = point?.len().checked_sub(2)? / 2;
    if scalar.len() == size {
        return None;
    }
    let zeros = scalar.iter().take_while(|byte| **byte == 0).count();
    let digits = &scalar[zeros..];
    let padding = vec![0; size.checked_sub(digits.len())?];
    let scalar = value(OCTET_STRING, &[&padding, digits]);
    Some(value(SEQUENCE, &[version, &scalar, rest]))
}

/// A value of at most 65535 bytes.
fn value(tag: u8, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let [.., high, low] = length.to_be_bytes();
    // Large enough from the start: a buffer that is moved while it grows would leave copies of the
    // key.
    let mut out = Zeroizing::new(Vec::with_capacity(length + 4));
    out.push(tag);
    match (high, low) {
        (0, 0..=0x7f) => out.push(low),
        (0, _) => out.extend([0x81, low]),
        _ => out.extend([0x82, high, low]),
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_get_the_length_of_their_curve() {
        let point = [&[0, 4][..], &[9; 64]].concat();
        let public = value(PUBLIC, &[&value(BIT_STRING, &[&point])]);
        let key = |scalar: &[u8]| {
            value(SEQUENCE, &[&[INTEGER, 1, 1], &value(OCTET_STRING, &[scalar]), &public])
        };
        let right = key(&[&[0; 1][..], &[8; 31]].concat());
        assert_eq!(sec1(&key(&[8; 31])), Some(right.clone()));
        assert_eq!(sec1(&key(&[&[0; 2][..], &[8; 31]].concat())), Some(right.clone()));
        assert_eq!(sec1(&right), None);
        assert_eq!(sec1(&key(&[8; 33])), None);
        assert_eq!(sec1(&right[..right.len() - 1]), None);
    }
}
