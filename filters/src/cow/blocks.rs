//! One connection's view of one export through the overlay: which block stands where, and how
//! blocks come into the overlay.
//!
//! Blocks change place only under the lock of their stripe. Data goes into a block that already is
//! in the overlay without lock: its place changes only by trimming, and a request that runs
//! at the same time as a trim of the same bytes may come before it or after.

use std::sync::Arc;

use nbdkit_api::{Errno, Next, Result};

use super::overlay::Overlay;
use super::quota::{Quota, Reservation};
use super::table::{Block, Cursor, Table};

/// Piece in which a block is copied, bytes.
const PIECE: u64 = 256 << 10;

/// What is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Data<'a> {
    Bytes(&'a [u8]),
    /// So many zero bytes.
    Zeroes(u64),
}

impl<'a> Data<'a> {
    fn len(self) -> u64 {
        match self {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::Zeroes(count) => count,
        }
    }

    /// `count` bytes from `from`.
    fn part(self, from: u64, count: u64) -> Data<'a> {
        match self {
            Data::Bytes(bytes) => Data::Bytes(&bytes[from as usize..][..count as usize]),
            Data::Zeroes(_) => Data::Zeroes(count),
        }
    }

    /// Copies `buf.len()` bytes from `from`.
    fn copy_to(self, buf: &mut [u8], from: u64) {
        match self {
            Data::Bytes(bytes) => buf.copy_from_slice(&bytes[from as usize..][..buf.len()]),
            Data::Zeroes(_) => buf.fill(0),
        }
    }
}

/// Where bytes stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contents {
    /// In the layer below, at the same offset.
    Below,
    /// In the overlay's file, from this offset on.
    Overlay(u64),
    /// Nowhere: they are zeroes.
    Trimmed,
}

/// Bytes of the disk that stand in one place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) contents: Contents,
    pub(super) offset: u64,
    pub(super) count: u64,
}

/// The blocks of one export: which are in the overlay, and how they get there.
#[derive(Debug)]
pub(super) struct Blocks {
    overlay: Arc<Overlay>,
    table: Table,
    /// Of the disk, bytes.
    size: u64,
    /// If there are limits.
    quota: Option<Quota>,
}

impl Blocks {
    /// The blocks of an export whose disk has `size` bytes.
    ///
    /// # Errors
    /// Those of [`SharedBlockMaps::open`](nbdkit_api::shared::SharedBlockMaps::open).
    pub(super) fn new(overlay: Arc<Overlay>, export: &str, size: u64) -> Result<Blocks> {
        let (number, table) = overlay.tables.open(export, size)?;
        let quota = Quota::new(&overlay, number);
        Ok(Blocks { overlay, table, size, quota })
    }

    /// The account of the export, if there are limits.
    pub(super) fn quota(&self) -> Option<&Quota> {
        self.quota.as_ref()
    }

    fn block_size(&self) -> u64 {
        self.overlay.block_size()
    }

    /// Bytes of a block; the last one may be short.
    fn length(&self, block: u64) -> u64 {
        self.block_size().min(self.size - block * self.block_size())
    }

    /// The runs of a range in ascending order.
    pub(super) fn runs(&self, count: u64, offset: u64) -> Runs<'_> {
        let end = offset + count;
        Runs { blocks: self, cursor: self.table.cursor(), at: offset, end }
    }

    /// Calls `each` with every block that a range touches: its number, the first byte of the range
    /// within it, and how many bytes of it are in the range.
    fn for_blocks(
        &self,
        count: u64,
        offset: u64,
        mut each: impl FnMut(u64, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let (mut at, end) = (offset, offset + count);
        while at < end {
            let (block, within) = (at / self.block_size(), at % self.block_size());
            let count = (self.block_size() - within).min(end - at);
            each(block, within, count)?;
            at += count;
        }
        Ok(())
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// ENOSPC: a limit is reached, and nothing was written; or the file system is full.
    pub(super) fn write(&self, next: &Next, data: Data<'_>, offset: u64) -> Result<()> {
        let new = |block, _, _| Ok(!self.table.cursor().load(block)?.0.holds_space());
        self.with_space(data.len(), offset, new, |reservation| {
            let mut cursor = self.table.cursor();
            let mut done = 0;
            self.for_blocks(data.len(), offset, |block, within, count| {
                let part = data.part(done, count);
                done += count;
                self.write_block(next, &mut cursor, block, within, part, reservation)
            })
        })
    }

    /// Runs a request that needs space for each block that is `new`. If there are limits, they are
    /// checked for all of these blocks first, unless there is one block only.
    fn with_space(
        &self,
        count: u64,
        offset: u64,
        new: impl Fn(u64, u64, u64) -> Result<bool>,
        run: impl Fn(Option<&Reservation<'_>>) -> Result<()>,
    ) -> Result<()> {
        let Some(quota) = &self.quota else { return run(None) };
        let wanted = || {
            let mut wanted = 0;
            self.for_blocks(count, offset, |block, within, count| {
                wanted += u64::from(new(block, within, count)?);
                Ok(())
            })?;
            Ok(wanted)
        };
        let one_block = offset % self.block_size() + count <= self.block_size();
        if one_block || wanted()? == 0 {
            match run(None) {
                // The reservation may be that of a killed worker, or not be used up.
                Err(error) if error.errno() == Errno::ENOSPC && quota.has_reservation() => {}
                result => return result,
            }
        }
        run(Some(&quota.reserve(wanted)?))
    }

    fn write_block(
        &self,
        next: &Next,
        cursor: &mut Cursor<'_>,
        block: u64,
        within: u64,
        data: Data<'_>,
        reservation: Option<&Reservation<'_>>,
    ) -> Result<()> {
        if let Block::Present(cluster) = cursor.load(block)?.0 {
            self.write_in_place(cluster, within, data)?;
            return self.free_if_trimmed(cursor, block, cluster);
        }
        let stripe = self.overlay.lock(&self.table, block);
        let state = cursor.load(block)?.0;
        if let Block::Present(cluster) = state {
            return self.write_in_place(cluster, within, data);
        }
        if let Some(quota) = self.quota.as_ref().filter(|_| !state.holds_space()) {
            quota.check_space(reservation)?;
        }
        let (cluster, below) = match state {
            Block::Present(cluster) | Block::Unfreed(cluster) | Block::Trimmed(Some(cluster)) => {
                (cluster, None)
            }
            Block::Trimmed(None) => (self.overlay.allocate()?, None),
            Block::Absent => (self.overlay.allocate()?, Some(next)),
        };
        stripe.with_pending(cluster, || {
            self.fill(below, block, cluster, within, data)?;
            self.publish(cursor, block, state, cluster, reservation)
        })
    }

    /// Stores that a block, whose state was `before`, is in a filled cluster.
    fn publish(
        &self,
        cursor: &mut Cursor<'_>,
        block: u64,
        before: Block,
        cluster: u64,
        reservation: Option<&Reservation<'_>>,
    ) -> Result<()> {
        match self.quota.as_ref().filter(|_| !before.holds_space()) {
            Some(quota) => quota.charge(reservation, cursor, block, Block::Present(cluster)),
            None => cursor.store(block, Block::Present(cluster)),
        }
    }

    /// After a write in place: if the block was trimmed meanwhile, the write may have allocated
    /// space in its cluster again, which nobody would account for.
    fn free_if_trimmed(&self, cursor: &mut Cursor<'_>, block: u64, cluster: u64) -> Result<()> {
        if cursor.load(block)?.0 == Block::Present(cluster) {
            return Ok(());
        }
        let _stripe = self.overlay.lock(&self.table, block);
        match cursor.load(block)?.0 {
            Block::Trimmed(Some(it)) if it == cluster => self.overlay.free(cluster),
            _ => Ok(()),
        }
    }

    fn write_in_place(&self, cluster: u64, within: u64, data: Data<'_>) -> Result<()> {
        let at = self.overlay.offset(cluster)? + within;
        match data {
            Data::Bytes(bytes) => self.overlay.write(bytes, at),
            Data::Zeroes(count) => {
                let zeroes = vec![0; count.min(PIECE) as usize];
                (0..count).step_by(PIECE as usize).try_for_each(|done| {
                    let piece = (count - done).min(PIECE) as usize;
                    self.overlay.write(&zeroes[..piece], at + done)
                })
            }
        }
    }

    /// Writes the whole of a block into a cluster that nobody reads yet: what stands below (or
    /// zeroes) with `data` over it.
    fn fill(
        &self,
        below: Option<&Next>,
        block: u64,
        cluster: u64,
        within: u64,
        data: Data<'_>,
    ) -> Result<()> {
        let to = self.overlay.offset(cluster)?;
        let (length, data_end) = (self.length(block), within + data.len());
        let mut buf = vec![0; length.min(PIECE) as usize];
        let mut at = 0;
        while at < length {
            let count = (length - at).min(PIECE);
            let piece = &mut buf[..count as usize];
            let (from, end) = (within.clamp(at, at + count), data_end.clamp(at, at + count));
            let covered = from == at && end == at + count;
            match below {
                _ if covered => {}
                Some(next) => next.pread(piece, block * self.block_size() + at)?,
                None => piece.fill(0),
            }
            if from < end {
                data.copy_to(&mut piece[(from - at) as usize..(end - at) as usize], from - within);
            }
            self.overlay.write(piece, to + at)?;
            at += count;
        }
        Ok(())
    }

    /// Brings every block of a range that stands below into the overlay, until the overlay is full.
    pub(super) fn copy_up(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        let mut cursor = self.table.cursor();
        let copied = self.for_blocks(count, offset, |block, _, _| {
            if cursor.load(block)?.0 != Block::Absent {
                return Ok(());
            }
            if let Some(quota) = &self.quota {
                quota.check_space(None)?;
            }
            let stripe = self.overlay.lock(&self.table, block);
            if cursor.load(block)?.0 != Block::Absent {
                return Ok(());
            }
            let cluster = self.overlay.allocate()?;
            stripe.with_pending(cluster, || {
                self.fill(Some(next), block, cluster, 0, Data::Zeroes(0))?;
                self.publish(&mut cursor, block, Block::Absent, cluster, None)
            })
        });
        match copied {
            // The client has not asked to write, and can read from below.
            Err(error) if error.errno() == Errno::ENOSPC => Ok(()),
            copied => copied,
        }
    }

    /// Drops whole blocks; parts of blocks at both ends become zeroes.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub(super) fn trim(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        let part_of_absent = |block, _, count| {
            Ok(count < self.length(block) && self.table.cursor().load(block)?.0 == Block::Absent)
        };
        self.with_space(count, offset, part_of_absent, |reservation| {
            let mut cursor = self.table.cursor();
            self.for_blocks(count, offset, |block, within, count| {
                if count == self.length(block) {
                    return self.trim_block(&mut cursor, block);
                }
                match cursor.load(block)?.0 {
                    Block::Trimmed(_) | Block::Unfreed(_) => Ok(()),
                    Block::Absent | Block::Present(_) => {
                        let zeroes = Data::Zeroes(count);
                        self.write_block(next, &mut cursor, block, within, zeroes, reservation)
                    }
                }
            })
        })
    }

    fn trim_block(&self, cursor: &mut Cursor<'_>, block: u64) -> Result<()> {
        let stripe = self.overlay.lock(&self.table, block);
        match cursor.load(block)?.0 {
            Block::Trimmed(_) | Block::Unfreed(_) => Ok(()),
            Block::Absent => cursor.store(block, Block::Trimmed(None)),
            // The block keeps its cluster, so nobody else's data can ever stand where a slow
            // reader still looks.
            Block::Present(cluster) if !self.overlay.frees() => {
                cursor.store(block, Block::Unfreed(cluster))
            }
            Block::Present(cluster) => stripe.with_pending(cluster, || {
                let trimmed = Block::Trimmed(Some(cluster));
                match &self.quota {
                    Some(quota) => quota.uncharge(cursor, block, trimmed)?,
                    None => cursor.store(block, trimmed)?,
                }
                self.overlay.free(cluster)
            }),
        }
    }
}

/// Iterator over the runs of a range.
#[derive(Debug)]
pub(super) struct Runs<'a> {
    blocks: &'a Blocks,
    cursor: Cursor<'a>,
    at: u64,
    end: u64,
}

impl Runs<'_> {
    /// Where the byte at `at` stands, and up to where at least that holds.
    fn look(&mut self, at: u64) -> Result<(Contents, u64)> {
        let size = self.blocks.block_size();
        let (block, within) = (at / size, at % size);
        let (state, holds) = self.cursor.load(block)?;
        let contents = match state {
            Block::Absent => Contents::Below,
            Block::Trimmed(_) | Block::Unfreed(_) => Contents::Trimmed,
            Block::Present(cluster) => {
                Contents::Overlay(self.blocks.overlay.offset(cluster)? + within)
            }
        };
        let end = block.saturating_add(holds).saturating_mul(size);
        Ok((contents, end.min(self.end)))
    }

    fn run(&mut self) -> Result<Run> {
        let offset = self.at;
        let (contents, mut end) = self.look(offset)?;
        while end < self.end {
            let (others, others_end) = self.look(end)?;
            let continues = match (contents, others) {
                (Contents::Below, Contents::Below) => true,
                (Contents::Trimmed, Contents::Trimmed) => true,
                (Contents::Overlay(a), Contents::Overlay(b)) => {
                    b.checked_sub(end - offset) == Some(a)
                }
                _ => false,
            };
            if !continues {
                break;
            }
            end = others_end;
        }
        self.at = end;
        Ok(Run { contents, offset, count: end - offset })
    }
}

impl Iterator for Runs<'_> {
    type Item = Result<Run>;

    fn next(&mut self) -> Option<Result<Run>> {
        (self.at < self.end).then(|| self.run())
    }
}
