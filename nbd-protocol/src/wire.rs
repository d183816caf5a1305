//! A cursor over received bytes, and helpers to append fields. Every structure of variable length
//! is read through it, so that bounds, strings and trailing bytes are checked in one place.

use crate::Malformed;
use crate::constants::MAX_STRING;

/// Reads big-endian fields from a slice; every failure names the structure being read.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Reader { what, bytes }
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let Some((taken, rest)) = self.bytes.split_at_checked(length) else {
            return Err(Malformed::Truncated {
                what: self.what,
                needed: length,
                available: self.bytes.len(),
            });
        };
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let Some((taken, rest)) = self.bytes.split_first_chunk::<N>() else {
            return Err(Malformed::Truncated {
                what: self.what,
                needed: N,
                available: self.bytes.len(),
            });
        };
        self.bytes = rest;
        Ok(*taken)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// A length field that counts bytes, bounded by the protocol's longest string.
    pub(crate) fn string_length(&mut self, what: &'static str) -> Result<usize, Malformed> {
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        check_length(what, length)?;
        Ok(length)
    }

    /// A string preceded by its length in 32 bits.
    pub(crate) fn string(&mut self, what: &'static str) -> Result<&'a str, Malformed> {
        let length = self.string_length(what)?;
        string(what, self.bytes(length)?)
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    pub(crate) fn left(&self) -> usize {
        self.bytes.len()
    }

    /// Ends the structure; bytes left are an error.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Trailing { what: self.what, extra: self.bytes.len() })
        }
    }
}

fn check_length(what: &'static str, length: usize) -> Result<(), Malformed> {
    if length > MAX_STRING {
        return Err(Malformed::TooLong { what, limit: MAX_STRING, found: length });
    }
    Ok(())
}

/// Checks bytes against the protocol's definition of a string: UTF-8, no NUL, at most
/// [`MAX_STRING`] bytes.
///
/// NBD protocol, "Conventions".
pub(crate) fn string<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a str, Malformed> {
    check_length(what, bytes.len())?;
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed::NotUtf8 { what })?;
    if text.contains('\0') {
        return Err(Malformed::Nul { what });
    }
    Ok(text)
}

/// The longest prefix of `text` of at most [`MAX_STRING`] bytes, cut between characters.
pub(crate) fn bounded(text: &str) -> &str {
    if text.len() <= MAX_STRING {
        return text;
    }
    let mut end = MAX_STRING;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Appends a string preceded by its length in 32 bits; a longer one than the protocol permits is
/// cut.
pub(crate) fn put_string(buf: &mut Vec<u8>, text: &str) {
    let text = bounded(text);
    put_length(buf, text.len());
    buf.extend_from_slice(text.as_bytes());
}

/// Appends a length in 32 bits. Callers bound it by [`MAX_STRING`] or by a 16-bit count, so it
/// always fits.
pub(crate) fn put_length(buf: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    buf.extend_from_slice(&length.to_be_bytes());
}

/// Reads a field of a fixed-size header: `N` bytes from offset `at`.
///
/// Both are compile-time constants of this crate's codecs, checked by their round-trip tests.
pub(crate) fn field<const N: usize, const M: usize>(header: &[u8; M], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_never_cuts_inside_a_character() {
        let text = "é".repeat(MAX_STRING);
        let cut = bounded(&text);
        assert_eq!(cut.len(), MAX_STRING);
        let odd = format!("x{text}");
        assert_eq!(bounded(&odd).len(), MAX_STRING - 1);
    }

    #[test]
    fn a_string_of_4096_bytes_is_legal_and_one_more_is_not() {
        let longest = vec![b'a'; MAX_STRING];
        assert!(string("name", &longest).is_ok());
        let longer = vec![b'a'; MAX_STRING + 1];
        assert!(matches!(string("name", &longer), Err(Malformed::TooLong { found: 4097, .. })));
    }

    #[test]
    fn nul_and_bad_utf8_are_not_strings() {
        assert_eq!(string("name", b"a\0b"), Err(Malformed::Nul { what: "name" }));
        assert_eq!(string("name", b"\xff"), Err(Malformed::NotUtf8 { what: "name" }));
    }
}
