//! nbdkit-cache-filter(1): keeps blocks of the disk in a temporary file, for all clients.
//!
//! The template makes the file and the tables; workers share them. In write-back mode, which is the
//! default, the cache has data that is nowhere else: a flush, and the end of a connection, write
//! what all clients have written to that export, and the template writes what killed workers have
//! left. Without space for a block, requests for it pass to the layer below.

mod blocks;
mod evict;
mod state;
mod store;

use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

use nbdkit_api::shared::SharedFile;
use nbdkit_api::{
    BlockSize, Blocking, Cache as CacheMode, Client, DataPath, Direction, Errno, Error, ExtentKind,
    Extents, Filter, Flags, Fua, Layer, Needs, Next, NextConfig, Open, OpenLayer, Result,
    ResultExt, Slot, ThreadModel, Value, Zero, debug, error,
};

use crate::on_read::OnRead;

use blocks::Blocks;
use evict::Evictor;
use state::State;
use store::{Limits, Store};

/// Least `cache-max-size`, bytes.
const MIN_MAX_SIZE: u64 = 1 << 20;
/// Largest preferred block size that may be advertised, bytes (NBD protocol, "Block size
/// constraints").
const MAX_PREFERRED: u32 = 32 << 20;

/// When the layer below gets what clients write.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// When a client flushes, and when it leaves.
    #[default]
    WriteBack,
    /// At once.
    WriteThrough,
    /// When the cache is full.
    Unsafe,
}

/// The filter: its parameters and, once ready, the cache.
#[derive(Debug)]
pub struct Cache {
    mode: Mode,
    /// Bytes, a power of two.
    min_block_size: u64,
    /// Bytes.
    max_size: Option<u64>,
    /// Percent of `max_size`.
    high: u32,
    low: u32,
    on_read: OnRead,
    store: Option<Arc<Store>>,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache {
            mode: Mode::default(),
            min_block_size: 64 << 10,
            max_size: None,
            high: 95,
            low: 80,
            on_read: OnRead::Never,
            store: None,
        }
    }
}

impl Filter for Cache {
    fn name(&self) -> &str {
        "cache"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit caching filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "cache=MODE                Set cache MODE, one of writeback (default),\n\
             \x20                         writethrough, or unsafe.\n\
             cache-on-read=BOOL|/PATH  Set to true to cache on reads (default false).\n\
             cache-min-block-size=SIZE Set the size of blocks (default 64K).\n\
             cache-max-size=SIZE       Set maximum space used by cache.\n\
             cache-high-threshold=PCT  Percentage of max size where reclaim begins.\n\
             cache-low-threshold=PCT   Percentage of max size where reclaim ends.",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        let percent = || match value.integer::<u32>(key)? {
            0 => Err(Error::msg(format!("{key} must be greater than zero"))),
            percent => Ok(percent),
        };
        match key {
            "cache" => {
                self.mode = match value.as_bytes() {
                    b"writeback" => Mode::WriteBack,
                    b"writethrough" => Mode::WriteThrough,
                    b"unsafe" => Mode::Unsafe,
                    _ => {
                        return Err(Error::msg(
                            "invalid cache parameter, should be writeback|writethrough|unsafe",
                        ));
                    }
                }
            }
            "cache-min-block-size" => {
                let size = value.size()?;
                if !size.is_power_of_two() || !(4096..=2 << 30).contains(&size) {
                    return Err(Error::msg(
                        "cache-min-block-size is not a power of 2, or is too small or too large",
                    ));
                }
                self.min_block_size = size;
            }
            "cache-max-size" => {
                let size = value.size()?;
                if size < MIN_MAX_SIZE {
                    return Err(Error::msg("cache-max-size is too small"));
                }
                self.max_size = Some(size);
            }
            "cache-high-threshold" => self.high = percent()?,
            "cache-low-threshold" => self.low = percent()?,
            "cache-on-read" => self.on_read = OnRead::parse(value)?,
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        if self.max_size.is_some() && self.low >= self.high {
            return Err(Error::msg("cache-low-threshold must be less than cache-high-threshold"));
        }
        next.config_complete()
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.store = Some(Arc::new(self.store_in(SharedFile::temporary("cache", 0)?)?));
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        self.on_read.needs(below)
    }

    /// What clients have written and not flushed is nowhere else.
    fn keeps_state(&self) -> bool {
        self.mode != Mode::WriteThrough
    }

    fn cleanup(&self, below: &Arc<Layer>) {
        let Some(store) = self.store.as_ref().filter(|_| self.mode != Mode::Unsafe) else { return };
        for export in (0..store.maps.count()).filter(|export| store.has_dirty(*export)) {
            if let Err(why) = write_left_over(store, export, below) {
                error!("cache: what killed clients have written is lost: {why}");
            }
        }
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let store = self.store.clone();
        Ok(Box::new(Handle {
            mode: self.mode,
            on_read: self.on_read.clone(),
            export: open.export.to_owned(),
            client: open.client.cloned(),
            store: store
                .ok_or_else(|| Error::new(Errno::EINVAL, "cache: opened before get_ready"))?,
            blocks: OnceLock::new(),
            evictor: Evictor::default(),
        }))
    }
}

impl Cache {
    /// A cache in this empty file.
    fn store_in(&self, file: SharedFile) -> Result<Store> {
        let stat = nix::sys::stat::fstat(file.as_fd()).or_error(|| "fstat: cache")?;
        let of_file = u64::try_from(stat.st_blksize).unwrap_or(0).min(2 << 30);
        let block_size = self.min_block_size.max(of_file.next_power_of_two());
        let limits = self.max_size.map(|size| {
            let percent = |of: u32| (u128::from(size) * u128::from(of) / 100) as u64 / block_size;
            let capacity = (size / block_size).clamp(1, state::MAX_SLOTS);
            Limits { capacity, high: percent(self.high), low: percent(self.low) }
        });
        Store::new(file, block_size, limits)
    }
}

/// Writes the dirty blocks of an export that has no client any more.
fn write_left_over(store: &Arc<Store>, export: usize, below: &Arc<Layer>) -> Result<()> {
    let name = store.maps.name(export)?;
    let next = below.open(&Open { client: None, readonly: false, export: &name, tls: false })?;
    let written = next.prepare().and_then(|()| {
        let blocks = Blocks::new(Arc::clone(store), &name, next.size()?)?;
        blocks.write_back_all(&next)?;
        if next.can_flush()? { next.flush() } else { Ok(()) }
    });
    written.and(next.finalize())
}

struct Handle {
    mode: Mode,
    on_read: OnRead,
    export: String,
    client: Option<Arc<Client>>,
    store: Arc<Store>,
    /// Known once the size of the disk is.
    blocks: OnceLock<Blocks>,
    evictor: Evictor,
}

impl Handle {
    fn blocks(&self) -> Result<&Blocks> {
        self.blocks.get().ok_or_else(|| Error::new(Errno::EIO, "cache: used before prepare"))
    }

    /// Brings the blocks of a range into the cache, as far as there is space.
    fn prefetch(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        let blocks = self.blocks()?;
        let now = self.store.tick();
        blocks.for_blocks(count, offset, |block, _, _| {
            self.evictor.make_room(blocks, next)?;
            blocks.prefetch(next, block, now)
        })
    }
}

impl OpenLayer for Handle {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        let blocks = Blocks::new(Arc::clone(&self.store), &self.export, next.size()?)?;
        let _ = self.blocks.set(blocks);
        Ok(())
    }

    /// What clients have written is written below when one of them leaves: the last one to leave
    /// cannot know that it is.
    fn finalize(&self, next: &Next) -> Result<()> {
        let blocks = self.blocks()?;
        if self.mode == Mode::Unsafe || !next.can_write()? || !self.store.has_dirty(blocks.export) {
            return Ok(());
        }
        debug!("cache: writing what has not been flushed");
        let written = blocks.write_back_all(next);
        let flushed = if next.can_flush()? { next.flush() } else { Ok(()) };
        written.and(flushed)
    }

    /// Blocks of the cache are what is best written whole.
    fn block_size(&self, next: &Next) -> Result<BlockSize> {
        let below = next.block_size()?;
        let own = u32::try_from(self.store.block_size()).unwrap_or(u32::MAX).min(MAX_PREFERRED);
        Ok(if below.is_unspecified() {
            BlockSize { minimum: 1, preferred: own, maximum: u32::MAX }
        } else if own <= below.maximum {
            BlockSize { preferred: below.preferred.max(own), ..below }
        } else {
            below
        })
    }

    fn can_flush(&self, next: &Next) -> Result<bool> {
        if self.mode == Mode::Unsafe { Ok(true) } else { next.can_flush() }
    }

    /// Zeroes are written like other data.
    fn can_zero(&self, _: &Next) -> Result<Zero> {
        Ok(Zero::Emulate)
    }

    /// As nbdkit: the requests fail, unless they are faster than writing, which they never are.
    fn can_fast_zero(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn can_fua(&self, next: &Next) -> Result<Fua> {
        if self.mode == Mode::Unsafe { Ok(Fua::Native) } else { next.can_fua() }
    }

    /// A flush writes the blocks of all clients.
    fn can_multi_conn(&self, next: &Next) -> Result<bool> {
        if self.mode == Mode::WriteThrough { next.can_multi_conn() } else { Ok(true) }
    }

    fn can_cache(&self, _: &Next) -> Result<CacheMode> {
        Ok(CacheMode::Native)
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        if self.on_read.now() {
            // Parts of blocks that the client has not asked for may be unreadable.
            if let Err(why) = self.prefetch(next, buf.len() as u64, offset) {
                debug!("cache: not read into the cache: {why}");
            }
        }
        self.blocks()?.read(next, buf, offset)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let blocks = self.blocks()?;
        let fua = flags & Flags::FUA;
        let through = match self.mode {
            Mode::WriteThrough => Some(fua),
            Mode::WriteBack if !fua.is_empty() => Some(fua),
            Mode::WriteBack | Mode::Unsafe => None,
        };
        let (now, mut rest) = (self.store.tick(), buf);
        blocks.for_blocks(buf.len() as u64, offset, |block, within, count| {
            let (bytes, others) = rest.split_at(count as usize);
            rest = others;
            self.evictor.make_room(blocks, next)?;
            let result = blocks.write_block(next, block, within, bytes, through, now);
            if result.is_err() && self.mode == Mode::WriteThrough {
                // The cache must not have what the layer below has refused.
                blocks.discard(block)?;
            }
            result
        })
    }

    fn flush(&self, next: &Next) -> Result<()> {
        if self.mode == Mode::Unsafe {
            return Ok(());
        }
        // Another flush may have written a block through its connection, and not flushed that yet.
        let _others = if next.can_multi_conn()? {
            None
        } else {
            Some(self.store.flushing.lock_for(self.client.as_deref())?)
        };
        let written = self.blocks()?.write_back_all(next);
        written.and(next.flush())
    }

    /// The whole blocks of the range leave the cache.
    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        next.trim(count, offset, flags)?;
        let blocks = self.blocks()?;
        let (mut at, end) = (offset, offset + count);
        while at < end {
            let (state, to) = blocks.state_at(at)?;
            let block = at / self.store.block_size();
            let is_whole = at == block * self.store.block_size() && to <= end;
            if state != State::Absent && is_whole {
                blocks.discard(block)?;
            }
            at = to;
        }
        Ok(())
    }

    /// What is dirty is data, whatever is below.
    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        let blocks = self.blocks()?;
        let is_dirty = |at| {
            let (state, to) = blocks.state_at(at)?;
            Ok((matches!(state, State::Dirty(_)), to))
        };
        let (mut at, end) = (offset, offset + count);
        while at < end {
            let (dirty, to) = is_dirty(at)?;
            let mut to = to.min(end);
            while to < end {
                match is_dirty(to)? {
                    (others, further) if others == dirty => to = further.min(end),
                    _ => break,
                }
            }
            if dirty {
                extents.add(at, to - at, ExtentKind::DATA)?;
            } else {
                let mut below = Extents::new(at, to);
                next.extents(to - at, at, flags, &mut below)?;
                extents.add_shifted(&below, 0)?;
                to = below.covered_to();
            }
            at = to;
            if flags.contains(Flags::REQ_ONE) {
                break;
            }
        }
        Ok(())
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        self.prefetch(next, count, offset)
    }

    fn data_path(&self, direction: Direction) -> DataPath {
        match direction {
            Direction::Read => DataPath::PerRequest,
            Direction::Write => DataPath::Opaque,
        }
    }

    fn passes(&self, _: &Next, _: Direction, count: u64, offset: u64) -> bool {
        self.on_read.is_never() && self.blocks().is_ok_and(|blocks| blocks.is_absent(count, offset))
    }

    fn blocking(&self) -> Blocking {
        Blocking::Short
    }

    /// What of the cache is in memory, and below one run of blocks.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        self.blocks().ok()?.try_read(next, buf, offset, || self.on_read.now())
    }
}

#[cfg(test)]
mod tests;
