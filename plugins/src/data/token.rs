//! The lexical level of the data format: a cursor over the text and the tokens that are longer
//! than one character (numbers, names, strings, file names, scripts).
//!
//! Runs in the template while it is configured. The text comes from the command line or the
//! environment; every failure is an error with the byte offset where it was noticed.

use nbdkit_api::{Error, Result};

/// A position in the text.
pub(super) struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

/// What `scanf("%i")` would see, with the sign apart and the magnitude checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) negative: bool,
    pub(super) magnitude: u64,
    /// Written in decimal, which is where a size suffix may follow.
    decimal: bool,
}

pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0b' | b'\x0c')
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a [u8]) -> Cursor<'a> {
        Cursor { text, at: 0 }
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Takes `expected` if the text goes on with it.
    pub(super) fn take(&mut self, expected: &[u8]) -> bool {
        let found = self.text[self.at..].starts_with(expected);
        if found {
            self.at += expected.len();
        }
        found
    }

    pub(super) fn skip(&mut self) {
        self.at = (self.at + 1).min(self.text.len());
    }

    /// Takes everything up to the first byte that `wanted` does not want.
    pub(super) fn take_while(&mut self, wanted: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = &self.text[self.at..];
        let taken = rest.iter().position(|&b| !wanted(b)).unwrap_or(rest.len());
        self.at += taken;
        &rest[..taken]
    }

    pub(super) fn skip_blanks(&mut self) {
        self.take_while(is_blank);
    }

    /// The error for text that fits nothing.
    pub(super) fn unexpected(&self) -> Error {
        Error::msg(format!("data parameter: parsing error at offset {}", self.at))
    }

    /// The error for text that should have gone on with `what`.
    pub(super) fn expected(&self, what: &str) -> Error {
        Error::msg(format!("data parameter: expected {what} at offset {}", self.at))
    }

    /// A decimal, octal or hexadecimal number after optional blanks and sign; `None`, and nothing
    /// taken, if there is none. As for scanf, `08` is the number 0 followed by an 8.
    pub(super) fn number(&mut self) -> Result<Option<Number>> {
        let start = self.at;
        self.skip_blanks();
        let negative = self.peek() == Some(b'-');
        if negative || self.peek() == Some(b'+') {
            self.skip();
        }
        let (radix, digits) = if self.take(b"0x") || self.take(b"0X") {
            (16, self.take_while(|b| b.is_ascii_hexdigit()))
        } else if self.peek() == Some(b'0') {
            (8, self.take_while(|b| (b'0'..=b'7').contains(&b)))
        } else {
            let digits = self.take_while(|b| b.is_ascii_digit());
            if digits.is_empty() {
                self.at = start;
                return Ok(None);
            }
            (10, digits)
        };
        let magnitude = digits.iter().try_fold(0u64, |number, &digit| {
            let digit = char::from(digit).to_digit(radix)?;
            number.checked_mul(radix.into())?.checked_add(digit.into())
        });
        let Some(magnitude) = magnitude else {
            return Err(Error::msg(format!(
                "data parameter: number at offset {start} is too large"
            )));
        };
        Ok(Some(Number { negative, magnitude, decimal: radix == 10 }))
    }

    /// The same, with a size suffix (`k`, `M`, … as in `size=`) allowed after a decimal number.
    pub(super) fn scaled_number(&mut self) -> Result<Option<Number>> {
        let start = self.at;
        let Some(mut number) = self.number()? else { return Ok(None) };
        let next = self.text.get(self.at + 1);
        // `@4be16:1` is an offset and a word, not a suffix.
        if !number.decimal || next.is_some_and(u8::is_ascii_alphanumeric) {
            return Ok(Some(number));
        }
        let scale: u64 = match self.peek().map(|b| b.to_ascii_lowercase()) {
            Some(b'b') => 1,
            Some(b's') => 512,
            Some(b'k') => 1 << 10,
            Some(b'm') => 1 << 20,
            Some(b'g') => 1 << 30,
            Some(b't') => 1 << 40,
            Some(b'p') => 1 << 50,
            Some(b'e') => 1 << 60,
            _ => return Ok(Some(number)),
        };
        self.skip();
        number.magnitude = number.magnitude.checked_mul(scale).ok_or_else(|| {
            Error::msg(format!("data parameter: number at offset {start} is too large"))
        })?;
        Ok(Some(number))
    }

    /// The name after `\` or `$`.
    pub(super) fn name(&mut self, wanted: impl Fn(u8) -> bool) -> Result<String> {
        match str::from_utf8(self.take_while(wanted)) {
            Ok(name) if !name.is_empty() => Ok(name.to_owned()),
            _ => Err(self.unexpected()),
        }
    }

    /// The text of `<(SCRIPT)` behind its opening parenthesis, up to the one that matches it.
    pub(super) fn script(&mut self) -> Result<&'a [u8]> {
        let rest = &self.text[self.at..];
        let mut open = 1usize;
        for (length, byte) in rest.iter().enumerate() {
            match byte {
                b'(' => open += 1,
                b')' => open -= 1,
                _ => {}
            }
            if open == 0 {
                self.at += length + 1;
                return Ok(&rest[..length]);
            }
        }
        Err(self.unexpected())
    }

    /// A string behind its opening quote, up to the closing one, with C's escapes: as nbdkit's,
    /// an unknown escaped character stands for itself and `\x` takes exactly two digits.
    pub(super) fn string(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let unterminated = || Error::msg("data parameter: unterminated string");
        loop {
            match self.next().ok_or_else(unterminated)? {
                b'"' => return Ok(()),
                b'\\' => match self.next().ok_or_else(unterminated)? {
                    b'a' => out.push(7),
                    b'b' => out.push(8),
                    b'f' => out.push(12),
                    b'n' => out.push(b'\n'),
                    b'r' => out.push(b'\r'),
                    b't' => out.push(b'\t'),
                    b'v' => out.push(11),
                    b'x' => out.push(self.hex_escape().ok_or_else(unterminated)??),
                    digit @ b'0'..=b'7' => out.push(self.octal_escape(digit)?),
                    b'u' => self.unicode_escape(4, out)?,
                    b'U' => self.unicode_escape(8, out)?,
                    other => out.push(other),
                },
                other => out.push(other),
            }
        }
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn hex_digits(&mut self, count: usize) -> Option<Option<u32>> {
        let digits = self.text.get(self.at..self.at + count)?;
        let value = digits
            .iter()
            .try_fold(0u32, |value, &digit| Some(value << 4 | char::from(digit).to_digit(16)?));
        self.at += count;
        Some(value)
    }

    fn hex_escape(&mut self) -> Option<Result<u8>> {
        // Two digits cannot exceed a byte.
        Some(self.hex_digits(2)?.map(|value| value as u8).ok_or_else(|| {
            Error::msg("data: \\xNN must be followed by exactly two hexadecimal characters")
        }))
    }

    fn octal_escape(&mut self, first: u8) -> Result<u8> {
        let mut value = u32::from(first - b'0');
        for _ in 0..2 {
            let Some(digit @ b'0'..=b'7') = self.peek() else { break };
            self.skip();
            value = value << 3 | u32::from(digit - b'0');
        }
        u8::try_from(value)
            .map_err(|_| Error::msg(format!("data: \\{value:o} in a string is larger than a byte")))
    }

    fn unicode_escape(&mut self, digits: usize, out: &mut Vec<u8>) -> Result<()> {
        let scalar = self.hex_digits(digits).flatten().and_then(char::from_u32).ok_or_else(|| {
            Error::msg(format!(
                "data: \\u and \\U must be followed by {digits} hexadecimal characters of a Unicode scalar value"
            ))
        })?;
        out.extend_from_slice(scalar.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }
}
