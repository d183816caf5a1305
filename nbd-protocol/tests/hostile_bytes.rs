//! Every decoder against pseudo-random and mutated bytes: none panics, and what is decoded encodes
//! to the same bytes.

#![expect(clippy::unwrap_used, reason = "a failed conversion here is a failed test")]

mod decoders;

use nbd_protocol::constants::{ChunkType, Command, CommandFlags, InfoType};
use nbd_protocol::handshake::{InfoRequest, MetaContextRequest, ServerReply};
use nbd_protocol::transmission::{
    BlockDescriptor, BlockDescriptorExt, BlockStatus, BlockStatusExt, BlockStatusPayload,
    ErrorChunk,
};

use decoders::{headers, round_trip};

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

    /// Bytes whose numbers are mostly small, so that length fields often match the payload.
    fn plausible_bytes(&mut self) -> Vec<u8> {
        let length = self.below(64);
        (0..length).map(|_| if self.below(3) == 0 { self.below(12) } else { 0 } as u8).collect()
    }
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
        headers(random.bytes(152).try_into().unwrap());
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
