//! The three forms of reply header.

use crate::Malformed;
use crate::constants::{
    ChunkType, EXTENDED_REPLY_MAGIC, ReplyFlags, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};
use crate::wire::field;

/// A simple reply: 16 bytes, then the data of a successful read. NBD protocol, "Simple reply
/// message".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// Zero, or the [`code`](crate::constants::NbdError::code) of an error.
    pub error: u32,
    /// The request's cookie.
    pub cookie: u64,
}

impl SimpleReply {
    /// Bytes of the header.
    pub const LENGTH: usize = 16;

    /// Encodes a header.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_be_bytes());
        bytes[8..].copy_from_slice(&self.cookie.to_be_bytes());
        bytes
    }

    /// Decodes a header, for clients.
    ///
    /// # Errors
    /// [`Malformed::Magic`].
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Result<Self, Malformed> {
        expect_magic(field(bytes, 0), SIMPLE_REPLY_MAGIC)?;
        Ok(SimpleReply {
            error: u32::from_be_bytes(field(bytes, 4)),
            cookie: u64::from_be_bytes(field(bytes, 8)),
        })
    }
}

/// The header of a structured reply chunk: 20 bytes, then `length` bytes of payload.
///
/// NBD protocol, "Structured reply chunk message".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StructuredReplyChunk {
    /// Whether this is the last chunk of the reply.
    pub flags: ReplyFlags,
    /// The type of the payload.
    pub chunk_type: ChunkType,
    /// The request's cookie.
    pub cookie: u64,
    /// Bytes of payload.
    pub length: u32,
}

impl StructuredReplyChunk {
    /// Bytes of the header.
    pub const LENGTH: usize = 20;

    /// Encodes a header.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.bits().to_be_bytes());
        bytes[6..8].copy_from_slice(&self.chunk_type.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Decodes a header, for clients. The payload's decoder checks the length.
    ///
    /// # Errors
    /// [`Malformed::Magic`].
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Result<Self, Malformed> {
        expect_magic(field(bytes, 0), STRUCTURED_REPLY_MAGIC)?;
        Ok(StructuredReplyChunk {
            flags: ReplyFlags::from_bits_retain(u16::from_be_bytes(field(bytes, 4))),
            chunk_type: ChunkType(u16::from_be_bytes(field(bytes, 6))),
            cookie: u64::from_be_bytes(field(bytes, 8)),
            length: u32::from_be_bytes(field(bytes, 16)),
        })
    }
}

/// The header of an extended reply chunk: 32 bytes, then `length` bytes of payload.
///
/// NBD protocol, "Extended reply chunk message".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedReplyChunk {
    /// Whether this is the last chunk of the reply.
    pub flags: ReplyFlags,
    /// The type of the payload.
    pub chunk_type: ChunkType,
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset, in chunks of every type.
    pub offset: u64,
    /// Bytes of payload.
    pub length: u64,
}

impl ExtendedReplyChunk {
    /// Bytes of the header.
    pub const LENGTH: usize = 32;

    /// Encodes a header.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.bits().to_be_bytes());
        bytes[6..8].copy_from_slice(&self.chunk_type.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Decodes a header, for clients. The payload's decoder checks the length.
    ///
    /// # Errors
    /// [`Malformed::Magic`].
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Result<Self, Malformed> {
        expect_magic(field(bytes, 0), EXTENDED_REPLY_MAGIC)?;
        Ok(ExtendedReplyChunk {
            flags: ReplyFlags::from_bits_retain(u16::from_be_bytes(field(bytes, 4))),
            chunk_type: ChunkType(u16::from_be_bytes(field(bytes, 6))),
            cookie: u64::from_be_bytes(field(bytes, 8)),
            offset: u64::from_be_bytes(field(bytes, 16)),
            length: u64::from_be_bytes(field(bytes, 24)),
        })
    }
}

fn expect_magic(found: [u8; 4], expected: u32) -> Result<(), Malformed> {
    let found = u32::from_be_bytes(found);
    if found != expected {
        return Err(Malformed::Magic { expected: u64::from(expected), found: u64::from(found) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simple_reply_has_its_golden_bytes() {
        let reply = SimpleReply { error: 22, cookie: 0x0102_0304_0506_0708 };
        let golden = b"\x67\x44\x66\x98\0\0\0\x16\x01\x02\x03\x04\x05\x06\x07\x08";
        assert_eq!(&reply.encode(), golden);
        assert_eq!(SimpleReply::decode(golden), Ok(reply));
        assert!(matches!(SimpleReply::decode(&[0; 16]), Err(Malformed::Magic { found: 0, .. })));
    }

    #[test]
    fn structured_reply_chunk_has_its_golden_bytes() {
        let chunk = StructuredReplyChunk {
            flags: ReplyFlags::DONE,
            chunk_type: ChunkType::ERROR,
            cookie: 0x0102_0304_0506_0708,
            length: 6,
        };
        let golden = b"\x66\x8e\x33\xef\0\x01\x80\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x06";
        assert_eq!(&chunk.encode(), golden);
        assert_eq!(StructuredReplyChunk::decode(golden), Ok(chunk));
        assert!(StructuredReplyChunk::decode(&[0; 20]).is_err());
    }

    #[test]
    fn extended_reply_chunk_has_its_golden_bytes() {
        let chunk = ExtendedReplyChunk {
            flags: ReplyFlags::empty(),
            chunk_type: ChunkType::BLOCK_STATUS_EXT,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1_0000_0000,
            length: 24,
        };
        let golden = b"\x6e\x8a\x27\x8c\0\0\0\x06\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x18";
        assert_eq!(&chunk.encode(), golden);
        assert_eq!(ExtendedReplyChunk::decode(golden), Ok(chunk));
        assert!(ExtendedReplyChunk::decode(&[0; 32]).is_err());
    }
}
