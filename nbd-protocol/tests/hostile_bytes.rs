//! Every decoder against pseudo-random and mutated bytes: none panics, and what decodes encodes to the same bytes.

#![expect(clippy::unwrap_used, reason = "a failed conversion here is a failed test")]

use nbd_protocol::constants::{ChunkType, Command, CommandFlags, HandshakeFlags, InfoType};
use nbd_protocol::handshake::{
    ExportNameReply, Greeting, Info, InfoRequest, MetaContextReply, MetaContextRequest,
    OptionHeader, OptionReplyHeader, ServerReply, decode_export_name, error_message,
};
use nbd_protocol::transmission::{
    BlockDescriptor, BlockDescriptorExt, BlockStatus, BlockStatusExt, BlockStatusPayload,
    DataChunk, ErrorChunk, ExtendedReplyChunk, HoleChunk, Request, SimpleReply,
    StructuredReplyChunk,
};

/// xorshift64*: reproducible, and good enough to reach every branch here.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[7]).collect()
    }

    /// Bytes whose numbers are mostly small, so that announced lengths often come true.
    fn plausible_bytes(&mut self) -> Vec<u8> {
        let length = self.below(64);
        (0..length).map(|_| if self.below(3) == 0 { self.below(12) } else { 0 } as u8).collect()
    }
}

/// Decodes with every decoder of variable-length payloads; a success must encode to the same bytes.
fn round_trip(bytes: &[u8]) -> usize {
    let mut accepted = 0;
    let mut check = |encoded: Vec<u8>| {
        assert_eq!(encoded, bytes);
        accepted += 1;
    };
    let mut buf = Vec::new();
    if let Ok(name) = decode_export_name(bytes) {
        check(name.as_bytes().to_vec());
    }
    if let Ok(message) = error_message(bytes) {
        check(message.as_bytes().to_vec());
    }
    if let Ok(request) = InfoRequest::decode(bytes) {
        let infos: Vec<InfoType> = request.infos.collect();
        InfoRequest::encode(&mut buf, request.name, &infos);
        check(std::mem::take(&mut buf));
    }
    if let Ok(info) = Info::decode(bytes) {
        info.encode(&mut buf);
        check(std::mem::take(&mut buf));
    }
    if let Ok(request) = MetaContextRequest::decode(bytes) {
        let count = request.queries.len();
        let queries: Vec<&[u8]> = request.queries.collect();
        assert_eq!(queries.len(), count);
        if let Ok(queries) =
            queries.into_iter().map(std::str::from_utf8).collect::<Result<Vec<_>, _>>()
        {
            MetaContextRequest::encode(&mut buf, request.export, &queries);
            check(std::mem::take(&mut buf));
        }
    }
    if let Ok(reply) = MetaContextReply::decode(bytes) {
        reply.encode(&mut buf);
        check(std::mem::take(&mut buf));
    }
    if let Ok(reply) = ServerReply::decode(bytes) {
        reply.encode(&mut buf);
        check(std::mem::take(&mut buf));
    }
    if let Ok(chunk) = DataChunk::decode(bytes) {
        check([&DataChunk::encode_prefix(chunk.offset), chunk.data].concat());
    }
    if let Ok(hole) = HoleChunk::decode(bytes) {
        check(hole.encode().to_vec());
    }
    for decoded in [ErrorChunk::decode(bytes), ErrorChunk::decode_at_offset(bytes)] {
        let Ok(error) = decoded else { continue };
        let Ok(message) = std::str::from_utf8(error.message) else { continue };
        match error.offset {
            None => ErrorChunk::encode(&mut buf, error.error, message),
            Some(offset) => ErrorChunk::encode_at_offset(&mut buf, error.error, message, offset),
        }
        check(std::mem::take(&mut buf));
    }
    let _ = ErrorChunk::decode_unknown(bytes);
    if let Ok(status) = BlockStatus::decode(bytes) {
        let runs: Vec<BlockDescriptor> = status.descriptors.collect();
        BlockStatus::encode(&mut buf, status.context, &runs);
        check(std::mem::take(&mut buf));
    }
    if let Ok(status) = BlockStatusExt::decode(bytes) {
        let runs: Vec<BlockDescriptorExt> = status.descriptors.collect();
        BlockStatusExt::encode(&mut buf, status.context, &runs);
        check(std::mem::take(&mut buf));
    }
    if let Ok(payload) = BlockStatusPayload::decode(bytes) {
        let ids: Vec<u32> = payload.ids.collect();
        BlockStatusPayload::encode(&mut buf, payload.effect_length, &ids);
        check(std::mem::take(&mut buf));
    }
    accepted
}

/// Decodes with every decoder of fixed-size headers, with and without the right magic in front.
fn headers(random: &mut Random) {
    fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes[..N].try_into().unwrap()
    }
    let mut bytes = random.bytes(152);
    if let Ok(header) = OptionHeader::decode(&array(&bytes)) {
        assert_eq!(header.encode(), bytes[..16]);
    }
    for magic in [
        &b"\x25\x60\x95\x13"[..],
        b"\x21\xe4\x1c\x71",
        b"\x67\x44\x66\x98",
        b"\x66\x8e\x33\xef",
        b"\x6e\x8a\x27\x8c",
    ] {
        bytes[..4].copy_from_slice(magic);
        let mut accepted = 0;
        if let Ok(request) = Request::decode(&array(&bytes)) {
            assert_eq!(request.encode(), bytes[..28]);
            accepted += 1;
        }
        if let Ok(request) = Request::decode_extended(&array(&bytes)) {
            assert_eq!(request.encode_extended(), bytes[..32]);
            accepted += 1;
        }
        if let Ok(reply) = SimpleReply::decode(&array(&bytes)) {
            assert_eq!(reply.encode(), bytes[..16]);
            accepted += 1;
        }
        if let Ok(chunk) = StructuredReplyChunk::decode(&array(&bytes)) {
            assert_eq!(chunk.encode(), bytes[..20]);
            accepted += 1;
        }
        if let Ok(chunk) = ExtendedReplyChunk::decode(&array(&bytes)) {
            assert_eq!(chunk.encode(), bytes[..32]);
            accepted += 1;
        }
        assert_eq!(accepted, 1, "each magic belongs to one structure");
    }
    bytes[..8].copy_from_slice(b"IHAVEOPT");
    assert_eq!(OptionHeader::decode(&array(&bytes)).unwrap().encode(), bytes[..16]);
    bytes[..8].copy_from_slice(b"\x00\x03\xe8\x89\x04\x55\x65\xa9");
    assert_eq!(OptionReplyHeader::decode(&array(&bytes)).unwrap().encode(), bytes[..20]);
    let reply = ExportNameReply::decode(&array(&bytes));
    let mut encoded = Vec::new();
    reply.encode(&mut encoded, true);
    assert_eq!(encoded, bytes[..10]);
    let _ = Greeting::decode_oldstyle(&array(&bytes));
    bytes[..16].copy_from_slice(b"NBDMAGICIHAVEOPT");
    let Ok(Greeting::Newstyle { flags }) = Greeting::decode_newstyle(&array(&bytes)) else {
        panic!("a newstyle greeting has no illegal flags");
    };
    assert_eq!(Greeting::encode_newstyle(flags), bytes[..18]);
    assert_eq!(HandshakeFlags::from_bits_retain(flags.bits()), flags);
}

#[test]
fn random_bytes_never_panic_and_what_decodes_encodes_back() {
    let mut random = Random(0x6e62_646b_6974_6421);
    let mut accepted = 0;
    for _ in 0..100_000 {
        let length = random.below(64);
        accepted += round_trip(&random.bytes(length));
        accepted += round_trip(&random.plausible_bytes());
    }
    assert!(accepted > 10_000, "the generator reaches the decoders' good paths: {accepted}");
}

#[test]
fn random_headers_never_panic_and_what_decodes_encodes_back() {
    let mut random = Random(0x2560_9513);
    for _ in 0..10_000 {
        headers(&mut random);
    }
}

#[test]
fn damaged_messages_never_panic() {
    let mut random = Random(7);
    let mut good: Vec<Vec<u8>> = Vec::new();
    let mut add = |encode: &dyn Fn(&mut Vec<u8>)| {
        let mut buf = Vec::new();
        encode(&mut buf);
        good.push(buf);
    };
    add(&|buf| InfoRequest::encode(buf, "an export", &[InfoType::NAME, InfoType::BLOCK_SIZE]));
    add(&|buf| MetaContextRequest::encode(buf, "export", &["base:allocation", "x-a:b", ""]));
    add(&|buf| ServerReply { name: "name", description: "text" }.encode(buf));
    add(&|buf| ErrorChunk::encode_at_offset(buf, 5, "message", 4096));
    add(&|buf| BlockStatus::encode(buf, 1, &[BlockDescriptor { length: 1, flags: 0 }; 3]));
    add(&|buf| BlockStatusExt::encode(buf, 1, &[BlockDescriptorExt { length: 1, flags: 0 }; 3]));
    add(&|buf| BlockStatusPayload::encode(buf, 1, &[1, 2, 3]));
    for message in &good {
        assert!(round_trip(message) > 0);
        for _ in 0..5_000 {
            let mut damaged = message.clone();
            for _ in 0..=random.below(3) {
                match random.below(3) {
                    0 => damaged.truncate(random.below(damaged.len() + 1)),
                    1 => damaged.push(random.below(256) as u8),
                    _ if damaged.is_empty() => {}
                    _ => {
                        let at = random.below(damaged.len());
                        damaged[at] = random.below(256) as u8;
                    }
                }
            }
            round_trip(&damaged);
        }
    }
}

#[test]
fn names_of_every_value_can_be_printed() {
    for number in 0..=u16::MAX {
        assert!(!Command(number).to_string().is_empty());
        assert!(!ChunkType(number).to_string().is_empty());
        assert_eq!(CommandFlags::from_bits_retain(number).bits(), number);
    }
}
