//! Numbers, booleans and delays, parsed exactly as nbdkit parses them: those of its options and
//! those of parameters of plugins and filters. nbdkit-plugin(3), "Parsing numbers", "Parsing
//! booleans", "Parsing delays".
//!
//! An error is nbdkit's own text, which quotes what was given.

use std::ffi::OsStr;
use std::time::Duration;

/// Integer types that [`integer`] parses.
pub trait Bounded: TryFrom<i128> {
    /// Whether the type has negative values.
    const SIGNED: bool;
}

macro_rules! bounded {
    ($($type:ty: $signed:literal),*) => {
        $(impl Bounded for $type { const SIGNED: bool = $signed; })*
    };
}
bounded!(i8: true, i16: true, i32: true, i64: true, u8: false, u16: false, u32: false, u64: false);

/// Parses an integer as C's strtoull(3) does in base 0: blanks, a sign, `0x` for hexadecimal, `0`
/// for octal. `what` names it in errors.
///
/// # Errors
/// Empty, no number, negative for an unsigned type (`-0` too), trailing garbage, out of range.
pub fn integer<T: Bounded>(what: &str, text: &OsStr) -> Result<T, String> {
    let number = Number::scan(what, text)?;
    if number.negative && !T::SIGNED {
        return Err(format!("{what}: negative numbers are not allowed"));
    }
    if number.digits.is_empty() {
        return Err(no_number(what, text));
    }
    let magnitude = number.magnitude().map(i128::from);
    let value = magnitude
        .map(|value| if number.negative { -value } else { value })
        .and_then(|value| T::try_from(value).ok())
        .ok_or_else(|| not_a_number(what, text, "Numerical result out of range"))?;
    // nbdkit looks at what follows only now: 4294967296x is out of range for 32 bits.
    if !number.rest.is_empty() {
        return Err(not_a_number(what, text, "trailing garbage"));
    }
    Ok(value)
}

/// Parses a boolean, in upper or lower case: `1 true t yes y on`, `0 false f no n off`.
///
/// # Errors
/// `could not decipher boolean (TEXT)`.
pub fn boolean(text: &OsStr) -> Result<bool, String> {
    let text = text.to_string_lossy();
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "t" | "yes" | "y" | "on" => Ok(true),
        "0" | "false" | "f" | "no" | "n" | "off" => Ok(false),
        _ => Err(format!("could not decipher boolean ({text})")),
    }
}

/// Parses a delay: a number, which may have a fraction and an exponent, and nothing or `s`, `ms`,
/// `us`, `μs`, `ns`. The Greek mu and the micro sign are both accepted. Seconds fit 32 bits, as
/// they do in nbdkit's API.
///
/// # Errors
/// `WHAT: could not parse delay or sleep: "TEXT"` for anything else, negative, infinite and
/// not-a-number included.
pub fn delay(what: &str, text: &OsStr) -> Result<Duration, String> {
    let refused =
        || format!("{what}: could not parse delay or sleep: \"{}\"", text.to_string_lossy());
    let number = text.to_str().and_then(Float::scan).ok_or_else(refused)?;
    let per_second = match number.rest {
        "" | "s" => 1.0,
        "ms" => 1e3,
        "us" | "\u{3bc}s" | "\u{b5}s" => 1e6,
        "ns" => 1e9,
        _ => return Err(refused()),
    };
    let delay = Duration::try_from_secs_f64(number.value / per_second).map_err(|_| refused())?;
    if number.negative || delay.as_secs() > u64::from(u32::MAX) {
        return Err(refused());
    }
    Ok(delay)
}

/// A decimal floating point number at the start of a text, as scanf(3) finds it with `%lf%n`:
/// blanks, a sign, digits, a fraction, an exponent. The words inf and nan are not numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Float<'a> {
    /// The number. May be infinite.
    pub value: f64,
    /// Whether it has a minus sign: true for `-0`.
    pub negative: bool,
    /// What follows it.
    pub rest: &'a str,
}

impl Float<'_> {
    /// Splits `text`; `None` if it does not begin with a number.
    pub fn scan(text: &str) -> Option<Float<'_>> {
        let text = text.trim_start_matches(is_blank);
        let (number, rest) = text.split_at(float_length(text));
        let value = number.parse().ok()?;
        Some(Float { value, negative: number.starts_with('-'), rest })
    }
}

/// The length of the longest prefix that is a decimal floating point number, bytes.
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
    fn scan(what: &str, text: &'a OsStr) -> Result<Self, String> {
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
    fn magnitude(&self) -> Option<u64> {
        self.digits.iter().try_fold(0_u64, |value, byte| {
            let digit = char::from(*byte).to_digit(self.radix)?;
            value.checked_mul(u64::from(self.radix))?.checked_add(u64::from(digit))
        })
    }
}

/// What there is instead of a number.
fn no_number(what: &str, text: &OsStr) -> String {
    if text.is_empty() {
        format!("{what}: empty string where we expected a number")
    } else {
        not_a_number(what, text, "not a number")
    }
}

fn not_a_number(what: &str, text: &OsStr, why: &str) -> String {
    format!("{what}: could not parse number: \"{}\": {why}", text.to_string_lossy())
}

/// C's `isspace` in the C locale.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(integer::<u32>("threads", text.as_ref()), Ok(value), "{text:?}");
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
                "4294967296x",
                "threads: could not parse number: \"4294967296x\": Numerical result out of range",
            ),
            (
                "99999999999999999999999",
                "threads: could not parse number: \"99999999999999999999999\": Numerical result out of range",
            ),
        ] {
            assert_eq!(integer::<u32>("threads", text.as_ref()).unwrap_err(), message);
        }
    }

    #[test]
    fn signed_numbers_reach_both_ends_and_no_further() {
        assert_eq!(integer::<i32>("flag", "-2147483648".as_ref()), Ok(i32::MIN));
        assert_eq!(integer::<i32>("flag", "2147483647".as_ref()), Ok(i32::MAX));
        assert_eq!(integer::<i32>("flag", "-0x10".as_ref()), Ok(-16));
        assert!(
            integer::<i32>("flag", "2147483648".as_ref()).unwrap_err().contains("out of range")
        );
        assert!(
            integer::<i32>("flag", "-2147483649".as_ref()).unwrap_err().contains("out of range")
        );
        assert!(integer::<i32>("flag", "-".as_ref()).unwrap_err().contains("not a number"));
    }

    #[test]
    fn booleans_ignore_case_but_not_blanks() {
        for text in ["1", "true", "T", "Yes", "y", "ON"] {
            assert_eq!(boolean(text.as_ref()), Ok(true));
        }
        for text in ["0", "False", "f", "no", "N", "Off"] {
            assert_eq!(boolean(text.as_ref()), Ok(false));
        }
        assert_eq!(boolean(" on".as_ref()).unwrap_err(), "could not decipher boolean ( on)");
    }

    #[test]
    fn delays_take_fractions_exponents_and_units() {
        for (text, expected) in [
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
            assert_eq!(delay("timeout", text.as_ref()), Ok(expected), "{text:?}");
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
                delay("timeout", text.as_ref()).unwrap_err(),
                format!("timeout: could not parse delay or sleep: \"{text}\"")
            );
        }
    }
}
