//! Framing of options and of their replies. NBD protocol, "Newstyle negotiation" and "Fixed
//! newstyle negotiation".

use crate::Malformed;
use crate::constants::{IHAVEOPT, OPTION_REPLY_MAGIC, Opt, Rep};
use crate::wire::{bounded, field, put_length, string};

/// The header of an option: 16 bytes, followed by `length` bytes of payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// The option; any number.
    pub option: Opt,
    /// Bytes of payload. Not bounded here: see
    /// [`MAX_OPTION_LENGTH`](crate::constants::MAX_OPTION_LENGTH).
    pub length: u32,
}

impl OptionHeader {
    /// Bytes of the header.
    pub const LENGTH: usize = 16;

    /// Decodes a header.
    ///
    /// # Errors
    /// [`Malformed::Magic`] if it does not start with `IHAVEOPT`; the connection cannot be
    /// resynchronised.
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Result<Self, Malformed> {
        let found = u64::from_be_bytes(field(bytes, 0));
        if found != IHAVEOPT {
            return Err(Malformed::Magic { expected: IHAVEOPT, found });
        }
        Ok(OptionHeader {
            option: Opt(u32::from_be_bytes(field(bytes, 8))),
            length: u32::from_be_bytes(field(bytes, 12)),
        })
    }

    /// Encodes a header, for clients.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&IHAVEOPT.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.0.to_be_bytes());
        bytes[12..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// Appends an option and its payload, for clients. A payload of 4 GiB or more cannot be expressed
/// and is cut.
pub fn encode_option(buf: &mut Vec<u8>, option: Opt, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    buf.extend_from_slice(&OptionHeader { option, length }.encode());
    buf.extend(payload.iter().take(usize::try_from(length).unwrap_or(usize::MAX)));
}

/// Decodes the payload of `NBD_OPT_EXPORT_NAME`: the whole of it is the name.
///
/// # Errors
/// [`Malformed::TooLong`], [`Malformed::NotUtf8`] or [`Malformed::Nul`]; the option has no error
/// reply, so the server must disconnect.
pub fn decode_export_name(payload: &[u8]) -> Result<&str, Malformed> {
    string("export name", payload)
}

/// The header of an option reply: 20 bytes, followed by `length` bytes of payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that this replies to.
    pub option: Opt,
    /// The kind of reply.
    pub reply: Rep,
    /// Bytes of payload, not bounded here.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Bytes of the header.
    pub const LENGTH: usize = 20;

    /// Decodes a header, for clients.
    ///
    /// # Errors
    /// [`Malformed::Magic`]; the connection cannot be resynchronised.
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Result<Self, Malformed> {
        let found = u64::from_be_bytes(field(bytes, 0));
        if found != OPTION_REPLY_MAGIC {
            return Err(Malformed::Magic { expected: OPTION_REPLY_MAGIC, found });
        }
        Ok(OptionReplyHeader {
            option: Opt(u32::from_be_bytes(field(bytes, 8))),
            reply: Rep(u32::from_be_bytes(field(bytes, 12))),
            length: u32::from_be_bytes(field(bytes, 16)),
        })
    }

    /// Encodes a header.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.0.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.reply.0.to_be_bytes());
        bytes[16..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// Appends a reply and its payload, which must be shorter than 4 GiB: the encoders of this module
/// append a few KiB.
pub fn encode_option_reply(buf: &mut Vec<u8>, option: Opt, reply: Rep, payload: &[u8]) {
    buf.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    buf.extend_from_slice(&option.0.to_be_bytes());
    buf.extend_from_slice(&reply.0.to_be_bytes());
    put_length(buf, payload.len());
    buf.extend_from_slice(payload);
}

/// Appends an error reply with a human-readable message, which is cut at 4096 bytes and may be
/// empty.
pub fn encode_option_error(buf: &mut Vec<u8>, option: Opt, error: Rep, message: &str) {
    encode_option_reply(buf, option, error, bounded(message).as_bytes());
}

/// Decodes the payload of an error reply: the message, empty if the server sent none.
///
/// # Errors
/// [`Malformed`] if it is not a string of the protocol.
pub fn error_message(payload: &[u8]) -> Result<&str, Malformed> {
    string("option error message", payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_header_has_its_golden_bytes() {
        let header = OptionHeader { option: Opt::GO, length: 6 };
        assert_eq!(&header.encode(), b"IHAVEOPT\0\0\0\x07\0\0\0\x06");
        assert_eq!(OptionHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn an_unknown_option_keeps_its_number() {
        let header = OptionHeader { option: Opt(u32::MAX), length: u32::MAX };
        assert_eq!(OptionHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn wrong_option_magic_is_reported_with_both_numbers() {
        let mut bytes = OptionHeader { option: Opt::LIST, length: 0 }.encode();
        bytes[7] = b'X';
        assert_eq!(
            OptionHeader::decode(&bytes),
            Err(Malformed::Magic { expected: IHAVEOPT, found: 0x4948_4156_454f_5058 })
        );
    }

    #[test]
    fn option_reply_has_its_golden_bytes() {
        let mut buf = Vec::new();
        encode_option_error(&mut buf, Opt::LIST, Rep::ERR_POLICY, "no");
        assert_eq!(buf, b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x03\x80\0\0\x02\0\0\0\x02no");
        let header = OptionReplyHeader::decode(buf[..20].try_into().unwrap()).unwrap();
        assert_eq!(
            header,
            OptionReplyHeader { option: Opt::LIST, reply: Rep::ERR_POLICY, length: 2 }
        );
        assert_eq!(header.encode(), buf[..20]);
        assert_eq!(error_message(&buf[20..]), Ok("no"));
    }

    #[test]
    fn wrong_reply_magic_is_malformed() {
        assert_eq!(
            OptionReplyHeader::decode(&[0; 20]),
            Err(Malformed::Magic { expected: OPTION_REPLY_MAGIC, found: 0 })
        );
    }

    #[test]
    fn long_error_messages_are_cut_to_a_legal_string() {
        let mut buf = Vec::new();
        encode_option_error(&mut buf, Opt::GO, Rep::ERR_UNKNOWN, &"ü".repeat(5000));
        assert_eq!(buf.len(), 20 + 4096);
        assert!(error_message(&buf[20..]).is_ok());
    }
}
