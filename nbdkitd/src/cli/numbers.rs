//! Names and numbers in options, parsed exactly as nbdkit parses them.
//!
//! Used by the listener while it parses its command line. The texts are the caller's; every error
//! quotes them. nbdkit-plugin(3), "Parsing numbers", "Parsing booleans", "Parsing delays".

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::time::Duration;

use super::error::Fault;

/// Reads an unsigned 32-bit number: C's `strtoul` in base 0, so `0x10` and `010` are hexadecimal
/// and octal.
///
/// # Errors
/// nbdkit's own texts: empty, negative (`-0` too), trailing garbage, out of range.
pub(crate) fn parse_u32(what: &str, text: &OsStr) -> Result<u32, Fault> {
    let number = Number::scan(what, text)?;
    if number.negative {
        return Err(Fault::error(format!("{what}: negative numbers are not allowed")));
    }
    let magnitude = number.magnitude(what, text)?;
    magnitude.and_then(|value| u32::try_from(value).ok()).ok_or_else(|| out_of_range(what, text))
}

/// Reads a signed 32-bit number, otherwise as [`parse_u32`].
///
/// # Errors
/// As [`parse_u32`], negative numbers excepted.
pub(crate) fn parse_i32(what: &str, text: &OsStr) -> Result<i32, Fault> {
    let number = Number::scan(what, text)?;
    let magnitude = number.magnitude(what, text)?;
    magnitude
        .and_then(|value| i64::try_from(value).ok())
        .map(|value| if number.negative { -value } else { value })
        .and_then(|value| i32::try_from(value).ok())
        .ok_or_else(|| out_of_range(what, text))
}

/// Reads a boolean; upper and lower case are the same.
///
/// # Errors
/// `could not decipher boolean (TEXT)`.
pub(crate) fn parse_bool(text: &OsStr) -> Result<bool, Fault> {
    let lower = text.to_string_lossy().to_ascii_lowercase();
    match lower.as_str() {
        "1" | "true" | "t" | "yes" | "y" | "on" => Ok(true),
        "0" | "false" | "f" | "no" | "n" | "off" => Ok(false),
        _ => Err(Fault::error(format!("could not decipher boolean ({})", text.to_string_lossy()))),
    }
}

/// Reads a delay: a number, which may have a fraction and an exponent, and nothing or `s`, `ms`,
/// `us`, `μs`, `ns`.
///
/// Seconds must fit 32 bits, as they do in nbdkit's API. Both the Greek mu and the micro sign are
/// accepted.
///
/// # Errors
/// `WHAT: could not parse delay or sleep: "TEXT"` for anything else, negative, infinite and
/// not-a-number included.
pub(crate) fn parse_delay(what: &str, text: &OsStr) -> Result<Duration, Fault> {
    let refused = || {
        Fault::error(format!(
            "{what}: could not parse delay or sleep: \"{}\"",
            text.to_string_lossy()
        ))
    };
    let text = text.to_str().ok_or_else(refused)?;
    let text = text.trim_start_matches(is_blank);
    let (number, unit) = text.split_at(float_length(text));
    let number: f64 = number.parse().map_err(|_| refused())?;
    let per_second = match unit {
        "" | "s" => 1.0,
        "ms" => 1e3,
        "us" | "\u{3bc}s" | "\u{b5}s" => 1e6,
        "ns" => 1e9,
        _ => return Err(refused()),
    };
    if number.is_sign_negative() {
        return Err(refused());
    }
    let delay = Duration::try_from_secs_f64(number / per_second).map_err(|_| refused())?;
    if delay.as_secs() > u64::from(u32::MAX) {
        return Err(refused());
    }
    Ok(delay)
}

/// The length of the longest prefix that is a decimal floating point number; the words inf and nan
/// are not.
fn float_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits_from = |from: usize| {
        bytes
            .get(from..)
            .map_or(0, |rest| rest.iter().take_while(|byte| byte.is_ascii_digit()).count())
    };
    let sign = usize::from(matches!(bytes.first(), Some(b'+' | b'-')));
    let whole = digits_from(sign);
    let mut end = sign + whole;
    let mut fraction = 0;
    if bytes.get(end) == Some(&b'.') {
        fraction = digits_from(end + 1);
        if whole + fraction > 0 {
            end += 1 + fraction;
        }
    }
    if whole + fraction == 0 {
        return 0;
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let exponent_sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits_from(end + 1 + exponent_sign);
        if exponent > 0 {
            end += 1 + exponent_sign + exponent;
        }
    }
    end
}

/// A number as `strtol` sees it: blanks, a sign, a base, digits.
struct Number<'a> {
    negative: bool,
    radix: u32,
    digits: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Number<'a> {
    /// Splits `text`.
    ///
    /// # Errors
    /// No digits at all. A lone minus counts as negative first, as it does in nbdkit, so that is
    /// left to the caller.
    fn scan(what: &str, text: &'a OsStr) -> Result<Self, Fault> {
        let bytes = text.as_encoded_bytes();
        let blanks = bytes.iter().take_while(|byte| is_blank(char::from(**byte))).count();
        let (negative, unsigned) = match bytes.split_at(blanks).1 {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            rest => (false, rest),
        };
        let (radix, body) = match unsigned {
            [b'0', b'x' | b'X', digit, ..] if digit.is_ascii_hexdigit() => {
                (16, unsigned.split_at(2).1)
            }
            [b'0', ..] => (8, unsigned),
            _ => (10, unsigned),
        };
        let length = body.iter().take_while(|byte| char::from(**byte).is_digit(radix)).count();
        let (digits, rest) = body.split_at(length);
        if digits.is_empty() && !negative {
            return Err(no_number(what, text));
        }
        Ok(Self { negative, radix, digits, rest })
    }

    /// The value without its sign; `None` when it does not fit 64 bits.
    ///
    /// # Errors
    /// Digits are missing, or something follows them.
    fn magnitude(&self, what: &str, text: &OsStr) -> Result<Option<u64>, Fault> {
        if self.digits.is_empty() {
            return Err(no_number(what, text));
        }
        let value = self.digits.iter().try_fold(0_u64, |value, byte| {
            let digit = char::from(*byte).to_digit(self.radix)?;
            value.checked_mul(u64::from(self.radix))?.checked_add(u64::from(digit))
        });
        if value.is_some() && !self.rest.is_empty() {
            let quoted = text.to_string_lossy();
            return Err(Fault::error(format!(
                "{what}: could not parse number: \"{quoted}\": trailing garbage"
            )));
        }
        Ok(value)
    }
}

/// What there is instead of a number.
fn no_number(what: &str, text: &OsStr) -> Fault {
    Fault::error(if text.is_empty() {
        format!("{what}: empty string where we expected a number")
    } else {
        let quoted = text.to_string_lossy();
        format!("{what}: could not parse number: \"{quoted}\": not a number")
    })
}

fn out_of_range(what: &str, text: &OsStr) -> Fault {
    let quoted = text.to_string_lossy();
    Fault::error(format!(
        "{what}: could not parse number: \"{quoted}\": Numerical result out of range"
    ))
}

/// C's `isspace` in the C locale.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said<T: std::fmt::Debug>(result: Result<T, Fault>) -> String {
        result.unwrap_err().named("nbdkit", "nbdkit").to_string()
    }

    #[test]
    fn unsigned_numbers_are_read_in_base_zero() {
        for (text, value) in [
            ("0", 0),
            ("5", 5),
            (" 5", 5),
            ("+5", 5),
            ("0x10", 16),
            ("010", 8),
            ("4294967295", u32::MAX),
        ] {
            assert_eq!(parse_u32("threads", text.as_ref()), Ok(value), "{text:?}");
        }
    }

    #[test]
    fn bad_unsigned_numbers_have_the_errors_of_nbdkit() {
        for (text, message) in [
            ("", "threads: empty string where we expected a number"),
            ("abc", "threads: could not parse number: \"abc\": not a number"),
            ("-1", "threads: negative numbers are not allowed"),
            (" -1", "threads: negative numbers are not allowed"),
            ("-0", "threads: negative numbers are not allowed"),
            ("-", "threads: negative numbers are not allowed"),
            ("1x", "threads: could not parse number: \"1x\": trailing garbage"),
            ("08", "threads: could not parse number: \"08\": trailing garbage"),
            ("5 ", "threads: could not parse number: \"5 \": trailing garbage"),
            ("0x", "threads: could not parse number: \"0x\": trailing garbage"),
            (
                "4294967296",
                "threads: could not parse number: \"4294967296\": Numerical result out of range",
            ),
            (
                "99999999999999999999999",
                "threads: could not parse number: \"99999999999999999999999\": Numerical result out of range",
            ),
        ] {
            assert_eq!(
                said(parse_u32("threads", text.as_ref())),
                format!("nbdkit: error: {message}")
            );
        }
    }

    #[test]
    fn signed_numbers_reach_both_ends_and_no_further() {
        assert_eq!(parse_i32("flag", "-2147483648".as_ref()), Ok(i32::MIN));
        assert_eq!(parse_i32("flag", "2147483647".as_ref()), Ok(i32::MAX));
        assert_eq!(parse_i32("flag", "-0x10".as_ref()), Ok(-16));
        assert!(said(parse_i32("flag", "2147483648".as_ref())).contains("out of range"));
        assert!(said(parse_i32("flag", "-2147483649".as_ref())).contains("out of range"));
        assert!(said(parse_i32("flag", "-".as_ref())).contains("not a number"));
    }

    #[test]
    fn booleans_ignore_case_but_not_blanks() {
        for text in ["1", "true", "T", "Yes", "y", "ON"] {
            assert_eq!(parse_bool(text.as_ref()), Ok(true));
        }
        for text in ["0", "False", "f", "no", "N", "Off"] {
            assert_eq!(parse_bool(text.as_ref()), Ok(false));
        }
        assert_eq!(
            said(parse_bool(" on".as_ref())),
            "nbdkit: error: could not decipher boolean ( on)"
        );
    }

    #[test]
    fn delays_take_fractions_exponents_and_units() {
        for (text, delay) in [
            ("1", Duration::from_secs(1)),
            ("1.5", Duration::from_millis(1500)),
            (".5s", Duration::from_millis(500)),
            ("2.", Duration::from_secs(2)),
            (" +10ms", Duration::from_millis(10)),
            ("1e3us", Duration::from_millis(1)),
            ("7\u{3bc}s", Duration::from_micros(7)),
            ("7\u{b5}s", Duration::from_micros(7)),
            ("100ns", Duration::from_nanos(100)),
            ("0", Duration::ZERO),
        ] {
            assert_eq!(parse_delay("timeout", text.as_ref()), Ok(delay), "{text:?}");
        }
    }

    #[test]
    fn bad_delays_are_refused() {
        for text in [
            "",
            "s",
            "-1",
            "-0",
            "nan",
            "inf",
            "1e999",
            "1 s",
            "1m",
            "1sx",
            "1e",
            ".",
            "4294967296",
            "0x1",
        ] {
            assert_eq!(
                said(parse_delay("timeout", text.as_ref())),
                format!("nbdkit: error: timeout: could not parse delay or sleep: \"{text}\"")
            );
        }
    }
}
