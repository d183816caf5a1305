//! Payloads of data, hole and error chunks. NBD protocol, "Structured reply types".

use crate::Malformed;
use crate::wire::{Reader, bounded};

/// `NBD_REPLY_TYPE_OFFSET_DATA`: 64 bits of offset, then at least one byte of the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataChunk<'a> {
    /// Offset of the bytes in the export.
    pub offset: u64,
    /// The bytes.
    pub data: &'a [u8],
}

impl<'a> DataChunk<'a> {
    /// Encodes the fields before the data, so that the data need not be copied.
    #[must_use]
    pub fn encode_prefix(offset: u64) -> [u8; 8] {
        offset.to_be_bytes()
    }

    /// Decodes a payload, for clients. The caller checks that it lies in the request.
    ///
    /// # Errors
    /// [`Malformed::Truncated`] if no data follows the offset.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("data chunk", payload);
        let offset = reader.u64()?;
        let data = reader.rest();
        if data.is_empty() {
            return Err(Malformed::Truncated { what: "data chunk", needed: 1, available: 0 });
        }
        Ok(DataChunk { offset, data })
    }
}

/// `NBD_REPLY_TYPE_OFFSET_HOLE`: 64 bits of offset, 32 bits of length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoleChunk {
    /// Offset of the zeroes in the export.
    pub offset: u64,
    /// Bytes of zeroes; at least one.
    pub length: u32,
}

impl HoleChunk {
    /// Bytes of payload.
    pub const LENGTH: usize = 12;

    /// Encodes a payload.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&self.offset.to_be_bytes());
        bytes[8..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Decodes a payload, for clients. The caller checks that it lies in the request.
    ///
    /// # Errors
    /// [`Malformed`] if the payload is not 12 bytes or the hole is empty.
    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("hole chunk", payload);
        let hole = HoleChunk { offset: reader.u64()?, length: reader.u32()? };
        reader.finish()?;
        if hole.length == 0 {
            return Err(Malformed::Value {
                what: "hole size",
                expected: "a positive number",
                found: 0,
            });
        }
        Ok(hole)
    }
}

/// `NBD_REPLY_TYPE_ERROR`: 32 bits of error, 16 bits of message length, the message; and
/// `NBD_REPLY_TYPE_ERROR_OFFSET`: the same, then 64 bits of offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorChunk<'a> {
    /// The [`code`](crate::constants::NbdError::code) of the error, or a number that the client
    /// does not know.
    pub error: u32,
    /// Human-readable text. Should be UTF-8, which is not checked: a client would have to
    /// disconnect over a message that it only logs.
    pub message: &'a [u8],
    /// The offset of the error, in an `NBD_REPLY_TYPE_ERROR_OFFSET`.
    pub offset: Option<u64>,
}

impl<'a> ErrorChunk<'a> {
    /// Appends the payload of `NBD_REPLY_TYPE_ERROR`; the message is cut at 4096 bytes.
    pub fn encode(buf: &mut Vec<u8>, error: u32, message: &str) {
        let message = bounded(message);
        // Bounded by 4096, so it fits.
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
        buf.extend_from_slice(&error.to_be_bytes());
        buf.extend_from_slice(&length.to_be_bytes());
        buf.extend_from_slice(message.as_bytes());
    }

    /// Appends the payload of `NBD_REPLY_TYPE_ERROR_OFFSET`; the message is cut at 4096 bytes.
    pub fn encode_at_offset(buf: &mut Vec<u8>, error: u32, message: &str, offset: u64) {
        Self::encode(buf, error, message);
        buf.extend_from_slice(&offset.to_be_bytes());
    }

    /// Decodes the payload of `NBD_REPLY_TYPE_ERROR`, for clients.
    ///
    /// # Errors
    /// [`Malformed`] if the error is zero, or the message does not end where the payload does.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("error chunk", payload);
        let chunk = Self::decode_start(&mut reader)?;
        reader.finish()?;
        Ok(chunk)
    }

    /// Decodes the payload of `NBD_REPLY_TYPE_ERROR_OFFSET`, for clients.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_at_offset(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("error offset chunk", payload);
        let chunk = Self::decode_start(&mut reader)?;
        let offset = reader.u64()?;
        reader.finish()?;
        Ok(ErrorChunk { offset: Some(offset), ..chunk })
    }

    /// Decodes the start of an error chunk of any type, for clients: later types append fields,
    /// which are ignored.
    ///
    /// # Errors
    /// [`Malformed`] if the error is zero or the message is longer than the payload.
    pub fn decode_unknown(payload: &'a [u8]) -> Result<Self, Malformed> {
        Self::decode_start(&mut Reader::new("error chunk", payload))
    }

    fn decode_start(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let error = reader.u32()?;
        if error == 0 {
            return Err(Malformed::Value {
                what: "error chunk",
                expected: "an error number",
                found: 0,
            });
        }
        let length = usize::from(reader.u16()?);
        let message = reader.bytes(length)?;
        Ok(ErrorChunk { error, message, offset: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_chunk_needs_at_least_one_byte() {
        assert_eq!(
            DataChunk::decode(b"\0\0\0\0\0\0\x02\0x"),
            Ok(DataChunk { offset: 512, data: b"x" })
        );
        assert_eq!(DataChunk::encode_prefix(512), *b"\0\0\0\0\0\0\x02\0");
        assert!(DataChunk::decode(b"\0\0\0\0\0\0\x02\0").is_err());
        assert!(DataChunk::decode(b"\0").is_err());
    }

    #[test]
    fn hole_chunk_is_twelve_bytes_and_never_empty() {
        let hole = HoleChunk { offset: 512, length: 4096 };
        assert_eq!(&hole.encode(), b"\0\0\0\0\0\0\x02\0\0\0\x10\0");
        assert_eq!(HoleChunk::decode(&hole.encode()), Ok(hole));
        assert!(matches!(HoleChunk::decode(&[1; 13]), Err(Malformed::Trailing { .. })));
        assert!(matches!(HoleChunk::decode(&[1; 11]), Err(Malformed::Truncated { .. })));
        assert!(matches!(HoleChunk::decode(&[0; 12]), Err(Malformed::Value { found: 0, .. })));
    }

    #[test]
    fn error_chunks_have_their_golden_bytes() {
        let mut buf = Vec::new();
        ErrorChunk::encode(&mut buf, 5, "bad");
        assert_eq!(buf, b"\0\0\0\x05\0\x03bad");
        let chunk = ErrorChunk { error: 5, message: b"bad", offset: None };
        assert_eq!(ErrorChunk::decode(&buf), Ok(chunk));

        buf.clear();
        ErrorChunk::encode_at_offset(&mut buf, 5, "bad", 1024);
        assert_eq!(buf, b"\0\0\0\x05\0\x03bad\0\0\0\0\0\0\x04\0");
        assert_eq!(
            ErrorChunk::decode_at_offset(&buf),
            Ok(ErrorChunk { offset: Some(1024), ..chunk })
        );
        assert!(matches!(ErrorChunk::decode(&buf), Err(Malformed::Trailing { extra: 8, .. })));
        assert_eq!(ErrorChunk::decode_unknown(&buf), Ok(chunk));
    }

    #[test]
    fn a_message_longer_than_the_chunk_is_truncated() {
        assert_eq!(
            ErrorChunk::decode(b"\0\0\0\x05\0\x04bad"),
            Err(Malformed::Truncated { what: "error chunk", needed: 4, available: 3 })
        );
    }

    #[test]
    fn an_error_chunk_without_an_error_is_refused() {
        assert!(matches!(ErrorChunk::decode(&[0; 6]), Err(Malformed::Value { found: 0, .. })));
    }
}
