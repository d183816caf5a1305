//! `--tls-priority`: a GnuTLS priority string, as far as there is something here that it can
//! choose: versions, ciphers, and exchanges of pre-shared keys. Anything else is refused by name:
//! to go on with other algorithms than the user asked for would be worse. nbdkit(1),
//! `--tls-priority`; GnuTLS manual, "Priority strings".

#![forbid(unsafe_code)]

use nbdkit_ipc::keys::Algorithms;
use thiserror::Error;

/// Names whose removal has no effect, since they are never offered.
const ABSENT: &[&str] = &[
    "3DES-CBC",
    "AES-128-CBC",
    "AES-128-CCM",
    "AES-128-CCM-8",
    "AES-256-CBC",
    "AES-256-CCM",
    "AES-256-CCM-8",
    "ANON-DH",
    "ANON-ECDH",
    "ARCFOUR-128",
    "CAMELLIA-128-CBC",
    "CAMELLIA-256-CBC",
    "DHE-DSS",
    "DHE-PSK",
    "DHE-RSA",
    "MD5",
    "RSA",
    "RSA-PSK",
    "SHA1",
    "VERS-DTLS-ALL",
    "VERS-DTLS1.0",
    "VERS-DTLS1.2",
    "VERS-SSL3.0",
    "VERS-TLS1.0",
    "VERS-TLS1.1",
];
/// Names that are always offered.
const PRESENT: &[&str] = &[
    "AEAD",
    "COMP-NULL",
    "CTYPE-X509",
    "ECDHE-ECDSA",
    "ECDHE-PSK",
    "ECDHE-RSA",
    "GROUP-ALL",
    "MAC-ALL",
    "SIGN-ALL",
];

/// Why a priority string is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum PriorityError {
    /// A name that is not known, or not offered here.
    #[error("'{0}' is not served here")]
    NotServed(String),
    /// A name that is always offered.
    #[error("'-{0}' cannot be taken away here")]
    NotRemovable(String),
    /// Every version is taken away.
    #[error("no version of TLS is left; there are VERS-TLS1.2 and VERS-TLS1.3")]
    NoVersion,
    /// Every cipher is taken away.
    #[error("no cipher is left; there are AES-128-GCM, AES-256-GCM and CHACHA20-POLY1305")]
    NoCipher,
}

/// The algorithms that a priority string leaves.
///
/// # Errors
/// A name that is not known or not supported here, or nothing is left.
pub(super) fn parse(text: &str) -> Result<Algorithms, PriorityError> {
    let mut chosen = Algorithms::ALL;
    for (index, word) in text.split([':', ',']).map(str::trim).enumerate() {
        let modifier = word.split_at_checked(1);
        match (modifier, word) {
            (_, "NORMAL" | "PERFORMANCE" | "SECURE128") if index == 0 => {}
            (_, "SECURE192" | "SECURE256") if index == 0 => chosen.aes_128_gcm = false,
            (_, "PFS") if index == 0 => chosen.static_psk = false,
            (_, "NONE") if index == 0 => chosen = Algorithms::NONE,
            (_, "%SERVER_PRECEDENCE") => {}
            (Some(("+", name)), _) => change(&mut chosen, name, true)?,
            (Some(("-" | "!", name)), _) => change(&mut chosen, name, false)?,
            _ => return Err(PriorityError::NotServed(word.to_owned())),
        }
    }
    if !chosen.tls_1_2 && !chosen.tls_1_3 {
        return Err(PriorityError::NoVersion);
    }
    if !chosen.aes_128_gcm && !chosen.aes_256_gcm && !chosen.chacha20_poly1305 {
        return Err(PriorityError::NoCipher);
    }
    Ok(chosen)
}

/// Adds or removes an algorithm.
fn change(chosen: &mut Algorithms, name: &str, on: bool) -> Result<(), PriorityError> {
    match name {
        "VERS-ALL" | "VERS-TLS-ALL" => {
            chosen.tls_1_2 = on;
            chosen.tls_1_3 = on;
        }
        "VERS-TLS1.2" => chosen.tls_1_2 = on,
        "VERS-TLS1.3" => chosen.tls_1_3 = on,
        "CIPHER-ALL" => {
            chosen.aes_128_gcm = on;
            chosen.aes_256_gcm = on;
            chosen.chacha20_poly1305 = on;
        }
        "AES-128-GCM" => chosen.aes_128_gcm = on,
        "AES-256-GCM" => chosen.aes_256_gcm = on,
        "CHACHA20-POLY1305" => chosen.chacha20_poly1305 = on,
        "PSK" => chosen.static_psk = on,
        // In nbdkit's own default, beside the exchanges that there are.
        "DHE-PSK" => {}
        _ if on && PRESENT.contains(&name) || !on && ABSENT.contains(&name) => {}
        _ if on => return Err(PriorityError::NotServed(format!("+{name}"))),
        _ => return Err(PriorityError::NotRemovable(name.to_owned())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Algorithms = Algorithms::ALL;

    #[test]
    fn versions_ciphers_and_exchanges_are_chosen() {
        for (text, expected) in [
            ("NORMAL", ALL),
            ("NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK", ALL),
            ("NORMAL:%SERVER_PRECEDENCE", ALL),
            ("NORMAL:-VERS-TLS1.0:-VERS-TLS1.1:-VERS-SSL3.0", ALL),
            ("NORMAL:-VERS-TLS1.2", Algorithms { tls_1_2: false, ..ALL }),
            ("NORMAL:-VERS-ALL:+VERS-TLS1.3", Algorithms { tls_1_2: false, ..ALL }),
            ("SECURE256", Algorithms { aes_128_gcm: false, ..ALL }),
            (
                "PFS:!CHACHA20-POLY1305",
                Algorithms { static_psk: false, chacha20_poly1305: false, ..ALL },
            ),
            (
                "NONE:+VERS-TLS1.3:+AES-256-GCM:+MAC-ALL:+SIGN-ALL:+GROUP-ALL",
                Algorithms { tls_1_3: true, aes_256_gcm: true, ..Algorithms::NONE },
            ),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn unsupported_algorithms_are_refused_by_name() {
        for (text, word) in [
            ("", "''"),
            ("SYSTEM", "'SYSTEM'"),
            ("@NBDKIT,SYSTEM", "'@NBDKIT'"),
            ("NORMAL:+VERS-TLS1.1", "'+VERS-TLS1.1'"),
            ("NORMAL:+ARCFOUR-128", "'+ARCFOUR-128'"),
            ("NORMAL:-GROUP-X25519", "'-GROUP-X25519'"),
            ("NORMAL:%COMPAT", "'%COMPAT'"),
            ("NORMAL:NORMAL", "'NORMAL'"),
            ("NORMAL:-VERS-ALL", "version"),
            ("NORMAL:-CIPHER-ALL", "cipher"),
        ] {
            let why = parse(text).unwrap_err().to_string();
            assert!(why.contains(word), "{text}: {why}");
        }
    }
}
