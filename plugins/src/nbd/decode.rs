//! Replies of an upstream server, decoded into the [`Table`]. NBD protocol, "Transmission".
//!
//! State in memory, without a socket: whoever reads puts bytes into [`Decoder::space`], or into a
//! request's own buffer where [`Decoder::step`] asks for that. The bytes are hostile: whatever a
//! correct server never sends is an error, and the connection ends with it.

#![forbid(unsafe_code)]

mod header;

use nbd_protocol::Malformed;
use nbd_protocol::constants::{ChunkType, NbdError};
use nbd_protocol::transmission::{ErrorChunk, ExtendedReplyChunk, HoleChunk};
use nbdkit_api::{Errno, Error, Result, quoted};

use self::header::{Header, What};
use super::haggle::{Form, violation};
use super::table::{Kind, Table};

/// Bytes that are read at a time.
const BUFFER: usize = 128 * 1024;
/// Longest payload of a chunk that is decoded in one piece: errors with their text.
const MAX_PIECE: u64 = 66 * 1024;
/// Longest payload of a block status chunk: as many extents as nbdkit's servers ever send.
const MAX_STATUS: u64 = 8 + 16 * 1024 * 1024;
/// Most extents of one reply that are kept; a list may always be shorter than what was asked for.
const MAX_EXTENTS: usize = 64 * 1024;
/// The largest header with the offset of its data, bytes.
const HEAD: usize = ExtendedReplyChunk::LENGTH + 8;
/// From this many bytes on, the rest of a payload is read past the buffer.
const DIRECT: usize = 16 * 1024;

/// What has to happen before decoding can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// More bytes are needed in [`Decoder::space`].
    Read,
    /// The thread of this request has to go on.
    Own(u32),
    /// The thread that decodes should read up to so many bytes into its buffer from this position
    /// on, and tell [`Decoder::received`].
    Direct { at: usize, left: usize },
    /// The same, into the [`kept`](super::table::Slot::kept) bytes of this request.
    Kept { index: u32, at: usize, left: usize },
}

/// What is done with the payload of a chunk.
#[derive(Debug, Clone, Copy)]
enum Payload {
    /// Data of a read, for position `at` of its buffer.
    Data { at: usize },
    /// Zeroes that a read has in place of data.
    Hole { at: usize, count: usize },
    /// Extents, in descriptors of so many bytes.
    Extents { each: usize },
    /// Nothing.
    Skipped,
}

/// A chunk whose payload is coming.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    index: u32,
    payload: Payload,
    /// Bytes that have not come.
    left: usize,
    /// The last one of its reply.
    last: bool,
}

/// Where decoding is.
pub(super) struct Decoder {
    form: Form,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    chunk: Option<Chunk>,
}

impl Decoder {
    pub(super) fn new(form: Form) -> Decoder {
        Decoder { form, buffer: vec![0; BUFFER], start: 0, end: 0, chunk: None }
    }

    /// Where bytes of the server go next; not empty after [`Step::Read`]. If the replies to long
    /// reads are `expected`, no more than tells what comes: their data has a place of its own.
    pub(super) fn space(&mut self, expected: bool) -> &mut [u8] {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let room = if expected { self.chunk.map_or(0, |chunk| chunk.left) + HEAD } else { BUFFER };
        let end = room.max(self.end + HEAD).min(BUFFER);
        &mut self.buffer[self.end..end]
    }

    /// So many bytes have been put into [`space`](Self::space).
    pub(super) fn filled(&mut self, count: usize) {
        self.end += count;
    }

    /// So many bytes have been read past the buffer, as [`Step::Direct`] asked for.
    ///
    /// # Errors
    /// The reply that they complete lacks something.
    pub(super) fn received(&mut self, count: usize, table: &mut Table) -> Result<()> {
        if let Some(Chunk { payload: Payload::Data { at }, left, .. }) = &mut self.chunk {
            *at += count;
            *left -= count;
        }
        self.end_chunk(table)
    }

    /// Decodes what has come, up to where more bytes are needed. `own` is the request of the thread
    /// that decodes, `buf` its buffer, as long as the request if that is a read.
    ///
    /// # Errors
    /// The server violates the protocol.
    pub(super) fn step(&mut self, table: &mut Table, own: u32, buf: &mut [u8]) -> Result<Step> {
        loop {
            if let Some(chunk) = self.chunk {
                if let Some(step) = self.take(chunk, table, own, buf) {
                    return step;
                }
                self.end_chunk(table)?;
            } else if !self.begin(table)? {
                return Ok(Step::Read);
            }
        }
    }

    /// Ends the chunk if its payload is complete.
    fn end_chunk(&mut self, table: &mut Table) -> Result<()> {
        match self.chunk {
            Some(Chunk { index, left: 0, last, .. }) => {
                self.chunk = None;
                if last { table.finish(index) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    /// Takes what the buffer has of a chunk's payload; what has to happen if that is not all.
    fn take(
        &mut self,
        mut chunk: Chunk,
        table: &mut Table,
        own: u32,
        buf: &mut [u8],
    ) -> Option<Result<Step>> {
        let index = chunk.index;
        if table.is_abandoned(index) {
            chunk.payload = Payload::Skipped;
        }
        let bytes = &self.buffer[self.start..self.end];
        let bytes = &bytes[..bytes.len().min(chunk.left)];
        let mut used = bytes.len();
        let slot = table.slot(index);
        let queued = slot.queued;
        // Once a part of a read has gone to its own buffer, all of it has to, by its own thread.
        let to_own = index == own && slot.data.is_empty();
        if matches!(chunk.payload, Payload::Data { .. } | Payload::Hole { .. }) {
            if index != own && slot.own_thread {
                return Some(Ok(Step::Own(index)));
            }
            slot.own_thread |= to_own;
        }
        match &mut chunk.payload {
            Payload::Skipped => {}
            Payload::Data { at } => {
                let target = if to_own { &mut *buf } else { slot.kept() };
                target[*at..*at + used].copy_from_slice(bytes);
                *at += used;
            }
            Payload::Hole { at, count } => {
                let target = if to_own { &mut *buf } else { slot.kept() };
                target[*at..*at + *count].fill(0);
            }
            Payload::Extents { each } => {
                used -= used % *each;
                for descriptor in bytes[..used].chunks_exact(*each) {
                    match extent(descriptor) {
                        Ok(_) if slot.extents.len() >= MAX_EXTENTS => {}
                        Ok(extent) => slot.extents.push(extent),
                        Err(why) => return Some(Err(why)),
                    }
                }
            }
        }
        chunk.left -= used;
        self.start += used;
        self.chunk = Some(chunk);
        match chunk {
            Chunk { left: 0, .. } => None,
            Chunk { payload: Payload::Data { at }, left, .. } if to_own && left >= DIRECT => {
                Some(Ok(Step::Direct { at, left }))
            }
            Chunk { payload: Payload::Data { at }, left, .. } if queued && left >= DIRECT => {
                Some(Ok(Step::Kept { index, at, left }))
            }
            _ => Some(Ok(Step::Read)),
        }
    }

    /// Begins the next chunk; false if its header, or what is decoded with it, is incomplete.
    fn begin(&mut self, table: &mut Table) -> Result<bool> {
        let bytes = &self.buffer[self.start..self.end];
        let Some(header) = Header::decode(self.form, bytes).map_err(violation)? else {
            return Ok(false);
        };
        let index = table.find(header.cookie)?;
        let body = &bytes[header.size..];
        let Some((payload, used, left)) = payload(&header, body, index, table)? else {
            return Ok(false);
        };
        self.start += header.size + used;
        self.chunk = Some(Chunk { index, payload, left, last: header.last });
        Ok(true)
    }
}

/// What is to be done with the payload of a chunk of request `index`, the bytes of it that have
/// been used, and those that follow; `None` if there are too few to tell.
fn payload(
    header: &Header,
    body: &[u8],
    index: u32,
    table: &mut Table,
) -> Result<Option<(Payload, usize, usize)>> {
    let slot = table.slot(index);
    let chunk_type = match header.what {
        What::Success => {
            let Kind::Read { length, .. } = slot.kind else {
                return Ok(Some((Payload::Skipped, 0, 0)));
            };
            slot.coverage.add(0, length.into())?;
            return Ok(Some((Payload::Data { at: 0 }, 0, length as usize)));
        }
        What::Error(code) => {
            table.fail(index, error(code, b"", None));
            return Ok(Some((Payload::Skipped, 0, 0)));
        }
        What::Chunk(chunk_type) => chunk_type,
    };
    let whole = usize::try_from(header.length).ok().and_then(|length| body.get(..length));
    let unexpected = || {
        let length = header.length;
        violation(format_args!("unexpected {chunk_type} of {length} bytes"))
    };
    match (chunk_type, slot.kind) {
        (ChunkType::NONE, _) if header.length == 0 && header.last => {
            Ok(Some((Payload::Skipped, 0, 0)))
        }
        (ChunkType::OFFSET_DATA, Kind::Read { offset, length }) => {
            let count = header.length.checked_sub(8).filter(|count| *count > 0);
            let count = count.ok_or_else(unexpected)?;
            let Some((start, _)) = body.split_first_chunk() else { return Ok(None) };
            let at = within(u64::from_be_bytes(*start), count, offset, length)?;
            slot.coverage.add(at as u64, count)?;
            // In the request, which is at most 64 MiB long.
            Ok(Some((Payload::Data { at }, 8, count as usize)))
        }
        (ChunkType::OFFSET_HOLE, Kind::Read { offset, length }) => {
            if header.length != HoleChunk::LENGTH as u64 {
                return Err(unexpected());
            }
            let Some(whole) = whole else { return Ok(None) };
            let HoleChunk { offset: start, length: count } =
                HoleChunk::decode(whole).map_err(malformed)?;
            let at = within(start, count.into(), offset, length)?;
            slot.coverage.add(at as u64, count.into())?;
            Ok(Some((Payload::Hole { at, count: count as usize }, whole.len(), 0)))
        }
        (ChunkType::BLOCK_STATUS | ChunkType::BLOCK_STATUS_EXT, Kind::Status { context }) => {
            let extended = chunk_type == ChunkType::BLOCK_STATUS_EXT;
            let (prefix, each) = if extended { (8, 16) } else { (4, 8) };
            let rest = header.length.checked_sub(prefix as u64).filter(|rest| {
                let whole = *rest > 0 && rest.is_multiple_of(each as u64);
                whole && header.length <= MAX_STATUS && slot.extents.is_empty()
            });
            let rest = rest.ok_or_else(unexpected)?;
            let Some(start) = body.get(..prefix) else { return Ok(None) };
            let word =
                |at: usize| start[at..].first_chunk().map_or(0, |it| u32::from_be_bytes(*it));
            if word(0) != context {
                return Err(violation("extents of a context that was not negotiated"));
            }
            if extended && u64::from(word(4)) != rest / 16 {
                return Err(violation("the wrong number of extents"));
            }
            // At most MAX_STATUS.
            Ok(Some((Payload::Extents { each }, prefix, rest as usize)))
        }
        (kind, _) if kind.is_error() && header.length <= MAX_PIECE => {
            let Some(whole) = whole else { return Ok(None) };
            let chunk = match kind {
                ChunkType::ERROR => ErrorChunk::decode(whole),
                ChunkType::ERROR_OFFSET => ErrorChunk::decode_at_offset(whole),
                _ => ErrorChunk::decode_unknown(whole),
            };
            let ErrorChunk { error: code, message, offset } = chunk.map_err(malformed)?;
            table.fail(index, error(code, message, offset));
            Ok(Some((Payload::Skipped, whole.len(), 0)))
        }
        _ => Err(unexpected()),
    }
}

fn malformed(why: Malformed) -> Error {
    violation(why)
}

/// The position in a request's buffer of `count` bytes from `start` of the export.
fn within(start: u64, count: u64, offset: u64, length: u32) -> Result<usize> {
    let at = start
        .checked_sub(offset)
        .filter(|at| *at <= u64::from(length) && count <= u64::from(length) - at);
    let at = at.and_then(|at| usize::try_from(at).ok());
    at.ok_or_else(|| violation("reply to a read has bytes that were not asked for"))
}

/// Length and flags of a descriptor of 32 or 64 bits.
fn extent(descriptor: &[u8]) -> Result<(u64, u32)> {
    let narrow = |bytes: &[u8]| bytes.first_chunk().map_or(0, |it| u32::from_be_bytes(*it));
    let (length, flags) = match descriptor.split_first_chunk::<8>() {
        // Unknown flags of either half mean nothing here.
        Some((length, flags)) if flags.len() == 8 => {
            (u64::from_be_bytes(*length), narrow(&flags[4..]))
        }
        _ => (narrow(descriptor).into(), narrow(&descriptor[4..])),
    };
    if length == 0 {
        return Err(violation("an extent of no bytes"));
    }
    Ok((length, flags))
}

/// The error of a request that the server has refused. The text is for the log.
fn error(code: u32, message: &[u8], offset: Option<u64>) -> Error {
    let known = NbdError::from_code(code);
    let errno = known.map_or(Errno::EINVAL, |known| Errno::from_raw(known.errno()));
    // How a server declines a fast zero, and how a layer asks for another way.
    if errno == Errno::EOPNOTSUPP {
        return Error::silent(errno);
    }
    let name = known.map_or_else(|| format!("error {code}"), |known| known.to_string());
    let message = match message {
        b"" => String::new(),
        text => format!(": {}", quoted(text)),
    };
    let place = offset.map_or_else(String::new, |offset| format!(" at offset {offset}"));
    Error::new(errno, format!("the NBD server replied {name}{place}{message}"))
}

#[cfg(test)]
mod tests;
