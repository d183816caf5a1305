//! Carrying out one request against the stack and putting its reply together.

#![forbid(unsafe_code)]

use nbd_protocol::constants::{ChunkType, Command, CommandFlags, MAX_DESCRIPTOR_LENGTH};
use nbd_protocol::transmission::{
    BlockDescriptor, BlockDescriptorExt, BlockStatus, BlockStatusExt, BlockStatusPayload, Request,
};
use nbdkit_api::shared::seek_extents;
use nbdkit_api::{Backend, Errno, Error, ExtentKind, Extents, FileRange, Flags, Result, log};

use super::negotiated::Features;
use super::options::BASE_ALLOCATION_ID;
use super::reply::Replies;
use crate::settings::Settings;

/// Reads from this size on are looked through for holes, which are then not sent: below, asking costs
/// more than sending.
const SPARSE_FROM: u64 = 32 * 1024;
/// Holes shorter than this are sent as data, and a read with more pieces than `MAX_PIECES` in one.
const HOLE_FROM: u64 = 4096;
const MAX_PIECES: usize = 64;

/// What a request is carried out against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) backend: &'a Backend,
    pub(crate) settings: &'a Settings,
    pub(crate) features: Features,
    /// Bytes.
    pub(crate) size: u64,
}

impl Target<'_> {
    /// Carries out a checked request; `payload` is a write's data. Appends exactly one reply, of one or more chunks.
    pub(crate) fn execute(
        &self,
        request: &Request,
        flags: Flags,
        payload: &[u8],
        replies: &mut Replies,
    ) {
        let result = self.settings.serialized(|| self.run(request, flags, payload, replies));
        if let Err(error) = result {
            replies.error(request, self.features, &error);
        }
    }

    /// Answers a read if that can be done at once; false if it might wait, and nothing was done.
    pub(crate) fn try_read(&self, request: &Request, replies: &mut Replies) -> bool {
        let at_hand = |range| self.is_at_hand(&range, request);
        if self.may_be_sparse(request) && !self.range(request).is_some_and(at_hand) {
            return false;
        }
        let Request { offset, length, .. } = *request;
        let result = replies.data(request, self.features, true, (offset, length as usize), |buf| {
            self.backend.try_pread(buf, offset)
        });
        if let Some(Err(error)) = &result {
            replies.error(request, self.features, error);
        }
        result.is_some()
    }

    /// Where the bytes of a read stand in a file, if they do and if all of them are to be sent.
    pub(crate) fn file_range(&self, request: &Request) -> Option<FileRange<'_>> {
        if self.has_holes(request) {
            return None;
        }
        self.range(request)
    }

    /// Where the bytes of a read stand in a file, if they do.
    pub(crate) fn range(&self, request: &Request) -> Option<FileRange<'_>> {
        self.backend.file_range(request.length as u32, request.offset)
    }

    /// Whether the bytes of a read, which stand in `range`, are in memory as far as can be told and all to be sent. In this
    /// order: then what tells them from holes is in memory too.
    pub(crate) fn is_at_hand(&self, range: &FileRange<'_>, request: &Request) -> bool {
        range.is_in_memory(request.length as usize) && !self.has_holes(request)
    }

    /// Whether parts of a read are not to be sent.
    fn has_holes(&self, request: &Request) -> bool {
        let Request { offset, length, .. } = *request;
        self.may_be_sparse(request) && self.pieces(offset, length) != [(offset, length, false)]
    }

    fn run(
        &self,
        request: &Request,
        flags: Flags,
        payload: &[u8],
        replies: &mut Replies,
    ) -> Result<()> {
        let Request { command, offset, length, .. } = *request;
        match command {
            Command::READ => return self.read(request, replies),
            Command::BLOCK_STATUS => return self.block_status(request, flags, payload, replies),
            Command::WRITE => self.backend.pwrite(payload, offset, flags)?,
            Command::FLUSH => self.backend.flush()?,
            Command::TRIM => self.backend.trim(length, offset, flags)?,
            Command::WRITE_ZEROES => self.backend.zero(length, offset, flags)?,
            Command::CACHE => self.backend.cache(length, offset)?,
            // The check before us lets nothing else through.
            _ => return Err(Error::silent(Errno::EINVAL)),
        }
        replies.success(request, self.features);
        Ok(())
    }

    /// Whether a read should be looked through for holes: only where its bytes are those of a file, as they stand
    /// there. Any other layer is to see the reads that the client makes.
    fn may_be_sparse(&self, request: &Request) -> bool {
        self.features.structured
            && request.length >= SPARSE_FROM
            && !request.flags.contains(CommandFlags::DF)
            && self.backend.can_extents().unwrap_or(false)
            && self.backend.file_range(request.length as u32, request.offset).is_some()
    }

    fn read(&self, request: &Request, replies: &mut Replies) -> Result<()> {
        let Request { offset, length, .. } = *request;
        let data = |replies: &mut Replies, last, offset, length: u64| {
            replies
                .data(request, self.features, last, (offset, length as usize), |buf| {
                    Some(self.backend.pread(buf, offset))
                })
                .unwrap_or(Ok(()))
        };
        if !self.may_be_sparse(request) {
            return data(replies, true, offset, length);
        }
        // One request, however many pieces it is answered in.
        self.backend.trace_read(length as u32, offset);
        log::without_datapath(|| self.read_pieces(request, replies, data))
    }

    /// Answers a read in pieces of data and holes; `data` appends one of data.
    fn read_pieces(
        &self,
        request: &Request,
        replies: &mut Replies,
        data: impl Fn(&mut Replies, bool, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let pieces = self.pieces(request.offset, request.length);
        for (index, (offset, length, hole)) in pieces.iter().copied().enumerate() {
            let last = index + 1 == pieces.len();
            if hole {
                // A read is at most 64 MiB, so its pieces fit 32 bits.
                replies.hole(request, self.features, last, offset, length as u32);
            } else {
                data(replies, last, offset, length)?;
            }
        }
        Ok(())
    }

    /// Divides a read into data and holes: (offset, length, is a hole), contiguous and complete. If the extents cannot be
    /// had, the read is one piece of data, and any real trouble shows when it is read.
    fn pieces(&self, offset: u64, length: u64) -> Vec<(u64, u64, bool)> {
        let whole = vec![(offset, length, false)];
        // The file itself is asked, not the layers: they have nothing to add, and may look further than into its map.
        let Some(range) = self.backend.file_range(length as u32, offset) else { return whole };
        let mut extents = Extents::new(range.offset, range.offset.saturating_add(length));
        if seek_extents(range.fd, length, range.offset, false, &mut extents).is_err() {
            return whole;
        }
        let mut pieces: Vec<(u64, u64, bool)> = Vec::new();
        let described = extents.iter().map(|extent| {
            (
                extent.offset - range.offset + offset,
                extent.length,
                extent.kind.contains(ExtentKind::ZERO) && extent.length >= HOLE_FROM,
            )
        });
        let covered = extents.covered_to() - range.offset;
        let rest = (offset + covered, length - covered, false);
        for (offset, length, hole) in described.chain([rest]) {
            match pieces.last_mut() {
                _ if length == 0 => {}
                Some(last) if last.2 == hole => last.1 += length,
                _ => pieces.push((offset, length, hole)),
            }
            if pieces.len() > MAX_PIECES {
                return whole;
            }
        }
        pieces
    }

    fn block_status(
        &self,
        request: &Request,
        flags: Flags,
        payload: &[u8],
        replies: &mut Replies,
    ) -> Result<()> {
        let offset = request.offset;
        let mut count = request.length;
        if request.flags.contains(CommandFlags::PAYLOAD_LEN) {
            // The header's length was the payload's; the range is inside.
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

/// The descriptors of a block status reply: at least one, none that begins beyond the range; only the last may reach
/// beyond it, and with REQ_ONE not even that. Nothing follows one that had to be cut to `longest`.
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
