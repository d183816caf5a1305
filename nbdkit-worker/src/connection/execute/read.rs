//! Reads, and the holes in them: with structured replies, a hole is sent as its length alone.

#![forbid(unsafe_code)]

use nbd_protocol::constants::CommandFlags;
use nbd_protocol::transmission::Request;
use nbdkit_api::shared::seek_extents;
use nbdkit_api::{Direction, ExtentKind, Extents, FileRange, Range, Result, log};

use super::super::reply::Replies;
use super::Target;

/// Reads from this size on, bytes, are searched for holes: below, the search costs more than
/// sending the zeroes.
const SPARSE_FROM: u64 = 32 * 1024;
/// Holes shorter than this, bytes, are sent as data.
const HOLE_FROM: u64 = 4096;
/// A read with more segments than this is sent as data.
const MAX_SEGMENTS: usize = 64;

/// Consecutive bytes of a read that are all data or all a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    /// In the export.
    offset: u64,
    /// Bytes.
    length: u64,
    hole: bool,
}

impl Target<'_> {
    /// Replies to a read that does not wait; false if the read may wait, and nothing was done.
    pub(crate) fn read_without_waiting(&self, request: &Request, replies: &mut Replies) -> bool {
        let cached = |range| self.is_cached(&range, request);
        if self.may_be_sparse(request) && !self.range(request).is_some_and(cached) {
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

    /// Where in a file the data of a read is, if a file holds it and none of it is a hole.
    pub(crate) fn file_range(&self, request: &Request) -> Option<FileRange<'_>> {
        if self.has_holes(request) {
            return None;
        }
        self.range(request)
    }

    /// Where in a file the data of a read is, if a file holds it.
    pub(crate) fn range(&self, request: &Request) -> Option<FileRange<'_>> {
        self.backend.file_range(request.length as u32, request.offset)
    }

    /// Whether the data of a read, which is at `range`, is in memory as far as is known, and none
    /// of it is a hole. In this order: the file system's map of the range is in memory then, too.
    pub(crate) fn is_cached(&self, range: &FileRange<'_>, request: &Request) -> bool {
        range.is_in_memory(request.length as usize) && !self.has_holes(request)
    }

    /// Whether parts of a read are sent as holes.
    fn has_holes(&self, request: &Request) -> bool {
        let Request { offset, length, .. } = *request;
        let whole = Segment { offset, length, hole: false };
        self.may_be_sparse(request) && self.segments(offset, length) != [whole]
    }

    /// Whether a read should be searched for holes: only if a file holds its data. A layer that
    /// does not pass a file through sees the reads that the client makes.
    fn may_be_sparse(&self, request: &Request) -> bool {
        self.features.structured
            && request.length >= SPARSE_FROM
            && !request.flags.contains(CommandFlags::DF)
            && self.backend.can_extents().unwrap_or(false)
            && self.backend.file_range(request.length as u32, request.offset).is_some()
    }

    /// `NBD_CMD_READ`.
    pub(super) fn read(&self, request: &Request, replies: &mut Replies) -> Result<()> {
        let Request { offset, length, .. } = *request;
        let whole = Range { count: length, offset };
        if !self.may_be_sparse(request) {
            return self
                .read_part(request, replies, true, whole, |buf| self.backend.pread(buf, offset));
        }
        // One request in the log, whatever the number of segments.
        self.backend.trace_read(length as u32, offset);
        let started = self.backend.watch();
        let result = log::without_datapath(|| {
            let segments = self.segments(offset, length);
            for (index, &Segment { offset, length, hole }) in segments.iter().enumerate() {
                let last = index + 1 == segments.len();
                if hole {
                    // A read is at most 64 MiB, so its segments fit 32 bits.
                    replies.hole(request, self.features, last, offset, length as u32);
                } else {
                    let part = Range { count: length, offset };
                    self.read_part(request, replies, last, part, |buf| {
                        self.backend.pread_part(whole, buf, offset)
                    })?;
                }
            }
            Ok(())
        });
        self.backend.passed(started, Direction::Read, whole, result.is_ok());
        result
    }

    /// Appends the data of `part` of a read, which `read` puts into a buffer, to the replies.
    fn read_part(
        &self,
        request: &Request,
        replies: &mut Replies,
        last: bool,
        part: Range,
        read: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let range = (part.offset, part.count as usize);
        replies.data(request, self.features, last, range, |buf| Some(read(buf))).unwrap_or(Ok(()))
    }

    /// Divides a read into data and holes, contiguous and complete. If the file has no map of its
    /// extents, the read is one segment of data, and a real error shows when it is read.
    fn segments(&self, offset: u64, length: u64) -> Vec<Segment> {
        let whole = vec![Segment { offset, length, hole: false }];
        // The file is asked, not the layers, which pass it through and might look at more than its
        // map.
        let Some(range) = self.backend.file_range(length as u32, offset) else { return whole };
        if self.known_data.covers(&range, length) {
            return whole;
        }
        let mut extents = Extents::new(range.offset, range.offset.saturating_add(length));
        if seek_extents(range.fd, length, range.offset, false, &mut extents).is_err() {
            return whole;
        }
        let mut segments: Vec<Segment> = Vec::new();
        let mapped = extents.iter().map(|extent| Segment {
            offset: extent.offset - range.offset + offset,
            length: extent.length,
            hole: extent.kind.contains(ExtentKind::ZERO) && extent.length >= HOLE_FROM,
        });
        let covered = extents.covered_to() - range.offset;
        let unmapped = Segment { offset: offset + covered, length: length - covered, hole: false };
        for segment in mapped.chain([unmapped]) {
            match segments.last_mut() {
                _ if segment.length == 0 => {}
                Some(last) if last.hole == segment.hole => last.length += segment.length,
                _ => segments.push(segment),
            }
            if segments.len() > MAX_SEGMENTS {
                return whole;
            }
        }
        segments
    }
}
