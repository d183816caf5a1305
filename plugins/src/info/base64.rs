//! Base64, RFC 4648 section 4, of an export name: at most 4096 hostile bytes.

/// Decodes `text`. White space is skipped, padding is required, and nothing may follow it.
///
/// # Errors
/// What is wrong with it.
pub(super) fn decode(text: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let mut quantum = 0_u32;
    let mut digits = 0;
    let mut padding = 0;
    for &byte in text.iter().filter(|byte| !byte.is_ascii_whitespace()) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' if (2..4).contains(&(digits + padding)) && padding < 2 => {
                padding += 1;
                continue;
            }
            _ => return Err("character outside of the alphabet"),
        };
        if padding > 0 {
            return Err("character after the padding");
        }
        quantum = quantum << 6 | u32::from(value);
        digits += 1;
        if digits == 4 {
            out.extend_from_slice(&quantum.to_be_bytes()[1..]);
            (quantum, digits) = (0, 0);
        }
    }
    match (digits, padding) {
        (0, 0) => {}
        (2, 2) => out.push((quantum >> 4) as u8),
        (3, 1) => out.extend_from_slice(&((quantum >> 2) as u16).to_be_bytes()),
        _ => return Err("wrong length or padding"),
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_decoded() {
        // RFC 4648, section 10.
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9vYmE=", "fooba"),
            ("Zm9v\nYmFy", "foobar"),
        ] {
            assert_eq!(decode(text.as_bytes()).unwrap(), bytes.as_bytes(), "{text}");
        }
        assert_eq!(decode(b"+/==").unwrap(), [0xfb]);
    }

    #[test]
    fn what_is_not_base64_is_refused() {
        for text in
            ["Z", "Zg", "Zg=", "Zg===", "Zm8==", "====", "=", "Zg==Zg==", "Zm8=x", "!!!!", "Zm9v="]
        {
            assert!(decode(text.as_bytes()).is_err(), "{text}");
        }
    }
}
