//! `NBD_CMD_BLOCK_STATUS`: which parts of a range are holes or zeroes.

#![forbid(unsafe_code)]

use nbd_protocol::constants::{ChunkType, CommandFlags, MAX_DESCRIPTOR_LENGTH};
use nbd_protocol::transmission::{
    BlockDescriptor, BlockDescriptorExt, BlockStatus, BlockStatusExt, BlockStatusPayload, Request,
};
use nbdkit_api::{Errno, Error, Extents, Flags, Result};

use super::super::options::BASE_ALLOCATION_ID;
use super::super::reply::Replies;
use super::Target;

impl Target<'_> {
    /// `NBD_CMD_BLOCK_STATUS`: asks the backend for extents and appends them as descriptors.
    pub(super) fn block_status(
        &self,
        request: &Request,
        flags: Flags,
        payload: &[u8],
        replies: &mut Replies,
    ) -> Result<()> {
        let offset = request.offset;
        let mut count = request.length;
        if request.flags.contains(CommandFlags::PAYLOAD_LEN) {
            // The header has the payload's length; the length of the range is in the payload.
            let filter = BlockStatusPayload::decode(payload).map_err(|malformed| {
                Error::new(Errno::EINVAL, format!("invalid request: {malformed}"))
            })?;
            count = filter.effect_length;
            if count == 0 || offset > self.size || count > self.size - offset {
                return Err(Error::new(
                    Errno::EINVAL,
                    "invalid request: offset and count are out of range",
                ));
            }
            if !filter.ids.clone().eq([BASE_ALLOCATION_ID]) {
                let what = "invalid request: unknown or repeated meta context id";
                return Err(Error::new(Errno::EINVAL, what));
            }
        }
        let mut extents = Extents::new(offset, self.size);
        self.backend.extents(count, offset, flags, &mut extents)?;
        let mut payload = Vec::new();
        let kind = if self.features.extended {
            let list = descriptors(&extents, count, flags, u64::MAX, |length, flags| {
                BlockDescriptorExt { length, flags: flags.into() }
            });
            BlockStatusExt::encode(&mut payload, BASE_ALLOCATION_ID, &list);
            ChunkType::BLOCK_STATUS_EXT
        } else {
            let list = descriptors(
                &extents,
                count,
                flags,
                MAX_DESCRIPTOR_LENGTH.into(),
                |length, flags| {
                    // At most MAX_DESCRIPTOR_LENGTH, so it fits.
                    BlockDescriptor { length: length as u32, flags }
                },
            );
            BlockStatus::encode(&mut payload, BASE_ALLOCATION_ID, &list);
            ChunkType::BLOCK_STATUS
        };
        replies.chunk(request, self.features, kind, &payload);
        Ok(())
    }
}

/// The descriptors of a block status reply: at least one, and none that begins beyond the range.
/// Only the last may end beyond it, with REQ_ONE not even the last. No descriptor follows one that
/// was cut to `longest` bytes.
fn descriptors<D>(
    extents: &Extents,
    count: u64,
    flags: Flags,
    longest: u64,
    descriptor: impl Fn(u64, u32) -> D,
) -> Vec<D> {
    let end = extents.start().saturating_add(count);
    let one = flags.contains(Flags::REQ_ONE);
    let mut list = Vec::new();
    for extent in extents.iter() {
        if extent.offset >= end {
            break;
        }
        let wanted = if one { extent.length.min(count) } else { extent.length };
        list.push(descriptor(wanted.min(longest), extent.kind.bits()));
        if one || wanted > longest {
            break;
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdkit_api::ExtentKind;

    fn extents(lengths: &[(u64, ExtentKind)]) -> Extents {
        let mut extents = Extents::new(0, u64::MAX);
        let mut at = 0;
        for (length, kind) in lengths {
            extents.add(at, *length, *kind).unwrap();
            at += length;
        }
        extents
    }

    fn list(extents: &Extents, count: u64, flags: Flags) -> Vec<(u64, u32)> {
        descriptors(extents, count, flags, MAX_DESCRIPTOR_LENGTH.into(), |length, flags| {
            (length, flags)
        })
    }

    #[test]
    fn only_the_last_descriptor_reaches_beyond_the_range() {
        let extents =
            extents(&[(100, ExtentKind::DATA), (1000, ExtentKind::SPARSE), (50, ExtentKind::DATA)]);
        assert_eq!(list(&extents, 200, Flags::empty()), [(100, 0), (1000, 3)]);
        assert_eq!(list(&extents, 100, Flags::empty()), [(100, 0)]);
        assert_eq!(list(&extents, 50, Flags::REQ_ONE), [(50, 0)]);
    }

    /// CVE-2025-47711: a request for 2^32 - 1 bytes over an extent at least as long.
    #[test]
    fn an_extent_of_4_gib_and_more_yields_one_cut_descriptor() {
        for length in [(1 << 32) - 1, 1 << 32, (1 << 32) + 1, 1 << 40] {
            let extents = extents(&[(length, ExtentKind::DATA), (1 << 20, ExtentKind::SPARSE)]);
            let got = list(&extents, (1 << 32) - 1, Flags::empty());
            assert_eq!(got, [(u64::from(MAX_DESCRIPTOR_LENGTH), 0)], "{length}");
        }
    }
}
