//! Reading DER, as far as both ends of TLS need it: the listener for keys, the worker for names.
//! X.690, 8.1, 10.1.

#![forbid(unsafe_code)]

/// INTEGER.
pub const INTEGER: u8 = 0x02;
/// BIT STRING.
pub const BIT_STRING: u8 = 0x03;
/// OCTET STRING.
pub const OCTET_STRING: u8 = 0x04;
/// OBJECT IDENTIFIER.
pub const OBJECT_IDENTIFIER: u8 = 0x06;
/// SEQUENCE.
pub const SEQUENCE: u8 = 0x30;
/// SET.
pub const SET: u8 = 0x31;

/// What is left of some DER.
#[derive(Clone, Copy)]
pub struct Der<'a>(pub &'a [u8]);

impl<'a> Der<'a> {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tag of the next value.
    pub fn tag(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// Takes the next value: tag, content, and all its bytes. `None` if it is not whole, or its tag
    /// takes more than a byte.
    pub fn any(&mut self) -> Option<(u8, &'a [u8], &'a [u8])> {
        let whole = self.0;
        let (&[tag, first], rest) = whole.split_first_chunk()?;
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = digits.iter().fold(0u32, |sum, digit| sum << 8 | u32::from(*digit));
                (usize::try_from(length).ok()?, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content, &whole[..whole.len() - rest.len()]))
    }

    /// Takes the next value if it has this tag: its content.
    pub fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, content, _) = self.any()?;
        (found == tag).then_some(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_one_after_the_other() {
        let mut der = Der(&[0x02, 1, 7, 0x04, 0x81, 2, 8, 9]);
        assert_eq!((der.tag(), der.take(INTEGER)), (Some(INTEGER), Some(&[7][..])));
        assert_eq!(der.any(), Some((OCTET_STRING, &[8, 9][..], &[0x04, 0x81, 2, 8, 9][..])));
        assert!(der.is_empty());
    }

    #[test]
    fn incomplete_values_are_refused() {
        for bytes in [
            &[][..],
            &[0x30],
            &[0x30, 1],
            &[0x30, 0x80],
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
            &[0x30, 0x85, 0, 0, 0, 0, 0],
            &[0x1f, 0x01, 0x00],
        ] {
            assert_eq!(Der(bytes).any(), None, "{bytes:?}");
        }
        assert_eq!(Der(&[0x30, 0]).take(SET), None);
    }
}
