//! Good handshakes and replies of the server that the nbd plugin is a client of.

use nbd_protocol::constants::{
    BASE_ALLOCATION, ChunkType, HandshakeFlags, Opt, Rep, ReplyFlags, TransmissionFlags,
};
use nbd_protocol::handshake::{
    BlockSizes, ExportNameReply, Greeting, Info, MetaContextReply, ServerReply,
    encode_option_error, encode_option_reply,
};
use nbd_protocol::transmission::{
    BlockDescriptor, BlockDescriptorExt, BlockStatus, BlockStatusExt, ErrorChunk,
    ExtendedReplyChunk, HoleChunk, SimpleReply, StructuredReplyChunk,
};

/// Everything, for the target `nbd_upstream`.
pub(crate) fn upstream() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for purpose in [0, 3, 6] {
        for bytes in [newstyle(), fallback(), list(), oldstyle()] {
            all.push([&[0, purpose], &bytes[..]].concat());
        }
    }
    // The form of the replies, and pieces of 1, 7, 100 bytes and of any length.
    for pieces in [0, 3, 9] {
        all.push([&[1, pieces], &simple()[..]].concat());
        all.push([&[1, pieces + 1], &chunks(false)[..]].concat());
        all.push([&[1, pieces + 2], &chunks(true)[..]].concat());
    }
    for uri in [
        "nbd://eve@[::1]:10809/a%20b?tls-hostname=h&tls-verify-peer=0",
        "nbds+unix:///x?socket=%2ftmp/s&tls-certificates=/pki;tls-psk-file=/k#x",
        "nbd+vsock://2:10809//x?x-y=1",
    ] {
        all.push([b"\x02", uri.as_bytes()].concat());
    }
    all
}

const FLAGS: TransmissionFlags = TransmissionFlags::HAS_FLAGS.union(TransmissionFlags::SEND_TRIM);

fn ack(bytes: &mut Vec<u8>, option: Opt) {
    encode_option_reply(bytes, option, Rep::ACK, b"");
}

fn newstyle() -> Vec<u8> {
    let mut bytes = Greeting::encode_newstyle(HandshakeFlags::all()).to_vec();
    ack(&mut bytes, Opt::EXTENDED_HEADERS);
    let mut context = Vec::new();
    MetaContextReply { id: 1, name: BASE_ALLOCATION }.encode(&mut context);
    encode_option_reply(&mut bytes, Opt::SET_META_CONTEXT, Rep::META_CONTEXT, &context);
    ack(&mut bytes, Opt::SET_META_CONTEXT);
    let block_sizes = BlockSizes { minimum: 1, preferred: 4096, maximum: 1 << 25 };
    for info in [
        Info::Export { size: 1 << 20, flags: FLAGS },
        Info::Name("disk"),
        Info::Description("a disk"),
        Info::BlockSize(block_sizes),
    ] {
        let mut payload = Vec::new();
        info.encode(&mut payload);
        encode_option_reply(&mut bytes, Opt::GO, Rep::INFO, &payload);
    }
    ack(&mut bytes, Opt::GO);
    bytes
}

fn fallback() -> Vec<u8> {
    let mut bytes = Greeting::encode_newstyle(HandshakeFlags::FIXED_NEWSTYLE).to_vec();
    for option in [Opt::EXTENDED_HEADERS, Opt::STRUCTURED_REPLY, Opt::GO] {
        encode_option_error(&mut bytes, option, Rep::ERR_UNSUP, "no");
    }
    ExportNameReply { size: 1 << 20, flags: FLAGS }.encode(&mut bytes, false);
    bytes
}

fn list() -> Vec<u8> {
    let mut bytes = Greeting::encode_newstyle(HandshakeFlags::all()).to_vec();
    for name in ["a", "b"] {
        let mut payload = Vec::new();
        ServerReply { name, description: "text" }.encode(&mut payload);
        encode_option_reply(&mut bytes, Opt::LIST, Rep::SERVER, &payload);
    }
    ack(&mut bytes, Opt::LIST);
    bytes
}

fn oldstyle() -> Vec<u8> {
    Greeting::encode_oldstyle(1 << 20, FLAGS).to_vec()
}

/// The cookie of the first request in a slot.
fn cookie(slot: u64) -> u64 {
    1 << 32 | slot
}

fn simple() -> Vec<u8> {
    let ok = |slot| SimpleReply { error: 0, cookie: cookie(slot) }.encode().to_vec();
    let failed = SimpleReply { error: 5, cookie: cookie(2) }.encode().to_vec();
    [ok(1), vec![7; 64], ok(0), failed, ok(5)].concat()
}

/// Each request has a reply, the reads one of several chunks.
fn chunks(extended: bool) -> Vec<u8> {
    let chunk = |slot, chunk_type, last, payload: &[u8]| {
        let flags = if last { ReplyFlags::DONE } else { ReplyFlags::empty() };
        let cookie = cookie(slot);
        let header = if extended {
            let length = payload.len() as u64;
            ExtendedReplyChunk { flags, chunk_type, cookie, offset: 0x1000, length }
                .encode()
                .to_vec()
        } else {
            let length = payload.len() as u32;
            StructuredReplyChunk { flags, chunk_type, cookie, length }.encode().to_vec()
        };
        [&header, payload].concat()
    };
    let data = |offset: u64, count: usize| [&offset.to_be_bytes()[..], &vec![9; count]].concat();
    let hole = |offset, length| HoleChunk { offset, length }.encode();
    let mut extents = Vec::new();
    let status = if extended {
        let runs = [BlockDescriptorExt { length: 1 << 40, flags: 3 }];
        BlockStatusExt::encode(&mut extents, 1, &runs);
        ChunkType::BLOCK_STATUS_EXT
    } else {
        BlockStatus::encode(&mut extents, 1, &[BlockDescriptor { length: 512, flags: 3 }]);
        ChunkType::BLOCK_STATUS
    };
    let mut error = Vec::new();
    ErrorChunk::encode_at_offset(&mut error, 5, "bad sector", 0x1000);
    [
        chunk(1, ChunkType::OFFSET_DATA, false, &data(0x1020, 32)),
        chunk(3, status, true, &extents),
        chunk(1, ChunkType::OFFSET_HOLE, true, &hole(0x1000, 32)),
        chunk(2, ChunkType::OFFSET_HOLE, false, &hole(0x1000, 32 * 1024)),
        chunk(2, ChunkType::OFFSET_DATA, true, &data(0x9000, 64)),
        chunk(4, ChunkType::OFFSET_DATA, false, &data(0x1000, 10)),
        chunk(4, ChunkType::ERROR_OFFSET, true, &error),
        chunk(0, ChunkType::NONE, true, b""),
        chunk(5, ChunkType::NONE, true, b""),
        // One that no thread waits for.
        chunk(6, ChunkType::OFFSET_HOLE, false, &hole(0x1000, 32 * 1024 + 64 - 20_000)),
        chunk(6, ChunkType::OFFSET_DATA, true, &data(0x9040 - 20_000, 20_000)),
    ]
    .concat()
}
