//! The header of a reply, in any form.

#![forbid(unsafe_code)]

use nbd_protocol::Malformed;
use nbd_protocol::constants::{
    ChunkType, EXTENDED_REPLY_MAGIC, ReplyFlags, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};
use nbd_protocol::transmission::{ExtendedReplyChunk, SimpleReply, StructuredReplyChunk};

use super::super::haggle::Form;

/// What kind of reply or chunk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// A simple reply; the data of a read follows.
    Success,
    /// A simple reply with this error.
    Error(u32),
    Chunk(ChunkType),
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) what: What,
    pub(super) cookie: u64,
    /// Bytes of a chunk's payload.
    pub(super) length: u64,
    /// The last one of its reply.
    pub(super) last: bool,
    /// Bytes of the header.
    pub(super) size: usize,
}

impl Header {
    /// Decodes the header at the start of `bytes`; `None` if they are too few.
    ///
    /// # Errors
    /// It has not the form that was negotiated.
    pub(super) fn decode(form: Form, bytes: &[u8]) -> Result<Option<Header>, Malformed> {
        let Some((magic, _)) = bytes.split_first_chunk() else { return Ok(None) };
        let magic = u32::from_be_bytes(*magic);
        // Beside structured chunks, requests other than reads may get simple replies.
        if magic == SIMPLE_REPLY_MAGIC && form != Form::Extended {
            return simple_header(bytes, form);
        }
        // Not only once the rest is there, which may never come.
        let expected = match form {
            Form::Simple => SIMPLE_REPLY_MAGIC,
            Form::Structured => STRUCTURED_REPLY_MAGIC,
            Form::Extended => EXTENDED_REPLY_MAGIC,
        };
        if magic != expected {
            return Err(Malformed::Magic { expected: expected.into(), found: magic.into() });
        }
        match form {
            Form::Simple => simple_header(bytes, form),
            Form::Structured => structured_header(bytes),
            Form::Extended => extended_header(bytes),
        }
    }
}

fn simple_header(bytes: &[u8], form: Form) -> Result<Option<Header>, Malformed> {
    let Some(bytes) = bytes.first_chunk() else { return Ok(None) };
    let SimpleReply { error, cookie } = SimpleReply::decode(bytes)?;
    let what = match (error, form) {
        (0, Form::Simple) => What::Success,
        // The payload of a read would lack its chunks.
        (0, _) => What::Chunk(ChunkType::NONE),
        _ => What::Error(error),
    };
    Ok(Some(Header { what, cookie, length: 0, last: true, size: SimpleReply::LENGTH }))
}

fn structured_header(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some(bytes) = bytes.first_chunk() else { return Ok(None) };
    let StructuredReplyChunk { flags, chunk_type, cookie, length } =
        StructuredReplyChunk::decode(bytes)?;
    Ok(Some(Header {
        what: What::Chunk(chunk_type),
        cookie,
        length: length.into(),
        last: flags.contains(ReplyFlags::DONE),
        size: StructuredReplyChunk::LENGTH,
    }))
}

fn extended_header(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some(bytes) = bytes.first_chunk() else { return Ok(None) };
    let ExtendedReplyChunk { flags, chunk_type, cookie, offset: _, length } =
        ExtendedReplyChunk::decode(bytes)?;
    Ok(Some(Header {
        what: What::Chunk(chunk_type),
        cookie,
        length,
        last: flags.contains(ReplyFlags::DONE),
        size: ExtendedReplyChunk::LENGTH,
    }))
}
