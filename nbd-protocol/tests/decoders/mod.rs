//! Every decoder, and the invariants of its results for any bytes. The fuzz targets use it too.

use nbd_protocol::constants::{HandshakeFlags, InfoType};
use nbd_protocol::handshake::{
    ExportNameReply, Greeting, Info, InfoRequest, MetaContextReply, MetaContextRequest,
    OptionHeader, OptionReplyHeader, ServerReply, decode_export_name, error_message,
};
use nbd_protocol::transmission::{
    BlockDescriptor, BlockDescriptorExt, BlockStatus, BlockStatusExt, BlockStatusPayload,
    DataChunk, ErrorChunk, ExtendedReplyChunk, HoleChunk, Request, SimpleReply,
    StructuredReplyChunk,
};

/// Decodes with every decoder of variable-length payloads; a success must encode to the same bytes.
pub(crate) fn round_trip(bytes: &[u8]) -> usize {
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
pub(crate) fn headers(mut bytes: [u8; 152]) {
    fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes[..N].try_into().unwrap()
    }
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
