use nbd_protocol::constants::ReplyFlags;
use nbd_protocol::transmission::{
    BlockDescriptor, BlockDescriptorExt, BlockStatus, BlockStatusExt, ExtendedReplyChunk,
    SimpleReply, StructuredReplyChunk,
};

use super::super::table::KEPT;
use super::*;

/// A connection in memory.
struct Memory {
    table: Table,
    decoder: Decoder,
    form: Form,
}

const READ: Kind = Kind::Read { offset: 1000, length: 8 };
const STATUS: Kind = Kind::Status { context: 7 };

impl Memory {
    fn new(form: Form) -> Memory {
        Memory { table: Table::default(), decoder: Decoder::new(form), form }
    }

    fn chunk(&self, cookie: u64, chunk_type: ChunkType, last: bool, payload: &[u8]) -> Vec<u8> {
        let flags = if last { ReplyFlags::DONE } else { ReplyFlags::empty() };
        let mut bytes = match self.form {
            Form::Extended => {
                let length = payload.len() as u64;
                ExtendedReplyChunk { flags, chunk_type, cookie, offset: 0, length }
                    .encode()
                    .to_vec()
            }
            _ => {
                let length = payload.len() as u32;
                StructuredReplyChunk { flags, chunk_type, cookie, length }.encode().to_vec()
            }
        };
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Feeds bytes, so many at a time, in the name of request `own`.
    fn feed(&mut self, own: u32, buf: &mut [u8], bytes: &[u8], piece: usize) -> Result<Step> {
        let mut step = self.decoder.step(&mut self.table, own, buf)?;
        for piece in bytes.chunks(piece) {
            assert_eq!(step, Step::Read);
            self.decoder.space(false)[..piece.len()].copy_from_slice(piece);
            self.decoder.filled(piece.len());
            step = self.decoder.step(&mut self.table, own, buf)?;
        }
        Ok(step)
    }

    /// What becomes of a request of this kind that gets the bytes that `reply` makes of its cookie.
    fn answer(&mut self, kind: Kind, reply: impl Fn(&Memory, u64) -> Vec<u8>) -> Result<()> {
        let mut buf = match kind {
            Kind::Read { length, .. } => vec![0xee; length as usize],
            Kind::Plain | Kind::Status { .. } => Vec::new(),
        };
        let (index, cookie) = self.table.begin(kind);
        let bytes = reply(self, cookie);
        self.feed(index, &mut buf, &bytes, usize::MAX)?;
        assert!(self.table.is_done(index), "the reply is not complete");
        self.table.take(index).map(drop)
    }
}

fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], bytes].concat()
}

fn hole(offset: u64, length: u32) -> Vec<u8> {
    HoleChunk { offset, length }.encode().to_vec()
}

/// The same replies come to the same, however the bytes arrive and whoever receives them.
#[test]
fn replies_are_decoded_in_pieces_of_any_size() {
    for form in [Form::Structured, Form::Extended] {
        for piece in [1, 2, 3, 5, 19, 20, 21, 33, 1000] {
            for receiver_is_owner in [true, false] {
                let mut memory = Memory::new(form);
                let (read, read_cookie) = memory.table.begin(READ);
                let (other, other_cookie) = memory.table.begin(Kind::Plain);
                let (status, status_cookie) = memory.table.begin(STATUS);
                let mut extents = Vec::new();
                if form == Form::Extended {
                    let runs = [(1 << 40, 3), (5, 0)];
                    let runs = runs.map(|(length, flags)| BlockDescriptorExt { length, flags });
                    BlockStatusExt::encode(&mut extents, 7, &runs);
                } else {
                    let runs = [(4096, 3), (5, 0)];
                    let runs = runs.map(|(length, flags)| BlockDescriptor { length, flags });
                    BlockStatus::encode(&mut extents, 7, &runs);
                }
                let status_type = match form {
                    Form::Extended => ChunkType::BLOCK_STATUS_EXT,
                    _ => ChunkType::BLOCK_STATUS,
                };
                let bytes = [
                    memory.chunk(read_cookie, ChunkType::OFFSET_DATA, false, &data(1005, b"xyz")),
                    memory.chunk(other_cookie, ChunkType::NONE, true, b""),
                    memory.chunk(read_cookie, ChunkType::OFFSET_HOLE, false, &hole(1002, 3)),
                    memory.chunk(status_cookie, status_type, true, &extents),
                    memory.chunk(read_cookie, ChunkType::OFFSET_DATA, true, &data(1000, b"ab")),
                ]
                .concat();
                let (receiver, mut buf) = match receiver_is_owner {
                    true => (read, vec![0xee; 8]),
                    false => (other, Vec::new()),
                };
                assert_eq!(memory.feed(receiver, &mut buf, &bytes, piece).unwrap(), Step::Read);
                for index in [read, other, status] {
                    assert!(memory.table.is_done(index));
                }
                let reply = memory.table.take(read).unwrap();
                let got = if receiver_is_owner { buf } else { reply.data };
                assert_eq!(got, b"ab\0\0\0xyz", "{form:?} {piece}");
                memory.table.take(other).unwrap();
                let length = if form == Form::Extended { 1 << 40 } else { 4096 };
                assert_eq!(memory.table.take(status).unwrap().extents, [(length, 3), (5, 0)]);
            }
        }
    }
}

#[test]
fn simple_replies_are_decoded_in_pieces_of_any_size() {
    for piece in [1, 7, 16, 17, 100] {
        let mut memory = Memory::new(Form::Simple);
        let (read, cookie) = memory.table.begin(READ);
        let (failed, failed_cookie) = memory.table.begin(READ);
        let bytes = [
            &SimpleReply { error: 28, cookie: failed_cookie }.encode()[..],
            &SimpleReply { error: 0, cookie }.encode(),
            b"12345678",
        ]
        .concat();
        let mut buf = [0; 8];
        memory.feed(read, &mut buf, &bytes, piece).unwrap();
        memory.table.take(read).unwrap();
        assert_eq!(&buf, b"12345678");
        let why = memory.table.take(failed).unwrap_err();
        assert_eq!(
            (why.errno(), why.message()),
            (Errno::ENOSPC, "the NBD server replied NBD_ENOSPC")
        );
    }
}

#[test]
fn a_long_read_is_received_by_its_own_thread_past_the_buffer() {
    let mut memory = Memory::new(Form::Structured);
    let length = KEPT + 1;
    let (long, cookie) = memory.table.begin(Kind::Read { offset: 0, length });
    let (short, short_cookie) = memory.table.begin(Kind::Plain);
    let content: Vec<u8> = (0..length).map(|it| it as u8).collect();
    let mut reply = memory.chunk(cookie, ChunkType::OFFSET_DATA, true, &data(0, &content));
    reply.extend(memory.chunk(short_cookie, ChunkType::NONE, true, b""));
    let (start, rest) = reply.split_at(100);
    assert_eq!(memory.feed(short, &mut [], start, 1000).unwrap(), Step::Own(long));
    let mut buf = vec![0; length as usize];
    let at = 100 - 28;
    let left = length as usize - at;
    let step = memory.decoder.step(&mut memory.table, long, &mut buf).unwrap();
    assert_eq!(step, Step::Direct { at, left });
    // A part of it past the buffer, and the rest with what follows.
    let direct = left - 5000;
    buf[at..at + direct].copy_from_slice(&rest[..direct]);
    memory.decoder.received(direct, &mut memory.table).unwrap();
    memory.feed(long, &mut buf, &rest[direct..], 10_000).unwrap();
    assert!(memory.table.is_done(long) && memory.table.is_done(short));
    assert!(memory.table.take(long).unwrap().data.is_empty());
    assert_eq!(buf, content);
}

#[test]
fn a_reply_that_nobody_waits_for_is_dropped_and_its_slot_used_again() {
    for kind in [READ, Kind::Read { offset: 0, length: KEPT + 1 }, STATUS, Kind::Plain] {
        let mut memory = Memory::new(Form::Structured);
        let (own, own_cookie) = memory.table.begin(Kind::Plain);
        let (gone, cookie) = memory.table.begin(kind);
        memory.table.abandon(gone);
        let mut status = Vec::new();
        BlockStatus::encode(&mut status, 7, &[BlockDescriptor { length: 1, flags: 0 }]);
        let (first, payload) = match kind {
            Kind::Read { offset, length } => {
                (ChunkType::OFFSET_DATA, data(offset, &vec![1; length as usize]))
            }
            Kind::Status { .. } => (ChunkType::BLOCK_STATUS, status),
            Kind::Plain => (ChunkType::NONE, Vec::new()),
        };
        let mut bytes = memory.chunk(cookie, first, true, &payload);
        bytes.extend(memory.chunk(own_cookie, ChunkType::NONE, true, b""));
        memory.feed(own, &mut [], &bytes, 1000).unwrap();
        assert!(memory.table.is_done(own));
        let (again, new_cookie) = memory.table.begin(Kind::Plain);
        assert_eq!(again, gone);
        assert_ne!(new_cookie, cookie);
        assert!(memory.table.find(cookie).is_err(), "a late reply is for no request");
    }
}

#[test]
fn errors_come_with_their_text_and_offset() {
    let mut text = Vec::new();
    ErrorChunk::encode(&mut text, 5, "bad\nsector");
    let mut placed = Vec::new();
    ErrorChunk::encode_at_offset(&mut placed, 12, "no", 1003);
    let mut unknown = Vec::new();
    ErrorChunk::encode(&mut unknown, 9999, "");
    unknown.extend(b"later fields");
    let mut declined = Vec::new();
    ErrorChunk::encode(&mut declined, 95, "slow");
    for (chunk, payload, errno, message) in [
        (ChunkType::ERROR, text, Errno::EIO, "the NBD server replied NBD_EIO: bad\\nsector"),
        (
            ChunkType::ERROR_OFFSET,
            placed,
            Errno::ENOMEM,
            "the NBD server replied NBD_ENOMEM at offset 1003: no",
        ),
        (ChunkType(0x8abc), unknown, Errno::EINVAL, "the NBD server replied error 9999"),
        (ChunkType::ERROR, declined, Errno::EOPNOTSUPP, ""),
    ] {
        for form in [Form::Structured, Form::Extended] {
            let mut memory = Memory::new(form);
            let result = memory.answer(READ, |memory, cookie| {
                let mut bytes =
                    memory.chunk(cookie, ChunkType::OFFSET_DATA, false, &data(1000, b"a"));
                bytes.extend(memory.chunk(cookie, chunk, false, &payload));
                bytes.extend(memory.chunk(cookie, ChunkType::NONE, true, b""));
                bytes
            });
            let why = result.unwrap_err();
            assert_eq!((why.errno(), why.message()), (errno, message));
        }
    }
}

/// A case: what it is, the kind of request, and the reply.
type Lie = (&'static str, Kind, fn(&Memory, u64) -> Vec<u8>);

#[test]
fn what_a_correct_server_never_sends_ends_the_connection() {
    const NONE: ChunkType = ChunkType::NONE;
    const DATA: ChunkType = ChunkType::OFFSET_DATA;
    const HOLE: ChunkType = ChunkType::OFFSET_HOLE;
    const LIES: &[Lie] = &[
        ("cookie of no slot", READ, |m, _| m.chunk(99, NONE, true, b"")),
        ("cookie of an earlier request", READ, |m, it| m.chunk(it - (1 << 32), NONE, true, b"")),
        ("bad magic", READ, |_, _| vec![0; 40]),
        ("a read without data", READ, |m, it| m.chunk(it, NONE, true, b"")),
        ("none with data", Kind::Plain, |m, it| m.chunk(it, NONE, true, b"x")),
        ("none that is not the last", Kind::Plain, |m, it| m.chunk(it, NONE, false, b"")),
        ("a part of a read", READ, |m, it| m.chunk(it, DATA, true, &data(1000, b"abc"))),
        ("data in front", READ, |m, it| m.chunk(it, DATA, true, &data(999, b"12345678"))),
        ("data behind", READ, |m, it| m.chunk(it, DATA, true, &data(1001, b"12345678"))),
        ("data elsewhere", READ, |m, it| m.chunk(it, DATA, true, &data(u64::MAX, b"1"))),
        ("no data", READ, |m, it| m.chunk(it, DATA, true, &data(1000, b""))),
        ("half an offset", READ, |m, it| m.chunk(it, DATA, true, b"1234")),
        ("a hole behind", READ, |m, it| m.chunk(it, HOLE, true, &hole(1000, 9))),
        ("a hole of 4 GiB", READ, |m, it| m.chunk(it, HOLE, true, &hole(1000, u32::MAX))),
        ("an empty hole", READ, |m, it| m.chunk(it, HOLE, true, &hole(1000, 0))),
        ("a long hole chunk", READ, |m, it| m.chunk(it, HOLE, true, &[0; 13])),
        ("bytes twice", READ, |m, it| {
            let first = m.chunk(it, DATA, false, &data(1000, b"12345678"));
            [first, m.chunk(it, HOLE, true, &hole(1000, 1))].concat()
        }),
        ("data for a write", Kind::Plain, |m, it| m.chunk(it, DATA, true, &data(0, b"1"))),
        ("data for a status", STATUS, |m, it| m.chunk(it, DATA, true, &data(0, b"1"))),
        ("a status without extents", STATUS, |m, it| m.chunk(it, NONE, true, b"")),
        ("extents for a read", READ, |m, it| status(m, it, &[(7, 1, 0)])),
        ("another context", STATUS, |m, it| status(m, it, &[(8, 1, 0)])),
        ("a context twice", STATUS, |m, it| status(m, it, &[(7, 1, 0), (7, 1, 0)])),
        ("an empty extent", STATUS, |m, it| status(m, it, &[(7, 0, 0)])),
        ("half an extent", STATUS, |m, it| {
            m.chunk(it, status_type(m), true, &[0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])
        }),
        ("an unknown chunk", READ, |m, it| m.chunk(it, ChunkType(0x7abc), true, b"")),
        ("an error that is none", READ, |m, it| m.chunk(it, ChunkType::ERROR, true, &[0; 6])),
        ("an error with too long a text", READ, |m, it| {
            m.chunk(it, ChunkType::ERROR, true, &[0, 0, 0, 5, 0, 9])
        }),
        ("an endless error", READ, |m, it| {
            m.chunk(it, ChunkType::ERROR, true, &vec![1; 70 * 1024])
        }),
    ];
    for form in [Form::Structured, Form::Extended] {
        for (name, kind, lie) in LIES {
            let mut memory = Memory::new(form);
            let (_, _) = memory.table.begin(Kind::Plain);
            // The slot of the request that is asked about has been used before.
            let (used, _) = memory.table.begin(Kind::Plain);
            memory.table.release(used);
            let why = memory.answer(*kind, lie).unwrap_err();
            let message = why.message();
            assert!(
                message.starts_with("the NBD server violates the protocol"),
                "{name}: {message}"
            );
        }
    }
}

fn status_type(memory: &Memory) -> ChunkType {
    if memory.form == Form::Extended {
        ChunkType::BLOCK_STATUS_EXT
    } else {
        ChunkType::BLOCK_STATUS
    }
}

/// Block status chunks with one extent each: context, length, flags. The last ends the reply.
fn status(memory: &Memory, cookie: u64, chunks: &[(u32, u32, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, (context, length, flags)) in chunks.iter().enumerate() {
        let mut payload = context.to_be_bytes().to_vec();
        match memory.form {
            Form::Extended => {
                payload.extend([0, 0, 0, 1]);
                payload.extend(u64::from(*length).to_be_bytes());
                payload.extend(u64::from(*flags).to_be_bytes());
            }
            _ => {
                payload.extend(length.to_be_bytes());
                payload.extend(flags.to_be_bytes());
            }
        }
        let last = number + 1 == chunks.len();
        bytes.extend(memory.chunk(cookie, status_type(memory), last, &payload));
    }
    bytes
}

#[test]
fn the_form_of_replies_is_the_one_that_was_negotiated() {
    let chunked = Memory::new(Form::Structured);
    let extended = Memory::new(Form::Extended);
    for (form, other) in [
        (Form::Simple, &chunked),
        (Form::Simple, &extended),
        (Form::Structured, &extended),
        (Form::Extended, &chunked),
    ] {
        let mut memory = Memory::new(form);
        assert!(
            memory
                .answer(Kind::Plain, |_, it| other.chunk(it, ChunkType::NONE, true, b""))
                .is_err()
        );
    }
    let simple = |_: &Memory, cookie| SimpleReply { error: 0, cookie }.encode().to_vec();
    assert!(Memory::new(Form::Structured).answer(Kind::Plain, simple).is_ok());
    assert!(Memory::new(Form::Structured).answer(READ, simple).is_err());
    assert!(Memory::new(Form::Extended).answer(Kind::Plain, simple).is_err());
}

#[test]
fn more_extents_than_are_kept_are_read_past() {
    let mut memory = Memory::new(Form::Structured);
    let (index, cookie) = memory.table.begin(STATUS);
    let runs = vec![BlockDescriptor { length: 512, flags: 0 }; MAX_EXTENTS + 5];
    let mut payload = Vec::new();
    BlockStatus::encode(&mut payload, 7, &runs);
    let bytes = memory.chunk(cookie, ChunkType::BLOCK_STATUS, true, &payload);
    memory.feed(index, &mut [], &bytes, 1001).unwrap();
    assert_eq!(memory.table.take(index).unwrap().extents.len(), MAX_EXTENTS);
}
