//! Whom a certificate is about: its subject and issuer as RFC 4514 strings, written as GnuTLS
//! writes them, so that rules made for nbdkit match (nbdkit_peer_tls_dn in nbdkit-plugin(3); `dn:`
//! in nbdkit-ip-filter(1)).
//!
//! Reads DER as far as this takes. The certificate has been verified, and is the peer's all the
//! same: whatever is not as it should be makes no name rather than a wrong one.

#![forbid(unsafe_code)]

use std::fmt::Write;

use nbdkit_ipc::der::{Der, OBJECT_IDENTIFIER, SEQUENCE, SET};
use nbdkit_ipc::x509::Fields;

/// The subject of a certificate (DER); `None` if it cannot be read.
pub(crate) fn subject(certificate: &[u8]) -> Option<String> {
    text(Der(Fields::of(certificate)?.subject))
}

/// Its issuer.
pub(crate) fn issuer(certificate: &[u8]) -> Option<String> {
    text(Der(Fields::of(certificate)?.issuer))
}

const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const TELETEX_STRING: u8 = 0x14;
const IA5_STRING: u8 = 0x16;
const UNIVERSAL_STRING: u8 = 0x1c;
const BMP_STRING: u8 = 0x1e;

/// An RDNSequence as text: the last name first. RFC 4514, 2.1.
fn text(mut sequence: Der<'_>) -> Option<String> {
    let mut names = Vec::new();
    while !sequence.is_empty() {
        let mut set = Der(sequence.take(SET)?);
        let mut text = String::new();
        while !set.is_empty() {
            if !text.is_empty() {
                text.push('+');
            }
            let mut pair = Der(set.take(SEQUENCE)?);
            attribute(pair.take(OBJECT_IDENTIFIER)?, &mut pair, &mut text)?;
        }
        names.push(text);
    }
    names.reverse();
    Some(names.join(","))
}

/// Appends `TYPE=VALUE`. RFC 4514, 2.3.
fn attribute(oid: &[u8], value: &mut Der<'_>, out: &mut String) -> Option<()> {
    let (tag, content, whole) = value.any()?;
    let known = NAMES.iter().find(|(known, _)| *known == oid);
    let decoded = string(tag, content);
    match (known, decoded) {
        (Some((_, name)), Some(value)) => {
            out.push_str(name);
            out.push('=');
            escape(&value, out);
        }
        // RFC 4514, 2.4: what has no string, or no name, is the hexadecimal of its DER.
        (known, _) => {
            match known {
                Some((_, name)) => out.push_str(name),
                None => dotted(oid, out)?,
            }
            out.push_str("=#");
            for byte in whole {
                let _ = write!(out, "{byte:02x}");
            }
        }
    }
    Some(())
}

/// A string of one of the types that names have. RFC 5280, 4.1.2.4.
fn string(tag: u8, content: &[u8]) -> Option<String> {
    match tag {
        UTF8_STRING => String::from_utf8(content.to_vec()).ok(),
        PRINTABLE_STRING | IA5_STRING => {
            content.is_ascii().then(|| content.iter().copied().map(char::from).collect())
        }
        // In practice Latin-1.
        TELETEX_STRING => Some(content.iter().copied().map(char::from).collect()),
        BMP_STRING => {
            let (units, []) = content.as_chunks::<2>() else { return None };
            char::decode_utf16(units.iter().map(|unit| u16::from_be_bytes(*unit)))
                .collect::<Result<_, _>>()
                .ok()
        }
        UNIVERSAL_STRING => {
            let (units, []) = content.as_chunks::<4>() else { return None };
            units.iter().map(|unit| char::from_u32(u32::from_be_bytes(*unit))).collect()
        }
        _ => None,
    }
}

/// RFC 4514, 2.4.
fn escape(value: &str, out: &mut String) {
    let last = value.chars().count().saturating_sub(1);
    for (index, c) in value.chars().enumerate() {
        match c {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            ' ' if index == 0 || index == last => out.push_str("\\ "),
            '#' if index == 0 => out.push_str("\\#"),
            '\0' => out.push_str("\\00"),
            _ => out.push(c),
        }
    }
}

/// An object identifier as digits with dots. X.690, 8.19.
fn dotted(oid: &[u8], out: &mut String) -> Option<()> {
    let mut value = 0u64;
    let mut first = true;
    for byte in oid {
        value = value.checked_shl(7).filter(|_| value >> 57 == 0)? | u64::from(byte & 0x7f);
        if byte & 0x80 != 0 {
            continue;
        }
        if first {
            let top = (value / 40).min(2);
            let _ = write!(out, "{top}.{}", value - 40 * top);
            first = false;
        } else {
            let _ = write!(out, ".{value}");
        }
        value = 0;
    }
    // It must not end in the middle of a number.
    (!first && oid.last().is_some_and(|byte| byte & 0x80 == 0)).then_some(())
}

/// Names of types as GnuTLS prints them.
const NAMES: &[(&[u8], &str)] = &[
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 4], "surName"),
    (&[0x55, 4, 5], "serialNumber"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 9], "STREET"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x55, 4, 12], "title"),
    (&[0x55, 4, 42], "givenName"),
    (&[0x55, 4, 43], "initials"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], "UID"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], "DC"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1], "EMAIL"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        assert!(content.len() < 128);
        [&[tag, content.len() as u8], content].concat()
    }

    fn rdn(oid: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
        let pair = [der(OBJECT_IDENTIFIER, oid), der(tag, value)].concat();
        der(SET, &der(SEQUENCE, &pair))
    }

    fn text(rdns: &[Vec<u8>]) -> Option<String> {
        super::text(Der(&rdns.concat()))
    }

    const CN: &[u8] = &[0x55, 4, 3];

    #[test]
    fn names_are_written_last_first_and_escaped() {
        let rdns = [
            rdn(&[0x55, 4, 6], PRINTABLE_STRING, b"US"),
            rdn(&[0x55, 4, 10], UTF8_STRING, b"Org+ \"x\", \\"),
            rdn(CN, UTF8_STRING, "# \u{e9} ".as_bytes()),
        ];
        assert_eq!(text(&rdns).unwrap(), "CN=\\# \u{e9}\\ ,O=Org\\+ \\\"x\\\"\\, \\\\,C=US");
        assert_eq!(text(&[]).unwrap(), "");
    }

    #[test]
    fn strings_of_all_types_are_read_and_others_are_hexadecimal() {
        assert_eq!(text(&[rdn(CN, BMP_STRING, &[0, 0x41, 0x20, 0xac])]).unwrap(), "CN=A\u{20ac}");
        assert_eq!(text(&[rdn(CN, UNIVERSAL_STRING, &[0, 0, 0, 0x41])]).unwrap(), "CN=A");
        assert_eq!(text(&[rdn(CN, TELETEX_STRING, &[0xe9])]).unwrap(), "CN=\u{e9}");
        assert_eq!(text(&[rdn(CN, UTF8_STRING, &[0xff])]).unwrap(), "CN=#0c01ff");
        assert_eq!(
            text(&[rdn(&[0x2a, 3, 0x86, 0x48], UTF8_STRING, b"A")]).unwrap(),
            "1.2.3.840=#0c0141"
        );
    }

    #[test]
    fn several_names_in_one_set_are_joined() {
        let pair = |oid: &[u8], value: &[u8]| {
            der(SEQUENCE, &[der(OBJECT_IDENTIFIER, oid), der(UTF8_STRING, value)].concat())
        };
        let set = der(SET, &[pair(CN, b"a"), pair(&[0x55, 4, 11], b"b")].concat());
        assert_eq!(text(&[set]).unwrap(), "CN=a+OU=b");
    }

    #[test]
    fn the_names_of_a_certificate_are_found() {
        let name = |value: &[u8]| der(SEQUENCE, &rdn(CN, UTF8_STRING, value));
        let parts = [
            der(2, &[7]),
            der(SEQUENCE, &[]),
            name(b"issuer"),
            der(SEQUENCE, &[]),
            name(b"subject"),
            der(SEQUENCE, &[]),
        ];
        let certificate = der(SEQUENCE, &der(SEQUENCE, &parts.concat()));
        assert_eq!(subject(&certificate).unwrap(), "CN=subject");
        assert_eq!(issuer(&certificate).unwrap(), "CN=issuer");
    }

    #[test]
    fn what_is_no_name_is_none() {
        assert_eq!(subject(&[]), None);
        assert_eq!(subject(&[0x30, 0x80]), None);
        assert_eq!(super::text(Der(&[0x30, 0])), None);
        assert_eq!(text(&[rdn(&[0xff; 20], UTF8_STRING, b"x")]), None);
        assert_eq!(text(&[rdn(&[0x2a, 0x86], UTF8_STRING, b"x")]), None);
    }
}
