//! Payloads of block status chunks, with 32-bit and with 64-bit descriptors.

use crate::Malformed;
use crate::wire::{Reader, put_length};

/// A run of bytes with one status: 8 bytes on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockDescriptor {
    /// Bytes of the export; at least one.
    pub length: u32,
    /// Their status in the metadata context.
    pub flags: u32,
}

/// A run of bytes with one status: 16 bytes on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockDescriptorExt {
    /// Bytes of the export; at least one.
    pub length: u64,
    /// Their status in the metadata context.
    pub flags: u64,
}

/// `NBD_REPLY_TYPE_BLOCK_STATUS`: 32 bits of context id, then one or more descriptors of
/// consecutive bytes, the first at the request's offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockStatus<'a> {
    /// The metadata context.
    pub context: u32,
    /// The descriptors.
    pub descriptors: Descriptors<'a>,
}

impl<'a> BlockStatus<'a> {
    /// Bytes of a payload with this many descriptors.
    #[must_use]
    pub fn encoded_length(descriptors: usize) -> usize {
        4 + 8 * descriptors
    }

    /// Appends a payload. The protocol requires at least one descriptor, and no length of zero.
    pub fn encode(buf: &mut Vec<u8>, context: u32, descriptors: &[BlockDescriptor]) {
        buf.extend_from_slice(&context.to_be_bytes());
        for descriptor in descriptors {
            buf.extend_from_slice(&descriptor.length.to_be_bytes());
            buf.extend_from_slice(&descriptor.flags.to_be_bytes());
        }
    }

    /// Decodes a payload, for clients.
    ///
    /// # Errors
    /// [`Malformed`] if there is no descriptor, a truncated one, or an empty one.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("block status", payload);
        let context = reader.u32()?;
        let descriptors = Descriptors { bytes: reader.rest() };
        check_count("block status", descriptors.bytes.len(), 8)?;
        check_lengths(descriptors.clone().map(|descriptor| u64::from(descriptor.length)))?;
        Ok(BlockStatus { context, descriptors })
    }
}

/// `NBD_REPLY_TYPE_BLOCK_STATUS_EXT`: 32 bits of context id, 32 bits of count, then that many
/// descriptors, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockStatusExt<'a> {
    /// The metadata context.
    pub context: u32,
    /// The descriptors.
    pub descriptors: DescriptorsExt<'a>,
}

impl<'a> BlockStatusExt<'a> {
    /// Bytes of a payload with this many descriptors.
    #[must_use]
    pub fn encoded_length(descriptors: usize) -> usize {
        8 + 16 * descriptors
    }

    /// Appends a payload. The protocol requires at least one descriptor, and no length of zero.
    pub fn encode(buf: &mut Vec<u8>, context: u32, descriptors: &[BlockDescriptorExt]) {
        buf.extend_from_slice(&context.to_be_bytes());
        put_length(buf, descriptors.len());
        for descriptor in descriptors {
            buf.extend_from_slice(&descriptor.length.to_be_bytes());
            buf.extend_from_slice(&descriptor.flags.to_be_bytes());
        }
    }

    /// Decodes a payload, for clients.
    ///
    /// # Errors
    /// [`Malformed`] if there is no descriptor, a truncated one, an empty one, or their number is
    /// not the count.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("extended block status", payload);
        let context = reader.u32()?;
        let count = reader.u32()?;
        let descriptors = DescriptorsExt { bytes: reader.rest() };
        check_count("extended block status", descriptors.bytes.len(), 16)?;
        if usize::try_from(count) != Ok(descriptors.len()) {
            return Err(Malformed::Value {
                what: "extended block status count",
                expected: "the number of descriptors that follow",
                found: u64::from(count),
            });
        }
        check_lengths(descriptors.clone().map(|descriptor| descriptor.length))?;
        Ok(BlockStatusExt { context, descriptors })
    }
}

fn check_count(what: &'static str, bytes: usize, each: usize) -> Result<(), Malformed> {
    if bytes < each {
        return Err(Malformed::Truncated { what, needed: each, available: bytes });
    }
    if !bytes.is_multiple_of(each) {
        return Err(Malformed::Trailing { what, extra: bytes % each });
    }
    Ok(())
}

fn check_lengths(mut lengths: impl Iterator<Item = u64>) -> Result<(), Malformed> {
    if lengths.any(|length| length == 0) {
        return Err(Malformed::Value {
            what: "block descriptor length",
            expected: "a positive number",
            found: 0,
        });
    }
    Ok(())
}

/// The descriptors of a [`BlockStatus`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptors<'a> {
    bytes: &'a [u8],
}

impl Iterator for Descriptors<'_> {
    type Item = BlockDescriptor;

    fn next(&mut self) -> Option<BlockDescriptor> {
        let (length, rest) = self.bytes.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        self.bytes = rest;
        Some(BlockDescriptor {
            length: u32::from_be_bytes(*length),
            flags: u32::from_be_bytes(*flags),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.bytes.len() / 8;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Descriptors<'_> {}

/// The descriptors of a [`BlockStatusExt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescriptorsExt<'a> {
    bytes: &'a [u8],
}

impl Iterator for DescriptorsExt<'_> {
    type Item = BlockDescriptorExt;

    fn next(&mut self) -> Option<BlockDescriptorExt> {
        let (length, rest) = self.bytes.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        self.bytes = rest;
        Some(BlockDescriptorExt {
            length: u64::from_be_bytes(*length),
            flags: u64::from_be_bytes(*flags),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.bytes.len() / 16;
        (left, Some(left))
    }
}

impl ExactSizeIterator for DescriptorsExt<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constants::{STATE_HOLE, STATE_ZERO};

    #[test]
    fn block_status_has_its_golden_bytes() {
        let runs = [
            BlockDescriptor { length: 4096, flags: 0 },
            BlockDescriptor { length: 512, flags: STATE_HOLE | STATE_ZERO },
        ];
        let mut buf = Vec::new();
        BlockStatus::encode(&mut buf, 1, &runs);
        assert_eq!(buf, b"\0\0\0\x01\0\0\x10\0\0\0\0\0\0\0\x02\0\0\0\0\x03");
        assert_eq!(buf.len(), BlockStatus::encoded_length(2));
        let status = BlockStatus::decode(&buf).unwrap();
        assert_eq!((status.context, status.descriptors.len()), (1, 2));
        assert_eq!(status.descriptors.collect::<Vec<_>>(), runs);
    }

    #[test]
    fn extended_block_status_has_its_golden_bytes() {
        let runs = [BlockDescriptorExt { length: 1 << 40, flags: 3 }];
        let mut buf = Vec::new();
        BlockStatusExt::encode(&mut buf, 7, &runs);
        assert_eq!(buf, b"\0\0\0\x07\0\0\0\x01\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\x03");
        assert_eq!(buf.len(), BlockStatusExt::encoded_length(1));
        let status = BlockStatusExt::decode(&buf).unwrap();
        assert_eq!((status.context, status.descriptors.len()), (7, 1));
        assert_eq!(status.descriptors.collect::<Vec<_>>(), runs);
    }

    #[test]
    fn a_block_status_needs_a_whole_descriptor() {
        assert!(matches!(BlockStatus::decode(&[1; 4]), Err(Malformed::Truncated { .. })));
        assert!(matches!(BlockStatus::decode(&[1; 13]), Err(Malformed::Trailing { .. })));
        assert!(matches!(BlockStatusExt::decode(&[1; 8]), Err(Malformed::Truncated { .. })));
        assert!(matches!(BlockStatusExt::decode(&[1; 25]), Err(Malformed::Trailing { .. })));
    }

    #[test]
    fn an_empty_descriptor_is_refused() {
        assert!(matches!(BlockStatus::decode(&[0; 12]), Err(Malformed::Value { found: 0, .. })));
        let mut ext = [0; 24];
        ext[7] = 1;
        assert!(matches!(BlockStatusExt::decode(&ext), Err(Malformed::Value { found: 0, .. })));
    }

    #[test]
    fn the_extended_count_must_be_the_number_of_descriptors() {
        let mut buf = Vec::new();
        BlockStatusExt::encode(&mut buf, 7, &[BlockDescriptorExt { length: 1, flags: 0 }]);
        buf[7] = 2;
        assert!(matches!(BlockStatusExt::decode(&buf), Err(Malformed::Value { found: 2, .. })));
    }
}
