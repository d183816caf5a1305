//! Puts the chunks of one reply together, and holds the server to the rules about them.
//!
//! NBD protocol, "Structured reply chunk message", "Structured reply types" and the text of each
//! command.

use std::fmt;

use nbd_protocol::constants::{
    ChunkType, Command, CommandFlags, MAX_STRING, NbdError, ReplyFlags, STATE_HOLE, STATE_ZERO,
};
use nbd_protocol::transmission::{
    BlockStatus, BlockStatusExt, DataChunk, ErrorChunk, HoleChunk, Request,
};

use super::{Failure, Headers, Result};
use crate::transcript::summary;

/// What one chunk was, for tests that look at how a reply was cut up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// `NBD_REPLY_TYPE_NONE`.
    None,
    /// Data: offset and length.
    Data(u64, u64),
    /// A hole: offset and length.
    Hole(u64, u64),
    /// Block status of a context, by 32-bit descriptors.
    Status(u32),
    /// Block status of a context, by 64-bit descriptors.
    StatusExt(u32),
    /// An error.
    Error,
}

/// An error in a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyError {
    /// The number on the wire.
    pub code: u32,
    /// The server's message; empty in a simple reply.
    pub message: String,
    /// Where it happened, if the server said so.
    pub offset: Option<u64>,
}

/// A complete reply.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The request's cookie.
    pub cookie: u64,
    /// The request.
    pub request: Request,
    /// The first error, if the request failed.
    pub error: Option<ReplyError>,
    /// What a read returned, reassembled.
    pub data: Vec<u8>,
    /// The chunks in the order they came; empty for a simple reply.
    pub chunks: Vec<Chunk>,
    /// Block status: context id, and (length, flags) runs from the request's offset.
    pub status: Vec<(u32, Vec<(u64, u64)>)>,
}

impl Reply {
    /// The protocol's error, or `None` if the request succeeded.
    ///
    /// # Panics
    /// If the server sent a number that the protocol does not define.
    #[must_use]
    pub fn nbd_error(&self) -> Option<NbdError> {
        let error = self.error.as_ref()?;
        match NbdError::from_code(error.code) {
            Some(known) => Some(known),
            None => panic!("{} is no error of the protocol", error.code),
        }
    }

    /// Block status of the only context, neighbours with the same flags joined, clipped to the
    /// request.
    #[must_use]
    pub fn extents(&self) -> Vec<(u64, u64)> {
        let mut joined: Vec<(u64, u64)> = Vec::new();
        let mut left = self.request.length;
        for (length, flags) in self.status.iter().flat_map(|(_, runs)| runs) {
            let length = (*length).min(left);
            left -= length;
            match joined.last_mut() {
                Some(last) if last.1 == *flags => last.0 += length,
                _ if length > 0 => joined.push((length, *flags)),
                _ => {}
            }
        }
        joined
    }
}

impl fmt::Display for Reply {
    /// What a client would learn, not how the server cut it up.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = &self.error {
            return match NbdError::from_code(error.code) {
                Some(known) => write!(f, "{known}"),
                None => write!(f, "error {}", error.code),
            };
        }
        f.write_str("ok")?;
        if self.request.command == Command::READ {
            write!(f, " {}", summary(&self.data))?;
        }
        for (length, flags) in self.extents() {
            write!(f, " {length}:{}", state_text(flags))?;
        }
        Ok(())
    }
}

fn state_text(flags: u64) -> String {
    match u32::try_from(flags) {
        Ok(0) => "data".to_owned(),
        Ok(flags) if flags == STATE_HOLE | STATE_ZERO => "hole,zero".to_owned(),
        Ok(STATE_HOLE) => "hole".to_owned(),
        Ok(STATE_ZERO) => "zero".to_owned(),
        _ => format!("{flags:#x}"),
    }
}

/// A reply that is still coming.
#[derive(Debug)]
pub(super) struct Assembly {
    request: Request,
    /// Bytes of the export that the request is about.
    length: u64,
    headers: Headers,
    contexts: Vec<u32>,
    /// Parts of the export that content chunks have described.
    covered: Vec<(u64, u64)>,
    reply: Reply,
}

impl Assembly {
    pub(super) fn new(request: Request, length: u64, headers: Headers, contexts: Vec<u32>) -> Self {
        let reply = Reply {
            cookie: request.cookie,
            request: Request { length, ..request },
            error: None,
            data: Vec::new(),
            chunks: Vec::new(),
            status: Vec::new(),
        };
        Assembly { request, length, headers, contexts, covered: Vec::new(), reply }
    }

    pub(super) fn request(&self) -> &Request {
        &self.request
    }

    /// How much data follows a simple reply.
    pub(super) fn simple_payload(&self, error: u32) -> Result<u64> {
        let reads = self.request.command == Command::READ;
        match self.headers {
            Headers::Extended => violation("a simple reply with extended headers"),
            Headers::Structured if reads => violation("a simple reply to NBD_CMD_READ"),
            Headers::Structured if error == 0 && self.request.command == Command::BLOCK_STATUS => {
                violation("a simple reply to NBD_CMD_BLOCK_STATUS")
            }
            Headers::Simple | Headers::Structured => {
                Ok(if reads && error == 0 { self.length } else { 0 })
            }
        }
    }

    pub(super) fn finish_simple(mut self, error: u32, data: Vec<u8>) -> Reply {
        if error != 0 {
            self.reply.error =
                Some(ReplyError { code: error, message: String::new(), offset: None });
        }
        self.reply.data = data;
        self.reply
    }

    /// Takes one chunk; true if it is the last.
    pub(super) fn add(
        &mut self,
        flags: ReplyFlags,
        kind: ChunkType,
        payload: &[u8],
    ) -> Result<bool> {
        let done = flags.contains(ReplyFlags::DONE);
        let chunk = match kind {
            ChunkType::NONE if !done => {
                return violation("NBD_REPLY_TYPE_NONE that is not the last chunk");
            }
            ChunkType::NONE if !payload.is_empty() => {
                return violation("NBD_REPLY_TYPE_NONE with a payload");
            }
            ChunkType::NONE => Chunk::None,
            ChunkType::OFFSET_DATA => {
                let chunk = DataChunk::decode(payload)?;
                self.content(chunk.offset, chunk.data.len() as u64, Some(chunk.data))?;
                Chunk::Data(chunk.offset, chunk.data.len() as u64)
            }
            ChunkType::OFFSET_HOLE => {
                let hole = HoleChunk::decode(payload)?;
                self.content(hole.offset, u64::from(hole.length), None)?;
                Chunk::Hole(hole.offset, u64::from(hole.length))
            }
            ChunkType::BLOCK_STATUS if self.headers == Headers::Structured => {
                let status = BlockStatus::decode(payload)?;
                let runs =
                    status.descriptors.map(|run| (u64::from(run.length), u64::from(run.flags)));
                self.status(status.context, runs.collect())?;
                Chunk::Status(status.context)
            }
            ChunkType::BLOCK_STATUS_EXT if self.headers == Headers::Extended => {
                let status = BlockStatusExt::decode(payload)?;
                let runs = status.descriptors.map(|run| (run.length, run.flags));
                self.status(status.context, runs.collect())?;
                Chunk::StatusExt(status.context)
            }
            ChunkType::ERROR => self.error(&ErrorChunk::decode(payload)?)?,
            ChunkType::ERROR_OFFSET => self.error(&ErrorChunk::decode_at_offset(payload)?)?,
            other => return violation(&format!("an unexpected chunk, {other}")),
        };
        self.reply.chunks.push(chunk);
        Ok(done)
    }

    /// The last chunk has come: what must be complete now?
    pub(super) fn finish(self) -> Result<Reply> {
        if self.reply.error.is_some() {
            return Ok(self.reply);
        }
        let covered: u64 = self.covered.iter().map(|(start, end)| end - start).sum();
        if self.request.command == Command::READ && covered != self.length {
            return violation(&format!("{covered} of {} bytes read", self.length));
        }
        let reported = self.reply.status.len();
        if self.request.command == Command::BLOCK_STATUS && reported != self.contexts.len() {
            return violation(&format!("{reported} of {} contexts reported", self.contexts.len()));
        }
        Ok(self.reply)
    }

    fn content(&mut self, offset: u64, length: u64, data: Option<&[u8]>) -> Result<()> {
        if self.request.command != Command::READ {
            return violation(&format!("content in reply to {}", self.request.command));
        }
        if self.request.flags.contains(CommandFlags::DF) && !self.covered.is_empty() {
            return violation("two content chunks in spite of NBD_CMD_FLAG_DF");
        }
        if self.request.flags.contains(CommandFlags::DF) && data.is_none() && length != self.length
        {
            return violation("a partial hole in spite of NBD_CMD_FLAG_DF");
        }
        let request_end = self.request.offset + self.length;
        let Some(end) = offset.checked_add(length) else {
            return violation("content that ends beyond 2^64");
        };
        if offset < self.request.offset || end > request_end {
            return violation(&format!("content {offset}..{end} outside the request"));
        }
        if self.covered.iter().any(|(from, to)| offset < *to && *from < end) {
            return violation(&format!("content {offset}..{end} overlaps an earlier chunk"));
        }
        self.covered.push((offset, end));
        // Bounded by the request's length, which the test chose.
        self.reply.data.resize(usize::try_from(self.length).unwrap_or(0), 0);
        if let Some(data) = data {
            let start = usize::try_from(offset - self.request.offset).unwrap_or(0);
            self.reply.data[start..start + data.len()].copy_from_slice(data);
        }
        Ok(())
    }

    fn status(&mut self, context: u32, runs: Vec<(u64, u64)>) -> Result<()> {
        if self.request.command != Command::BLOCK_STATUS {
            return violation(&format!("block status in reply to {}", self.request.command));
        }
        if !self.contexts.contains(&context) {
            return violation(&format!(
                "block status of context {context}, which was not selected"
            ));
        }
        if self.reply.status.iter().any(|(earlier, _)| *earlier == context) {
            return violation(&format!("block status of context {context} twice"));
        }
        if self.request.flags.contains(CommandFlags::REQ_ONE)
            && (runs.len() != 1 || runs[0].0 > self.length)
        {
            return violation("NBD_CMD_FLAG_REQ_ONE answered with more than the one extent");
        }
        let before_last: u64 = runs[..runs.len() - 1].iter().map(|(length, _)| length).sum();
        if runs.len() > 1 && before_last >= self.length {
            return violation("descriptors that begin beyond the request");
        }
        self.reply.status.push((context, runs));
        Ok(())
    }

    fn error(&mut self, chunk: &ErrorChunk<'_>) -> Result<Chunk> {
        let Ok(message) = std::str::from_utf8(chunk.message) else {
            return violation("an error message that is not UTF-8");
        };
        if message.len() > MAX_STRING {
            return violation("an error message longer than 4096 bytes");
        }
        let inside = |offset: u64| {
            offset.checked_sub(self.request.offset).is_some_and(|relative| relative < self.length)
        };
        if !chunk.offset.is_none_or(inside) {
            return violation("an error offset outside the request");
        }
        if self.reply.error.is_none() {
            self.reply.error = Some(ReplyError {
                code: chunk.error,
                message: message.to_owned(),
                offset: chunk.offset,
            });
        }
        Ok(Chunk::Error)
    }
}

fn violation<T>(rule: &str) -> Result<T> {
    Err(Failure::Violation(rule.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(offset: u64, length: u64, flags: CommandFlags) -> Assembly {
        let request = Request { flags, command: Command::READ, cookie: 1, offset, length };
        Assembly::new(request, length, Headers::Structured, Vec::new())
    }

    fn data(offset: u64, length: usize) -> Vec<u8> {
        [&DataChunk::encode_prefix(offset), vec![7; length].as_slice()].concat()
    }

    const MORE: ReplyFlags = ReplyFlags::empty();
    const DONE: ReplyFlags = ReplyFlags::DONE;

    #[test]
    fn chunks_in_any_order_become_the_bytes_that_were_read() {
        let mut assembly = read(100, 20, CommandFlags::empty());
        let hole = HoleChunk { offset: 105, length: 10 }.encode();
        assert!(!assembly.add(MORE, ChunkType::OFFSET_DATA, &data(115, 5)).unwrap());
        assert!(!assembly.add(MORE, ChunkType::OFFSET_HOLE, &hole).unwrap());
        assert!(assembly.add(DONE, ChunkType::OFFSET_DATA, &data(100, 5)).unwrap());
        let reply = assembly.finish().unwrap();
        assert_eq!(reply.data, [vec![7; 5], vec![0; 10], vec![7; 5]].concat());
        assert_eq!(reply.chunks, [Chunk::Data(115, 5), Chunk::Hole(105, 10), Chunk::Data(100, 5)]);
    }

    #[test]
    fn an_overlap_a_gap_or_a_byte_too_far_is_a_violation() {
        let mut assembly = read(0, 20, CommandFlags::empty());
        assembly.add(MORE, ChunkType::OFFSET_DATA, &data(0, 10)).unwrap();
        assert!(assembly.add(MORE, ChunkType::OFFSET_DATA, &data(9, 2)).is_err());
        assert!(assembly.add(MORE, ChunkType::OFFSET_DATA, &data(19, 2)).is_err());
        assert!(assembly.add(DONE, ChunkType::NONE, &[]).unwrap());
        assert!(assembly.finish().is_err(), "10 of 20 bytes");
    }

    #[test]
    fn dont_fragment_means_one_content_chunk() {
        let mut assembly = read(0, 20, CommandFlags::DF);
        assembly.add(MORE, ChunkType::OFFSET_DATA, &data(0, 10)).unwrap();
        assert!(assembly.add(DONE, ChunkType::OFFSET_DATA, &data(10, 10)).is_err());
    }

    #[test]
    fn an_error_after_data_fails_the_read() {
        let mut assembly = read(0, 20, CommandFlags::empty());
        assembly.add(MORE, ChunkType::OFFSET_DATA, &data(0, 20)).unwrap();
        let mut error = Vec::new();
        ErrorChunk::encode_at_offset(&mut error, 5, "late", 10);
        assembly.add(DONE, ChunkType::ERROR_OFFSET, &error).unwrap();
        let reply = assembly.finish().unwrap();
        assert_eq!(reply.nbd_error(), Some(NbdError::Io));
        assert_eq!(reply.error.unwrap().offset, Some(10));
    }

    #[test]
    fn a_simple_reply_to_a_structured_read_is_a_violation() {
        assert!(read(0, 1, CommandFlags::empty()).simple_payload(22).is_err());
    }

    #[test]
    fn block_status_must_name_every_selected_context_once() {
        let request = Request {
            flags: CommandFlags::empty(),
            command: Command::BLOCK_STATUS,
            cookie: 1,
            offset: 0,
            length: 1024,
        };
        let mut assembly = Assembly::new(request, 1024, Headers::Structured, vec![5]);
        assert!(
            assembly.add(MORE, ChunkType::BLOCK_STATUS, b"\0\0\0\x06\0\0\x04\0\0\0\0\0").is_err()
        );
        let good = b"\0\0\0\x05\0\0\x02\0\0\0\0\0\0\0\x10\0\0\0\0\x03";
        assembly.add(MORE, ChunkType::BLOCK_STATUS, good).unwrap();
        assert!(assembly.add(MORE, ChunkType::BLOCK_STATUS, good).is_err(), "twice");
        assembly.add(DONE, ChunkType::NONE, &[]).unwrap();
        let reply = assembly.finish().unwrap();
        assert_eq!(reply.extents(), [(512, 0), (512, 3)], "clipped to the request");
    }
}
