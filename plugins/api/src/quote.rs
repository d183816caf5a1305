//! Text of clients and users in messages, with C's escapes, as nbdkit writes it.

use std::fmt;

/// Bytes as they stand in a C string: `\a`, `\"`, `\\`, `\x1b`. Other text in UTF-8 stays as it is.
#[derive(Debug, Clone, Copy)]
pub struct Quoted<'a>(&'a [u8]);

/// See [`Quoted`]; without quotation marks around it.
pub fn quoted<T: AsRef<[u8]> + ?Sized>(text: &T) -> Quoted<'_> {
    Quoted(text.as_ref())
}

/// The letter of C's escape for a control character, if it has one.
pub fn letter(character: char) -> Option<char> {
    Some(match character {
        '\u{7}' => 'a',
        '\u{8}' => 'b',
        '\u{c}' => 'f',
        '\n' => 'n',
        '\r' => 'r',
        '\t' => 't',
        '\u{b}' => 'v',
        _ => return None,
    })
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                match (letter(character), character) {
                    (Some(letter), _) => write!(f, "\\{letter}")?,
                    (None, '"' | '\\') => write!(f, "\\{character}")?,
                    (None, _) if character.is_control() => {
                        for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                            write!(f, "\\x{byte:02x}")?;
                        }
                    }
                    (None, _) => write!(f, "{character}")?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_as_in_c() {
        for (text, expected) in [
            (&b"a\x07\x08\x0c\n\r\t\x0b"[..], "a\\a\\b\\f\\n\\r\\t\\v"),
            (b"\x1b[2J\x7f\0", "\\x1b[2J\\x7f\\x00"),
            (b"\"it's\" \\", "\\\"it's\\\" \\\\"),
            ("gr\u{fc}n \u{9b}".as_bytes(), "gr\u{fc}n \\xc2\\x9b"),
            (b"\xff\xfe", "\\xff\\xfe"),
        ] {
            assert_eq!(quoted(text).to_string(), expected);
        }
    }
}
