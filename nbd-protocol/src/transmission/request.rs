//! Request headers, compact and extended, and the payload that selects the contexts of a block
//! status request.

use crate::Malformed;
use crate::constants::{Command, CommandFlags, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC};
use crate::wire::{Reader, field};

/// One request, in either form of header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Flags, with unknown bits retained so that they can be refused.
    pub flags: CommandFlags,
    /// The command; any number.
    pub command: Command,
    /// Chosen by the client, echoed in every reply to this request.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes affected; or bytes of payload, if [`CommandFlags::PAYLOAD_LEN`] is set in an extended
    /// request.
    pub length: u64,
}

impl Request {
    /// Bytes of a compact header.
    pub const LENGTH: usize = 28;
    /// Bytes of an extended header.
    pub const EXTENDED_LENGTH: usize = 32;

    /// Decodes a compact request header: 28 bytes, big-endian, no payload.
    ///
    /// `offset` and `length` are bytes and are not yet checked against the export size.
    ///
    /// # Errors
    /// [`Malformed::Magic`] if the first four bytes are not `NBD_REQUEST_MAGIC`; the connection
    /// cannot be resynchronised.
    ///
    /// NBD protocol, "Compact request message".
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Result<Request, Malformed> {
        let length = u64::from(u32::from_be_bytes(field(bytes, 24)));
        decode_fields(&field(bytes, 0), REQUEST_MAGIC, length)
    }

    /// Decodes an extended request header: 32 bytes, the length in 64 bits.
    ///
    /// # Errors
    /// [`Malformed::Magic`] if the first four bytes are not `NBD_EXTENDED_REQUEST_MAGIC`; the
    /// connection cannot be resynchronised.
    ///
    /// NBD protocol, "Extended request message".
    pub fn decode_extended(bytes: &[u8; Self::EXTENDED_LENGTH]) -> Result<Request, Malformed> {
        let length = u64::from_be_bytes(field(bytes, 24));
        decode_fields(&field(bytes, 0), EXTENDED_REQUEST_MAGIC, length)
    }

    /// Encodes a compact header, for clients; a length beyond 32 bits cannot be expressed and
    /// becomes `u32::MAX`.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..24].copy_from_slice(&self.encode_fields(REQUEST_MAGIC));
        let length = u32::try_from(self.length).unwrap_or(u32::MAX);
        bytes[24..].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    /// Encodes an extended header, for clients.
    #[must_use]
    pub fn encode_extended(&self) -> [u8; Self::EXTENDED_LENGTH] {
        let mut bytes = [0; Self::EXTENDED_LENGTH];
        bytes[..24].copy_from_slice(&self.encode_fields(EXTENDED_REQUEST_MAGIC));
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// The fields that both forms have in common: all but the length.
    fn encode_fields(&self, magic: u32) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..4].copy_from_slice(&magic.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.bits().to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..].copy_from_slice(&self.offset.to_be_bytes());
        bytes
    }
}

fn decode_fields(bytes: &[u8; 24], magic: u32, length: u64) -> Result<Request, Malformed> {
    let found = u32::from_be_bytes(field(bytes, 0));
    if found != magic {
        return Err(Malformed::Magic { expected: u64::from(magic), found: u64::from(found) });
    }
    Ok(Request {
        flags: CommandFlags::from_bits_retain(u16::from_be_bytes(field(bytes, 4))),
        command: Command(u16::from_be_bytes(field(bytes, 6))),
        cookie: u64::from_be_bytes(field(bytes, 8)),
        offset: u64::from_be_bytes(field(bytes, 16)),
        length,
    })
}

/// The payload of `NBD_CMD_BLOCK_STATUS` with `NBD_CMD_FLAG_PAYLOAD_LEN`: 64 bits of effect length,
/// then the ids of the contexts to report, 32 bits each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockStatusPayload<'a> {
    /// Bytes of the export that the request queries.
    pub effect_length: u64,
    /// The contexts wanted, a subset of those negotiated.
    pub ids: ContextIds<'a>,
}

impl<'a> BlockStatusPayload<'a> {
    /// Decodes a payload. Whether the ids were negotiated, and are not repeated, is for the caller
    /// to check.
    ///
    /// # Errors
    /// [`Malformed`] if the payload is not 8 bytes and a multiple of 4.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("block status payload", payload);
        let effect_length = reader.u64()?;
        let whole = reader.left() / 4 * 4;
        let ids = ContextIds { bytes: reader.bytes(whole)? };
        reader.finish()?;
        Ok(BlockStatusPayload { effect_length, ids })
    }

    /// Appends a payload, for clients.
    pub fn encode(buf: &mut Vec<u8>, effect_length: u64, ids: &[u32]) {
        buf.extend_from_slice(&effect_length.to_be_bytes());
        for id in ids {
            buf.extend_from_slice(&id.to_be_bytes());
        }
    }
}

/// The context ids of a [`BlockStatusPayload`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextIds<'a> {
    bytes: &'a [u8],
}

impl Iterator for ContextIds<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (first, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(u32::from_be_bytes(*first))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.bytes.len() / 4;
        (left, Some(left))
    }
}

impl ExactSizeIterator for ContextIds<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Request = Request {
        flags: CommandFlags::FUA,
        command: Command::WRITE,
        cookie: 0x0102_0304_0506_0708,
        offset: 0x1000,
        length: 0x200,
    };

    #[test]
    fn compact_request_has_its_golden_bytes() {
        let golden = b"\x25\x60\x95\x13\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\x02\0";
        assert_eq!(&REQUEST.encode(), golden);
        assert_eq!(Request::decode(golden), Ok(REQUEST));
    }

    #[test]
    fn extended_request_has_its_golden_bytes() {
        let golden = b"\x21\xe4\x1c\x71\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x02\0";
        assert_eq!(&REQUEST.encode_extended(), golden);
        assert_eq!(Request::decode_extended(golden), Ok(REQUEST));
    }

    #[test]
    fn unknown_flags_and_commands_survive() {
        let request = Request {
            flags: CommandFlags::from_bits_retain(0xffff),
            command: Command(0xffff),
            length: u64::MAX,
            ..REQUEST
        };
        assert_eq!(Request::decode_extended(&request.encode_extended()), Ok(request));
    }

    #[test]
    fn one_form_of_header_is_not_taken_for_the_other() {
        let extended = REQUEST.encode_extended();
        assert_eq!(
            Request::decode(&field(&extended, 0)),
            Err(Malformed::Magic { expected: 0x2560_9513, found: 0x21e4_1c71 })
        );
        let mut compact = [0; 32];
        compact[..28].copy_from_slice(&REQUEST.encode());
        assert_eq!(
            Request::decode_extended(&compact),
            Err(Malformed::Magic { expected: 0x21e4_1c71, found: 0x2560_9513 })
        );
    }

    #[test]
    fn a_length_beyond_32_bits_is_never_shortened_to_a_small_one() {
        let request = Request { length: 1 << 32, ..REQUEST };
        assert_eq!(Request::decode(&request.encode()).map(|r| r.length), Ok(0xffff_ffff));
    }

    #[test]
    fn block_status_payload_has_its_golden_bytes() {
        let mut buf = Vec::new();
        BlockStatusPayload::encode(&mut buf, 1 << 32, &[1, 0xabcd]);
        assert_eq!(buf, b"\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\xab\xcd");
        let payload = BlockStatusPayload::decode(&buf).unwrap();
        assert_eq!(payload.effect_length, 1 << 32);
        assert_eq!(payload.ids.len(), 2);
        assert_eq!(payload.ids.collect::<Vec<_>>(), [1, 0xabcd]);
        assert!(BlockStatusPayload::decode(&buf[..7]).is_err());
        assert!(matches!(
            BlockStatusPayload::decode(&buf[..14]),
            Err(Malformed::Trailing { extra: 2, .. })
        ));
    }
}
