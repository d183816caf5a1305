//! Takes the bytes that a server sends, in pieces of any size, apart into replies, and checks the
//! data in them.
//!
//! No I/O: the generator reads as much as one system call gives and hands it over here. Payloads
//! are looked at where they lie and never copied, so that the client stays cheaper than any server.
#![forbid(unsafe_code)]

use nbd_protocol::constants::{ChunkType, ReplyFlags, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC};
use nbd_protocol::transmission::{ErrorChunk, HoleChunk, SimpleReply, StructuredReplyChunk};

use crate::failure::Failure;
use crate::pattern::Pattern;

/// How much of the data is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Every byte.
    All(Pattern),
    /// The first and the last bytes of every piece.
    Ends(Pattern),
    /// What the caller does with the pieces, which it gets from [`Slot::buffer`].
    Keep,
}

/// A request that waits for its reply.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
    /// First byte.
    pub(crate) offset: u64,
    /// Bytes of data that the reply must carry; zero for commands other than read.
    pub(crate) expected: u64,
    /// Bytes of data that have come.
    covered: u64,
    /// Whether a reply is due.
    pub(crate) busy: bool,
    /// What came, with [`Check::Keep`]: data of reads, or the payload of block status.
    pub(crate) buffer: Vec<u8>,
}

impl Slot {
    /// Makes the slot wait for a reply.
    pub(crate) fn begin(&mut self, offset: u64, expected: u64) {
        self.offset = offset;
        self.expected = expected;
        self.covered = 0;
        self.busy = true;
        self.buffer.clear();
    }
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    /// Data of a read, at this offset of the export.
    Data {
        slot: usize,
        offset: u64,
        left: usize,
        done: bool,
    },
    /// The 8 bytes before the data of a chunk.
    DataOffset {
        slot: usize,
        length: usize,
        done: bool,
    },
    /// A short payload that is needed whole.
    Whole {
        slot: usize,
        kind: ChunkType,
        length: usize,
        done: bool,
    },
    /// Payload of block status, kept in the slot.
    Status {
        slot: usize,
        left: usize,
        done: bool,
    },
}

/// The replies of one connection. Cookies are indices of [`slots`](Self::slots).
#[derive(Debug)]
pub(crate) struct Replies {
    pub(crate) slots: Vec<Slot>,
    pub(crate) check: Check,
    state: State,
    /// The start of something of which the rest has not come: a header or a [`State::Whole`].
    partial: Vec<u8>,
}

impl Replies {
    /// For a connection with at most `depth` requests in flight.
    pub(crate) fn new(depth: usize, check: Check) -> Replies {
        Replies {
            slots: vec![Slot::default(); depth],
            check,
            state: State::Header,
            partial: Vec::with_capacity(64),
        }
    }

    /// Takes the next bytes of the connection and appends to `done` the slots whose reply is
    /// complete.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], done: &mut Vec<usize>) -> Result<(), Failure> {
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Data { slot, offset, left, done: last } => {
                    let (piece, rest) = bytes.split_at(left.min(bytes.len()));
                    self.take_data(slot, offset, piece)?;
                    let left = left - piece.len();
                    self.state =
                        State::Data { slot, offset: offset + piece.len() as u64, left, done: last };
                    if left == 0 {
                        self.end_of_chunk(slot, last, done)?;
                    }
                    rest
                }
                State::Status { slot, left, done: last } => {
                    let (piece, rest) = bytes.split_at(left.min(bytes.len()));
                    self.slots[slot].buffer.extend_from_slice(piece);
                    let left = left - piece.len();
                    self.state = State::Status { slot, left, done: last };
                    if left == 0 {
                        self.end_of_chunk(slot, last, done)?;
                    }
                    rest
                }
                State::Header | State::DataOffset { .. } | State::Whole { .. } => {
                    self.take_whole(bytes, done)?
                }
            };
        }
        Ok(())
    }

    /// Bytes that the state needs at once, once the magic is known.
    fn needed(&self, start: &[u8]) -> Result<usize, Failure> {
        Ok(match self.state {
            State::DataOffset { .. } => 8,
            State::Whole { length, .. } => length,
            State::Header => {
                let Some(magic) = start.first_chunk() else { return Ok(4) };
                match u32::from_be_bytes(*magic) {
                    SIMPLE_REPLY_MAGIC => SimpleReply::LENGTH,
                    STRUCTURED_REPLY_MAGIC => StructuredReplyChunk::LENGTH,
                    other => return Err(Failure::Wrong(format!("reply: magic {other:#x}"))),
                }
            }
            State::Data { .. } | State::Status { .. } => 0,
        })
    }

    /// Takes something that must be seen whole, from `bytes` directly or through `partial`. Returns
    /// what follows it.
    fn take_whole<'a>(
        &mut self,
        mut bytes: &'a [u8],
        done: &mut Vec<usize>,
    ) -> Result<&'a [u8], Failure> {
        if self.partial.is_empty() {
            let needed = self.needed(bytes)?;
            if let Some((whole, rest)) = bytes.split_at_checked(needed)
                && needed > 4
            {
                self.act(whole, done)?;
                return Ok(rest);
            }
        }
        let mut partial = std::mem::take(&mut self.partial);
        loop {
            let needed = self.needed(&partial)?;
            let missing = needed.saturating_sub(partial.len());
            let (piece, rest) = bytes.split_at(missing.min(bytes.len()));
            partial.extend_from_slice(piece);
            bytes = rest;
            if partial.len() < needed {
                break;
            }
            // Four bytes are only the magic of a header, which determines how long the header is.
            if needed > 4 {
                self.act(&partial, done)?;
                partial.clear();
                break;
            }
        }
        self.partial = partial;
        Ok(bytes)
    }

    /// Acts on a header or a short payload.
    fn act(&mut self, whole: &[u8], done: &mut Vec<usize>) -> Result<(), Failure> {
        match self.state {
            State::Header => {
                if let Some(header) = whole.first_chunk()
                    && whole.len() == StructuredReplyChunk::LENGTH
                {
                    return self.act_on_chunk(StructuredReplyChunk::decode(header)?, done);
                }
                let Some(header) = whole.first_chunk() else { return Ok(()) };
                let reply = SimpleReply::decode(header)?;
                let slot = self.slot(reply.cookie)?;
                if reply.error != 0 {
                    return Err(refused(self.slots[slot].offset, reply.error, b""));
                }
                let Slot { offset, expected, .. } = self.slots[slot];
                if expected == 0 {
                    return self.end_of_chunk(slot, true, done);
                }
                let left = usize::try_from(expected).unwrap_or(usize::MAX);
                self.state = State::Data { slot, offset, left, done: true };
                Ok(())
            }
            State::DataOffset { slot, length, done: last } => {
                let Some(offset) = whole.first_chunk() else { return Ok(()) };
                let offset = u64::from_be_bytes(*offset);
                self.state = State::Data { slot, offset, left: length - 8, done: last };
                Ok(())
            }
            State::Whole { slot, kind, done: last, .. } => {
                if kind.is_error() {
                    let chunk = ErrorChunk::decode_unknown(whole)?;
                    return Err(refused(self.slots[slot].offset, chunk.error, chunk.message));
                }
                let hole = HoleChunk::decode(whole)?;
                self.take_hole(slot, hole)?;
                self.end_of_chunk(slot, last, done)
            }
            State::Data { .. } | State::Status { .. } => Ok(()),
        }
    }

    fn act_on_chunk(
        &mut self,
        header: StructuredReplyChunk,
        done: &mut Vec<usize>,
    ) -> Result<(), Failure> {
        let slot = self.slot(header.cookie)?;
        let last = header.flags.contains(ReplyFlags::DONE);
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        self.state = match header.chunk_type {
            ChunkType::NONE if length == 0 => return self.end_of_chunk(slot, last, done),
            ChunkType::OFFSET_DATA if length > 8 => State::DataOffset { slot, length, done: last },
            ChunkType::OFFSET_HOLE if length == HoleChunk::LENGTH => {
                State::Whole { slot, kind: header.chunk_type, length, done: last }
            }
            ChunkType::BLOCK_STATUS if length > 8 => {
                State::Status { slot, left: length, done: last }
            }
            kind if kind.is_error() && (6..=8192).contains(&length) => {
                State::Whole { slot, kind, length, done: last }
            }
            kind => {
                return Err(Failure::Wrong(format!("reply: chunk {kind} of {length} bytes")));
            }
        };
        Ok(())
    }

    fn slot(&self, cookie: u64) -> Result<usize, Failure> {
        usize::try_from(cookie)
            .ok()
            .filter(|slot| self.slots.get(*slot).is_some_and(|slot| slot.busy))
            .ok_or_else(|| Failure::Wrong(format!("reply: no request has cookie {cookie}")))
    }

    fn take_data(&mut self, slot: usize, offset: u64, piece: &[u8]) -> Result<(), Failure> {
        let waiting = &mut self.slots[slot];
        let right = match self.check {
            Check::All(pattern) => pattern.holds(offset, piece),
            Check::Ends(pattern) => pattern.holds_at_the_ends(offset, piece),
            Check::Keep => {
                waiting.buffer.extend_from_slice(piece);
                true
            }
        };
        if !right {
            let length = piece.len();
            return Err(Failure::Wrong(format!("read: wrong data in {length} bytes at {offset}")));
        }
        cover(waiting, offset, piece.len() as u64)
    }

    fn take_hole(&mut self, slot: usize, hole: HoleChunk) -> Result<(), Failure> {
        let waiting = &mut self.slots[slot];
        let length = usize::try_from(hole.length).unwrap_or(usize::MAX);
        match self.check {
            Check::Keep => waiting.buffer.resize(waiting.buffer.len().saturating_add(length), 0),
            Check::All(pattern) | Check::Ends(pattern) => {
                if pattern.is_zero(hole.offset, u64::from(hole.length)) {
                    return cover(waiting, hole.offset, u64::from(hole.length));
                }
                return Err(Failure::Wrong(format!("read: a hole at {}", hole.offset)));
            }
        }
        cover(waiting, hole.offset, u64::from(hole.length))
    }

    fn end_of_chunk(
        &mut self,
        slot: usize,
        last: bool,
        done: &mut Vec<usize>,
    ) -> Result<(), Failure> {
        self.state = State::Header;
        if last {
            let waiting = &mut self.slots[slot];
            if waiting.covered != waiting.expected {
                return Err(Failure::Wrong(format!(
                    "read: {} of {} bytes came",
                    waiting.covered, waiting.expected
                )));
            }
            waiting.busy = false;
            done.push(slot);
        }
        Ok(())
    }
}

/// Counts data against what was asked for; it must lie in the request.
fn cover(slot: &mut Slot, offset: u64, length: u64) -> Result<(), Failure> {
    let inside = offset >= slot.offset
        && offset.checked_add(length).is_some_and(|end| end <= slot.offset + slot.expected);
    if !inside {
        return Err(Failure::Wrong(format!("read: {length} bytes at {offset} were not asked for")));
    }
    slot.covered += length;
    Ok(())
}

fn refused(offset: u64, error: u32, message: &[u8]) -> Failure {
    let message = String::from_utf8_lossy(message);
    Failure::Unavailable(format!("request at {offset}: error {error} {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A structured reply with the 16 bytes of the pattern at offset 4096, in two chunks, then a
    /// simple one without data.
    fn session() -> Vec<u8> {
        let mut bytes = Vec::new();
        for (at, flags) in [(4096_u64, 0_u16), (4104, 1)] {
            bytes.extend_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
            bytes.extend_from_slice(&flags.to_be_bytes());
            bytes.extend_from_slice(&ChunkType::OFFSET_DATA.0.to_be_bytes());
            bytes.extend_from_slice(&0_u64.to_be_bytes());
            bytes.extend_from_slice(&16_u32.to_be_bytes());
            bytes.extend_from_slice(&at.to_be_bytes());
            bytes.extend_from_slice(&Pattern::Hashed.word(at));
        }
        bytes.extend_from_slice(&SimpleReply { error: 0, cookie: 1 }.encode());
        bytes
    }

    fn waiting() -> Replies {
        let mut replies = Replies::new(2, Check::All(Pattern::Hashed));
        replies.slots[0].begin(4096, 16);
        replies.slots[1].begin(0, 0);
        replies
    }

    #[test]
    fn replies_are_found_however_the_bytes_are_cut() {
        let bytes = session();
        for size in 1..=bytes.len() {
            let (mut replies, mut done) = (waiting(), Vec::new());
            for piece in bytes.chunks(size) {
                replies.feed(piece, &mut done).unwrap();
            }
            assert_eq!(done, [0, 1], "pieces of {size}");
        }
    }

    #[test]
    fn wrong_data_is_wrong() {
        let mut bytes = session();
        bytes[30] ^= 1;
        let result = waiting().feed(&bytes, &mut Vec::new());
        assert!(matches!(result, Err(Failure::Wrong(_))), "{result:?}");
    }

    #[test]
    fn a_reply_with_too_little_data_is_wrong() {
        let mut replies = waiting();
        replies.slots[0].begin(4096, 24);
        let result = replies.feed(&session(), &mut Vec::new());
        assert!(matches!(result, Err(Failure::Wrong(_))), "{result:?}");
    }

    #[test]
    fn a_cookie_that_nobody_waits_for_is_wrong() {
        let mut replies = waiting();
        replies.slots[1].busy = false;
        let result = replies.feed(&session(), &mut Vec::new());
        assert!(matches!(result, Err(Failure::Wrong(_))), "{result:?}");
    }
}
