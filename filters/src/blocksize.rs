//! nbdkit-blocksize-filter(1): cuts and rounds requests to what the layer below can handle.
//!
//! Runs in the workers. Part of a block is written by reading the block, changing it and writing it
//! back; two clients in two processes may do that to one block at a time, hence the lock.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use nbdkit_api::shared::{LockedRange, RangeLock, Sharing};
use nbdkit_api::{
    BlockSize, Blocking, Client, DataPath, Direction, Errno, Error, Extents, Filter, Flags, Fua,
    Next, NextConfig, Open, OpenLayer, Result, Slot, ThreadModel, Value,
};

/// Largest `minblock`, bytes.
const MAX_MINBLOCK: u64 = 64 << 10;
/// Largest request with data that a plugin gets, bytes. nbdkit-plugin(3), `.pread`.
const MAX_DATA: u64 = 64 << 20;
/// Preferred block size where the layer below has none, bytes.
const PREFERRED: u32 = 4096;

/// The filter: its parameters, bytes, and what keeps writers of one block apart.
#[derive(Debug, Default)]
pub struct Blocksize {
    minblock: Option<u64>,
    maxdata: Option<u64>,
    maxlen: Option<u64>,
    /// Ranges in bytes. Exports share it: that two of them wait for each other costs little.
    lock: Option<Arc<RangeLock>>,
}

impl Filter for Blocksize {
    fn name(&self) -> &str {
        "blocksize"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit blocksize filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "minblock=<SIZE>      Minimum block size, power of 2 <= 64k (default 1).\n\
             maxdata=<SIZE>       Maximum size for read/write (default 64M).\n\
             maxlen=<SIZE>        Maximum size for trim/zero (default 4G-minblock).",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        let size = match key {
            "minblock" => &mut self.minblock,
            "maxdata" => &mut self.maxdata,
            "maxlen" => &mut self.maxlen,
            _ => return next.config(key, value),
        };
        *size = Some(match value.size()? {
            0 => {
                let why = format!("parameter '{key}' must be non-zero if specified");
                return Err(Error::msg(why));
            }
            bytes if bytes > u64::from(u32::MAX) => {
                return Err(Error::msg(format!("parameter '{key}' too large")));
            }
            bytes => bytes,
        });
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        if let Some(minblock) = self.minblock {
            if !minblock.is_power_of_two() {
                return Err(Error::msg("minblock must be a power of 2"));
            }
            if minblock > MAX_MINBLOCK {
                return Err(Error::msg(format!("minblock must not exceed {MAX_MINBLOCK}")));
            }
        }
        let minblock = self.minblock.unwrap_or(1);
        for (key, size) in [("maxdata", self.maxdata), ("maxlen", self.maxlen)] {
            if size.is_some_and(|size| !size.is_multiple_of(minblock)) {
                return Err(Error::msg(format!("{key} must be a multiple of {minblock}")));
            }
        }
        next.config_complete()
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.lock = Some(Arc::new(RangeLock::new()?));
        Ok(())
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let lock = self.lock.clone();
        Ok(Box::new(Handle {
            minblock: self.minblock.unwrap_or(1),
            maxdata: self.maxdata.unwrap_or(MAX_DATA),
            maxlen: self.maxlen.unwrap_or(u32::MAX.into()),
            limits: OnceLock::new(),
            lock: lock
                .ok_or_else(|| Error::new(Errno::EINVAL, "blocksize: opened before get_ready"))?,
            client: open.client.cloned(),
        }))
    }
}

/// What the layer below is given, bytes. All are multiples of the first, a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    minblock: u64,
    maxdata: u64,
    maxlen: u64,
}

impl Limits {
    /// Whether both ends of a range lie between blocks.
    fn aligned(&self, count: u64, offset: u64) -> bool {
        (count | offset).is_multiple_of(self.minblock)
    }

    fn round_down(&self, offset: u64) -> u64 {
        offset & !(self.minblock - 1)
    }

    /// `offset` is at most the size of the disk, which is a multiple of `minblock`.
    fn round_up(&self, offset: u64) -> u64 {
        self.round_down(offset + self.minblock - 1)
    }

    /// Divides a range into the parts that lie in one block each, at its ends, and the whole blocks
    /// between them in segments of at most `max` bytes. In ascending order.
    fn segments(&self, count: u64, offset: u64, max: u64) -> impl Iterator<Item = Segment> + use<> {
        let limits = *self;
        let (mut at, end) = (offset, offset + count);
        std::iter::from_fn(move || {
            if at == end {
                return None;
            }
            let start = at;
            let block_end = limits.round_down(start) + limits.minblock;
            let whole = limits.round_down(end).saturating_sub(start).min(max);
            let is_part = limits.round_down(start) != start || whole == 0;
            at = if is_part { block_end.min(end) } else { start + whole };
            Some(Segment { range: start..at, is_part })
        })
    }
}

/// Consecutive bytes of a request.
struct Segment {
    range: Range<u64>,
    /// Part of one block; else whole blocks.
    is_part: bool,
}

impl Segment {
    fn count(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Where the segment is in the buffer of a request at `offset`.
    fn within(&self, offset: u64) -> Range<usize> {
        (self.range.start - offset) as usize..(self.range.end - offset) as usize
    }
}

struct Handle {
    /// The parameters, or their defaults.
    minblock: u64,
    maxdata: u64,
    maxlen: u64,
    /// Known once the layer below is.
    limits: OnceLock<Limits>,
    lock: Arc<RangeLock>,
    client: Option<Arc<Client>>,
}

impl Handle {
    /// The parameters, as far as the block sizes of the layer below allow. As in nbdkit, neither
    /// can make the other impossible: a maximum below the minimum is the minimum.
    fn limits(&self, next: &Next) -> Result<Limits> {
        if let Some(limits) = self.limits.get() {
            return Ok(*limits);
        }
        let below = next.block_size()?;
        let minblock = self.minblock.max(below.minimum.into());
        let maxdata = match below.maximum {
            0 => self.maxdata,
            maximum => self.maxdata.min(maximum.into()),
        };
        let whole = |bytes: u64| (bytes / minblock * minblock).max(minblock);
        let limits = Limits { minblock, maxdata: whole(maxdata), maxlen: whole(self.maxlen) };
        Ok(*self.limits.get_or_init(|| limits))
    }

    /// Keeps others from writing parts of these blocks, and, if this is for writing a part,
    /// from writing them at all. One range at a time, so that no two requests wait for each other.
    fn lock(&self, limits: Limits, segment: &Segment) -> Result<Option<LockedRange<'_>>> {
        if limits.minblock == 1 {
            return Ok(None);
        }
        let sharing = if segment.is_part { Sharing::Exclusive } else { Sharing::Shared };
        let blocks = limits.round_down(segment.range.start)..limits.round_up(segment.range.end);
        self.lock.lock(self.client.as_deref(), blocks, sharing).map(Some)
    }

    /// Writes part of a block: reads the block, lets `change` change it from the byte at which the
    /// segment begins, and writes it.
    fn write_part(
        &self,
        next: &Next,
        limits: Limits,
        segment: &Segment,
        flags: Flags,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        let start = limits.round_down(segment.range.start);
        let mut block = vec![0; limits.minblock as usize];
        next.pread(&mut block, start)?;
        change(&mut block[segment.within(start)]);
        next.pwrite(&block, start, flags)
    }

    /// Runs a request that changes data, `change`, with the flags that the layer below gets for
    /// it. If that has only flushes in place of FUA, one flush stands for all segments.
    fn change(
        &self,
        next: &Next,
        flags: Flags,
        change: impl FnOnce(Flags) -> Result<()>,
    ) -> Result<()> {
        if flags.contains(Flags::FUA) && next.can_fua()? == Fua::Emulate {
            change(flags - Flags::FUA)?;
            return next.flush();
        }
        change(flags)
    }

    /// Whether a request passes to the layer below as it is.
    fn is_whole(&self, next: &Next, direction: Direction, count: u64, offset: u64) -> bool {
        let Ok(limits) = self.limits(next) else { return false };
        // Writers of whole blocks have to wait for those who write parts of them.
        let locks = direction == Direction::Write && limits.minblock > 1;
        !locks && count <= limits.maxdata && limits.aligned(count, offset)
    }
}

impl OpenLayer for Handle {
    fn size(&self, next: &Next) -> Result<u64> {
        Ok(self.limits(next)?.round_down(next.size()?))
    }

    /// Clients may send anything; whole blocks are what is best.
    fn block_size(&self, next: &Next) -> Result<BlockSize> {
        let minblock = self.limits(next)?.minblock as u32;
        let below = next.block_size()?;
        let preferred = if below.is_unspecified() { PREFERRED } else { below.preferred };
        Ok(BlockSize { minimum: 1, preferred: preferred.max(minblock), maximum: u32::MAX })
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let limits = self.limits(next)?;
        for segment in limits.segments(buf.len() as u64, offset, limits.maxdata) {
            let bytes = &mut buf[segment.within(offset)];
            if !segment.is_part {
                next.pread(bytes, segment.range.start)?;
                continue;
            }
            let start = limits.round_down(segment.range.start);
            let mut block = vec![0; limits.minblock as usize];
            next.pread(&mut block, start)?;
            bytes.copy_from_slice(&block[segment.within(start)]);
        }
        Ok(())
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let limits = self.limits(next)?;
        self.change(next, flags, |flags| {
            for segment in limits.segments(buf.len() as u64, offset, limits.maxdata) {
                let bytes = &buf[segment.within(offset)];
                let _locked = self.lock(limits, &segment)?;
                if segment.is_part {
                    let change = |part: &mut [u8]| part.copy_from_slice(bytes);
                    self.write_part(next, limits, &segment, flags, change)?;
                } else {
                    next.pwrite(bytes, segment.range.start, flags)?;
                }
            }
            Ok(())
        })
    }

    /// Parts of blocks at the ends are left as they are.
    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let limits = self.limits(next)?;
        self.change(next, flags, |flags| {
            for segment in limits.segments(count, offset, limits.maxlen) {
                if !segment.is_part {
                    next.trim(segment.count(), segment.range.start, flags)?;
                }
            }
            Ok(())
        })
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let limits = self.limits(next)?;
        if flags.contains(Flags::FAST_ZERO) && !limits.aligned(count, offset) {
            // Reading and writing part of a block is not faster than writing.
            return Err(Error::silent(Errno::EOPNOTSUPP));
        }
        self.change(next, flags, |flags| {
            for segment in limits.segments(count, offset, limits.maxlen) {
                let _locked = self.lock(limits, &segment)?;
                if segment.is_part {
                    let fua = flags & Flags::FUA;
                    self.write_part(next, limits, &segment, fua, |part| part.fill(0))?;
                } else {
                    next.zero(segment.count(), segment.range.start, flags)?;
                }
            }
            Ok(())
        })
    }

    /// In whole blocks, of at most `maxlen` bytes: the client asks again for what is behind them.
    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        let limits = self.limits(next)?;
        let start = limits.round_down(offset);
        let count = (limits.round_up(offset + count) - start).min(limits.maxlen);
        let align = limits.minblock as u32;
        next.extents_aligned(count, start, flags, align, extents)
    }

    /// In whole blocks. As nbdkit in segments of `maxdata`: the layer below may read them.
    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        let limits = self.limits(next)?;
        let start = limits.round_down(offset);
        let count = limits.round_up(offset + count) - start;
        let max = limits.maxdata.min(limits.maxlen);
        limits
            .segments(count, start, max)
            .try_for_each(|segment| next.cache(segment.count(), segment.range.start))
    }

    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::PerRequest
    }

    fn passes(&self, next: &Next, direction: Direction, count: u64, offset: u64) -> bool {
        self.is_whole(next, direction, count, offset)
    }

    /// A write of a part of a block may wait for that of another client.
    fn blocking(&self) -> Blocking {
        match self.limits.get() {
            Some(Limits { minblock: 1, .. }) => Blocking::Never,
            _ => Blocking::Short,
        }
    }

    /// A part of one block; more takes several requests. Readers take no lock.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        if next.blocking() == Blocking::Never {
            return Some(self.pread(next, buf, offset));
        }
        let limits = match self.limits(next) {
            Ok(limits) => limits,
            Err(error) => return Some(Err(error)),
        };
        let (start, end) = (limits.round_down(offset), offset + buf.len() as u64);
        if limits.round_up(end) - start != limits.minblock {
            return None;
        }
        let mut block = vec![0; limits.minblock as usize];
        Some(next.try_pread(&mut block, start)?.map(|()| {
            buf.copy_from_slice(&block[(offset - start) as usize..][..buf.len()]);
        }))
    }
}

#[cfg(test)]
mod tests;
