//! A batch of replies: appended to one buffer, which is sent by one system call. NBD protocol,
//! "Simple reply message", "Structured reply chunk message", "Extended reply chunk message".

#![forbid(unsafe_code)]

use nbd_protocol::constants::{ChunkType, NbdError, ReplyFlags};
use nbd_protocol::transmission::{
    DataChunk, ErrorChunk, ExtendedReplyChunk, HoleChunk, Request, SimpleReply,
    StructuredReplyChunk,
};
use nbdkit_api::Error;

use super::negotiated::Features;

/// Largest buffer that is kept between batches, bytes. Reads of the usual sizes fit, with the
/// replies in front of them.
const KEEP: usize = 1 << 20;
/// Size of the first buffer, bytes: so large that the allocator maps it, so that only pages in use
/// take memory, and none once it is freed.
const FIRST: usize = 160 * 1024;

/// A batch of replies. The buffer is initialised once and reused, so that the backend reads
/// directly into the bytes that are sent.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    buf: Vec<u8>,
    used: usize,
    /// Bytes of the buffer that are never freed.
    kept: usize,
}

impl Replies {
    /// A batch with a buffer of `room` bytes, which is kept.
    pub(crate) fn with_room(room: usize) -> Replies {
        Replies { buf: vec![0; room], used: 0, kept: room }
    }

    /// The bytes to send.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf[..self.used]
    }

    /// True if there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Empties the batch, after it was sent.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
        if self.kept > 0 {
            self.buf.truncate(self.kept);
            self.buf.shrink_to(self.kept);
        } else if self.buf.len() > KEEP {
            self.buf = vec![0; FIRST];
        }
    }

    /// `count` bytes behind the batch, which become part of it by [`commit`](Self::commit).
    fn space(&mut self, count: usize) -> &mut [u8] {
        let end = self.used + count;
        if self.buf.len() < end {
            let length = if self.kept > 0 { end } else { end.max(FIRST).max(2 * self.buf.len()) };
            // Not Vec::resize, which writes zeroes: new pages are zero already.
            let mut buf = vec![0; length];
            buf[..self.used].copy_from_slice(&self.buf[..self.used]);
            self.buf = buf;
        }
        &mut self.buf[self.used..end]
    }

    fn commit(&mut self, count: usize) {
        self.used += count;
    }

    fn append(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
        self.commit(bytes.len());
    }

    /// Appends the header of a chunk whose payload has `length` bytes.
    fn chunk_header(
        &mut self,
        request: &Request,
        form: Features,
        last: bool,
        kind: ChunkType,
        length: usize,
    ) {
        let mut bytes = [0; ExtendedReplyChunk::LENGTH];
        let size = put_chunk_header(&mut bytes, request, form, last, kind, length);
        self.append(&bytes[..size]);
    }

    /// Appends a success without payload.
    pub(crate) fn success(&mut self, request: &Request, form: Features) {
        if form.extended {
            self.chunk_header(request, form, true, ChunkType::NONE, 0);
        } else {
            self.append(&SimpleReply { error: 0, cookie: request.cookie }.encode());
        }
    }

    /// Appends an error, with its message if replies are structured.
    pub(crate) fn error(&mut self, request: &Request, form: Features, error: &Error) {
        let code = NbdError::from_errno(error.errno() as i32)
            .for_reply(request.command, request.flags)
            .code();
        if form.structured {
            let mut payload = Vec::new();
            ErrorChunk::encode(&mut payload, code, error.message());
            self.chunk_header(request, form, true, ChunkType::ERROR, payload.len());
            self.append(&payload);
        } else {
            self.append(&SimpleReply { error: code, cookie: request.cookie }.encode());
        }
    }

    /// Appends the last chunk of a reply.
    pub(crate) fn chunk(
        &mut self,
        request: &Request,
        form: Features,
        kind: ChunkType,
        payload: &[u8],
    ) {
        self.chunk_header(request, form, true, kind, payload.len());
        self.append(payload);
    }

    /// Appends a hole of a sparse read.
    pub(crate) fn hole(
        &mut self,
        request: &Request,
        form: Features,
        last: bool,
        offset: u64,
        length: u32,
    ) {
        let payload = HoleChunk { offset, length }.encode();
        self.chunk_header(request, form, last, ChunkType::OFFSET_HOLE, payload.len());
        self.append(&payload);
    }

    /// Appends the header of a read reply whose `count` bytes of data are spliced behind it.
    pub(crate) fn data_header(
        &mut self,
        request: &Request,
        form: Features,
        offset: u64,
        count: usize,
    ) {
        let mut header = [0; ExtendedReplyChunk::LENGTH + 8];
        let size = data_header(&mut header, request, form, true, offset, count);
        self.append(&header[..size]);
    }

    /// Appends `count` bytes of data from `offset`, which `read` reads into the batch. If `read`
    /// does not return `Some(Ok)`, nothing is appended; returns what `read` returned.
    pub(crate) fn data<E>(
        &mut self,
        request: &Request,
        form: Features,
        last: bool,
        (offset, count): (u64, usize),
        read: impl FnOnce(&mut [u8]) -> Option<Result<(), E>>,
    ) -> Option<Result<(), E>> {
        let mut header = [0; ExtendedReplyChunk::LENGTH + 8];
        let size = data_header(&mut header, request, form, last, offset, count);
        let space = self.space(size + count);
        space[..size].copy_from_slice(&header[..size]);
        let result = read(&mut space[size..]);
        if let Some(Ok(())) = result {
            self.commit(size + count);
        }
        result
    }
}

/// Encodes the header of a read reply, up to where the data starts, into `bytes`; returns its size.
fn data_header(
    bytes: &mut [u8; ExtendedReplyChunk::LENGTH + 8],
    request: &Request,
    form: Features,
    last: bool,
    offset: u64,
    count: usize,
) -> usize {
    if !form.structured {
        let header = SimpleReply { error: 0, cookie: request.cookie }.encode();
        bytes[..header.len()].copy_from_slice(&header);
        return header.len();
    }
    let prefix = DataChunk::encode_prefix(offset);
    let mut header = [0; ExtendedReplyChunk::LENGTH];
    let size = put_chunk_header(
        &mut header,
        request,
        form,
        last,
        ChunkType::OFFSET_DATA,
        prefix.len() + count,
    );
    bytes[..size].copy_from_slice(&header[..size]);
    bytes[size..size + prefix.len()].copy_from_slice(&prefix);
    size + prefix.len()
}

/// Encodes a chunk header of the negotiated form into `bytes`; returns its size.
fn put_chunk_header(
    bytes: &mut [u8; ExtendedReplyChunk::LENGTH],
    request: &Request,
    form: Features,
    last: bool,
    chunk_type: ChunkType,
    length: usize,
) -> usize {
    let flags = if last { ReplyFlags::DONE } else { ReplyFlags::empty() };
    let cookie = request.cookie;
    if form.extended {
        let chunk = ExtendedReplyChunk {
            flags,
            chunk_type,
            cookie,
            offset: request.offset,
            length: length as u64,
        };
        *bytes = chunk.encode();
        ExtendedReplyChunk::LENGTH
    } else {
        // At most 64 MiB and a few bytes: the largest read.
        let chunk = StructuredReplyChunk { flags, chunk_type, cookie, length: length as u32 };
        bytes[..StructuredReplyChunk::LENGTH].copy_from_slice(&chunk.encode());
        StructuredReplyChunk::LENGTH
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd_protocol::constants::{Command, CommandFlags};
    use nbdkit_api::Errno;

    const SIMPLE: Features =
        Features { structured: false, extended: false, base_allocation: false };
    const EXTENDED: Features =
        Features { structured: true, extended: true, base_allocation: false };

    fn read_request() -> Request {
        Request {
            flags: CommandFlags::empty(),
            command: Command::READ,
            cookie: 7,
            offset: 512,
            length: 4,
        }
    }

    #[test]
    fn a_failed_read_leaves_the_batch_unchanged() {
        let mut replies = Replies::default();
        replies.success(&read_request(), SIMPLE);
        let before = replies.bytes().to_vec();
        let result = replies.data(&read_request(), SIMPLE, true, (512, 4), |buf| {
            buf.fill(9);
            Some(Err(()))
        });
        assert_eq!(result, Some(Err(())));
        assert_eq!(replies.bytes(), before);
        let none = replies.data::<()>(&read_request(), SIMPLE, true, (512, 4), |_| None);
        assert_eq!(none, None);
        assert_eq!(replies.bytes(), before);
    }

    #[test]
    fn data_follows_its_header_in_every_form() {
        for (form, header) in [
            (SIMPLE, SimpleReply::LENGTH),
            (Features { structured: true, ..SIMPLE }, StructuredReplyChunk::LENGTH + 8),
            (EXTENDED, ExtendedReplyChunk::LENGTH + 8),
        ] {
            let mut replies = Replies::default();
            replies.data::<()>(&read_request(), form, true, (512, 4), |buf| {
                buf.copy_from_slice(b"data");
                Some(Ok(()))
            });
            assert_eq!(replies.bytes().len(), header + 4);
            assert_eq!(&replies.bytes()[header..], b"data");
        }
    }

    #[test]
    fn structured_errors_have_a_message_and_simple_ones_a_number() {
        let error = Error::new(Errno::EROFS, "read-only disk");
        let mut replies = Replies::default();
        replies.error(&read_request(), EXTENDED, &error);
        let payload = &replies.bytes()[ExtendedReplyChunk::LENGTH..];
        let chunk = ErrorChunk::decode(payload).unwrap();
        assert_eq!((chunk.error, chunk.message), (1, &b"read-only disk"[..]));
        let mut replies = Replies::default();
        replies.error(&read_request(), SIMPLE, &error);
        let reply = SimpleReply::decode(replies.bytes().first_chunk().unwrap()).unwrap();
        assert_eq!(reply, SimpleReply { error: 1, cookie: 7 });
    }

    #[test]
    fn the_buffer_of_a_large_batch_is_freed() {
        let mut replies = Replies::default();
        replies.data::<()>(&read_request(), SIMPLE, true, (0, 8 << 20), |_| Some(Ok(())));
        replies.clear();
        assert!(replies.buf.capacity() <= KEEP);
    }

    #[test]
    fn a_preallocated_buffer_is_not_reallocated() {
        let mut replies = Replies::with_room(100_000);
        let at = replies.buf.as_ptr();
        let mut read = |count| {
            replies.data::<()>(&read_request(), SIMPLE, true, (0, count), |_| Some(Ok(())));
            replies.clear();
            (replies.buf.as_ptr(), replies.buf.capacity())
        };
        assert_eq!(read(90_000), (at, 100_000));
        assert_eq!(read(8 << 20).1, 100_000);
    }
}
