//! Decoding errors.

use std::fmt;

/// Bytes that are not a well-formed message: what was expected and what was found.
///
/// `what` names the structure or field as the protocol document does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The magic number is wrong: the stream cannot be resynchronised.
    Magic {
        /// The magic number of this structure.
        expected: u64,
        /// The number found.
        found: u64,
    },
    /// A field needs more bytes than the message has left.
    Truncated {
        /// The structure or field.
        what: &'static str,
        /// Bytes that the field needs.
        needed: usize,
        /// Bytes that were left.
        available: usize,
    },
    /// Bytes follow the last field.
    Trailing {
        /// The structure.
        what: &'static str,
        /// Bytes left over.
        extra: usize,
    },
    /// A string or list is longer than the protocol, or this implementation, permits.
    TooLong {
        /// The field.
        what: &'static str,
        /// The longest permitted, in bytes.
        limit: usize,
        /// The length that was announced, in bytes.
        found: usize,
    },
    /// A string is not UTF-8.
    NotUtf8 {
        /// The field.
        what: &'static str,
    },
    /// A string contains a NUL byte.
    Nul {
        /// The field.
        what: &'static str,
    },
    /// A number is outside its permitted range.
    Value {
        /// The field.
        what: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it was.
        found: u64,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Malformed::Magic { expected, found } => {
                write!(f, "expected magic {expected:#x}, found {found:#x}")
            }
            Malformed::Truncated { what, needed, available } => {
                write!(f, "{what}: expected {needed} bytes, found {available}")
            }
            Malformed::Trailing { what, extra } => {
                write!(f, "{what}: expected the end of the message, found {extra} more bytes")
            }
            Malformed::TooLong { what, limit, found } => {
                write!(f, "{what}: expected at most {limit} bytes, found {found}")
            }
            Malformed::NotUtf8 { what } => {
                write!(f, "{what}: expected UTF-8, found other bytes")
            }
            Malformed::Nul { what } => {
                write!(f, "{what}: expected a string without NUL, found NUL")
            }
            Malformed::Value { what, expected, found } => {
                write!(f, "{what}: expected {expected}, found {found}")
            }
        }
    }
}

impl std::error::Error for Malformed {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_names_what_was_expected_and_what_was_found() {
        let all = [
            Malformed::Magic { expected: 0x2560_9513, found: 0xdead },
            Malformed::Truncated { what: "request", needed: 28, available: 3 },
            Malformed::Trailing { what: "request", extra: 1 },
            Malformed::TooLong { what: "export name", limit: 4096, found: 4097 },
            Malformed::NotUtf8 { what: "export name" },
            Malformed::Nul { what: "export name" },
            Malformed::Value { what: "hole size", expected: "a positive number", found: 0 },
        ];
        for malformed in all {
            let text = malformed.to_string();
            assert!(text.contains("expected ") && text.contains(", found "), "{text}");
            assert!(!text.contains('\n'), "{text}");
        }
    }
}
