//! One connection's view of one export through the cache.
//!
//! A block changes its state, and its data in a slot, only under its lock. Readers take no lock:
//! they look at the state again after reading, and read again if the slot is another one. So a slot
//! may be given to another block at any time.
//!
//! A worker may be killed at any moment. A block is dirty before data is written to its slot in
//! place, and has a slot only after that was filled; then it is dirty until the layer below has the
//! data.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use nbdkit_api::shared::{BlockLock, SharedBlockMap, Unfinished};
use nbdkit_api::{Errno, Error, Flags, Next, Result};

use super::state::{MAX_BLOCKS, Owner, Slot, State, Used};
use super::store::Store;

/// How much of a block is copied at a time, bytes.
const COPY_SIZE: u64 = 1 << 20;
/// How often a block is read that others change meanwhile, before it is locked.
const MAX_ATTEMPTS: u32 = 16;
/// Slots that are looked at for a free one.
const MAX_TRIES: u64 = 1 << 20;
/// Tables of other exports that a connection keeps mapped.
const MAX_OTHERS: usize = 64;

type Map = SharedBlockMap<State>;

/// Whether a block was written to the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Cached(Slot),
    /// There is no space for it.
    Not,
}

/// The blocks of one export.
#[derive(Debug)]
pub(super) struct Blocks {
    pub(super) store: Arc<Store>,
    /// The number of the export.
    pub(super) export: usize,
    pub(super) map: Map,
    pub(super) owners: SharedBlockMap<Owner>,
    pub(super) used: SharedBlockMap<Used>,
    others: Mutex<HashMap<usize, Arc<Map>>>,
    /// Of the disk, bytes.
    size: u64,
}

impl Blocks {
    /// The blocks of an export whose disk has `size` bytes.
    ///
    /// # Errors
    /// EINVAL: the disk has too many blocks, or had another size before. ENOSPC: too many exports.
    pub(super) fn new(store: Arc<Store>, export: &str, size: u64) -> Result<Blocks> {
        if size.div_ceil(store.block_size()) > MAX_BLOCKS {
            return Err(Error::new(Errno::EINVAL, "cache: the disk has too many blocks"));
        }
        let (export, map) = store.maps.open(export, size)?;
        let (_, owners) = store.slots.open("owners", store.capacity())?;
        let (_, used) = store.slots.open("used", store.capacity())?;
        Ok(Blocks { store, export, map, owners, used, others: Mutex::default(), size })
    }

    /// Bytes of a block; the last one may be short.
    pub(super) fn length(&self, block: u64) -> u64 {
        let size = self.store.block_size();
        size.min(self.size.saturating_sub(block * size))
    }

    /// Calls `each` with every block that a range touches: its number, the first byte of the range
    /// within it, and how many bytes of it are in the range.
    pub(super) fn for_blocks(
        &self,
        count: u64,
        offset: u64,
        mut each: impl FnMut(u64, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let (mut at, end, size) = (offset, offset + count, self.store.block_size());
        while at < end {
            let (block, within) = (at / size, at % size);
            let count = (size - within).min(end - at);
            each(block, within, count)?;
            at += count;
        }
        Ok(())
    }

    /// The state of the byte at `offset`, and up to which byte of the disk at least that holds.
    pub(super) fn state_at(&self, offset: u64) -> Result<(State, u64)> {
        let size = self.store.block_size();
        let (state, holds) = self.map.cursor().load(offset / size)?;
        Ok((state, (offset / size).saturating_add(holds).saturating_mul(size).min(self.size)))
    }

    /// Whether no byte of a range is in the cache.
    pub(super) fn is_absent(&self, count: u64, offset: u64) -> bool {
        let (mut at, end) = (offset, offset + count);
        while at < end {
            match self.state_at(at) {
                Ok((State::Absent, to)) => at = to,
                _ => return false,
            }
        }
        true
    }

    /// Reads what is in the cache from there, and everything else from below.
    pub(super) fn read(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let now = self.store.tick();
        let end = offset + buf.len() as u64;
        let (mut at, mut attempts) = (offset, 0);
        while at < end {
            // After some attempts the block is locked: a hostile worker could change it for ever.
            let lock = (attempts >= MAX_ATTEMPTS).then(|| self.lock(at / self.store.block_size()));
            let (state, to) = self.state_at(at)?;
            let mut to = to.min(end);
            let Some(slot) = state.slot() else {
                while to < end {
                    match self.state_at(to)? {
                        (State::Absent, further) => to = further.min(end),
                        _ => break,
                    }
                }
                next.pread(&mut buf[(at - offset) as usize..(to - offset) as usize], at)?;
                (at, attempts) = (to, 0);
                continue;
            };
            let part = &mut buf[(at - offset) as usize..(to - offset) as usize];
            self.store.read(slot, at % self.store.block_size(), part)?;
            // If the slot was given to another block meanwhile, this is another one's data.
            if self.state_at(at)?.0.slot() == Some(slot) {
                self.note_use(slot, now)?;
                (at, attempts) = (to, 0);
            } else if lock.is_some() {
                return Err(Error::new(Errno::EIO, "cache: a block changes under its lock"));
            } else {
                attempts += 1;
            }
        }
        Ok(())
    }

    /// Reads a range without waiting: what is in the cache has to be in memory, and what is not one
    /// run of blocks, which the layer below has at once and which is not to be `kept`. `None`: it
    /// is not, and a part of `buf` may have been filled.
    pub(super) fn try_read(
        &self,
        next: &Next,
        buf: &mut [u8],
        offset: u64,
        kept: impl Fn() -> bool,
    ) -> Option<Result<()>> {
        let end = offset + buf.len() as u64;
        let within = |from: u64, to: u64| (from - offset) as usize..(to - offset) as usize;
        let mut below: Option<Range<u64>> = None;
        let mut at = offset;
        while at < end {
            let (state, to) = self.state_at(at).ok()?;
            let to = to.min(end);
            let Some(slot) = state.slot() else {
                let from = below.map_or(Some(at), |run| (run.end == at).then_some(run.start))?;
                below = Some(from..to);
                at = to;
                continue;
            };
            let part = &mut buf[within(at, to)];
            let is_read = self.store.read_now(slot, at % self.store.block_size(), part);
            // As in `read`: the slot may be another block's by now.
            if !is_read || self.state_at(at).ok()?.0.slot() != Some(slot) {
                return None;
            }
            if self.store.limits().is_some() {
                self.note_use(slot, self.store.tick()).ok()?;
            }
            at = to;
        }
        match below {
            None => Some(Ok(())),
            Some(_) if kept() => None,
            Some(run) => next.try_pread(&mut buf[within(run.start, run.end)], run.start),
        }
    }

    pub(super) fn note_use(&self, slot: Slot, now: u64) -> Result<()> {
        match self.store.limits() {
            Some(_) => self.used.cursor().store(slot.number, Used(now)),
            None => Ok(()),
        }
    }

    /// Writes `bytes` at byte `within` of a block. With `through`, the layer below has the block
    /// after this, with these flags.
    ///
    /// # Errors
    /// Those of the layer below. ENOSPC: the block is in the cache, and the file system is full.
    pub(super) fn write_block(
        &self,
        next: &Next,
        block: u64,
        within: u64,
        bytes: &[u8],
        through: Option<Flags>,
        now: u64,
    ) -> Result<()> {
        let lock = self.lock(block);
        let slot = match self.write_to_slot(&lock, next, block, within, bytes)? {
            Written::Cached(slot) => slot,
            Written::Not => {
                let at = block * self.store.block_size() + within;
                next.pwrite(bytes, at, through.unwrap_or(Flags::empty()))?;
                return if through.is_none() { flush_own(next) } else { Ok(()) };
            }
        };
        self.note_use(slot, now)?;
        match through {
            None => Ok(()),
            Some(flags) => self.write_back(&lock, next, block, slot, flags),
        }
    }

    fn write_to_slot(
        &self,
        lock: &BlockLock<'_>,
        next: &Next,
        block: u64,
        within: u64,
        bytes: &[u8],
    ) -> Result<Written> {
        match self.map.cursor().load(block)?.0 {
            State::Absent => self.fill(lock, next, block, Some((within, bytes))),
            State::Dirty(slot) => {
                self.store.write(slot, within, bytes)?;
                Ok(Written::Cached(slot))
            }
            State::Clean(slot) => {
                self.store_dirty(block, slot)?;
                self.store.write(slot, within, bytes)?;
                Ok(Written::Cached(slot))
            }
        }
    }

    fn store_dirty(&self, block: u64, slot: Slot) -> Result<()> {
        self.store.count_dirty(self.export);
        self.map.cursor().store(block, State::Dirty(slot))
    }

    /// Brings an absent block into the cache: what is below, with `data` over it from a byte of the
    /// block on. With data it is dirty.
    fn fill(
        &self,
        lock: &BlockLock<'_>,
        next: &Next,
        block: u64,
        data: Option<(u64, &[u8])>,
    ) -> Result<Written> {
        let Some(slot) = self.allocate(block)? else { return Ok(Written::Not) };
        let mut is_full = false;
        let change = || {
            self.copy(next, block, slot, data, &mut is_full)?;
            match data {
                Some(_) => self.store_dirty(block, slot),
                None => self.map.cursor().store(block, State::Clean(slot)),
            }
        };
        match lock.change(slot.number, change, |left| self.recover(left)) {
            Ok(()) => Ok(Written::Cached(slot)),
            Err(_) if is_full => {
                self.store.set_full();
                Ok(Written::Not)
            }
            Err(error) => Err(error),
        }
    }

    /// Fills a slot. Sets `is_full` if the file system has no space for it.
    fn copy(
        &self,
        next: &Next,
        block: u64,
        slot: Slot,
        data: Option<(u64, &[u8])>,
        is_full: &mut bool,
    ) -> Result<()> {
        let (within, bytes) = data.unwrap_or((0, &[]));
        let data_end = within + bytes.len() as u64;
        let (length, start) = (self.length(block), block * self.store.block_size());
        let mut buf = vec![0; length.min(COPY_SIZE) as usize];
        for at in (0..length).step_by(COPY_SIZE as usize) {
            let end = length.min(at + COPY_SIZE);
            let chunk = &mut buf[..(end - at) as usize];
            let (from, to) = (within.clamp(at, end), data_end.clamp(at, end));
            if from != at || to != end {
                next.pread(chunk, start + at)?;
            }
            if from < to {
                let data = &bytes[(from - within) as usize..(to - within) as usize];
                chunk[(from - at) as usize..(to - at) as usize].copy_from_slice(data);
            }
            self.store.write(slot, at, chunk).inspect_err(|error| {
                *is_full = matches!(error.errno(), Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG);
            })?;
        }
        Ok(())
    }

    /// Takes a free slot for a block whose lock the caller has. `None`: there is none.
    fn allocate(&self, block: u64) -> Result<Option<Slot>> {
        let capacity = self.store.capacity();
        if self.store.in_use() >= capacity {
            return Ok(None);
        }
        let owner = Owner::Block { export: self.export, block };
        let mut owners = self.owners.cursor();
        for _ in 0..capacity.min(MAX_TRIES) {
            let number = self.store.hint();
            if owners.exchange(number, Owner::Free, owner)? {
                self.store.count_slot();
                return Ok(Some(self.store.to_fill(number)));
            }
        }
        Ok(None)
    }

    /// Frees a slot that no block is in.
    pub(super) fn free(&self, slot: Slot) -> Result<()> {
        self.store.punch(slot)?;
        self.owners.cursor().store(slot.number, Owner::Free)?;
        self.store.uncount_slot();
        Ok(())
    }

    /// Writes a dirty block to the layer below.
    pub(super) fn write_back(
        &self,
        _: &BlockLock<'_>,
        next: &Next,
        block: u64,
        slot: Slot,
        flags: Flags,
    ) -> Result<()> {
        let (length, start) = (self.length(block), block * self.store.block_size());
        let mut buf = vec![0; length.min(COPY_SIZE) as usize];
        for at in (0..length).step_by(COPY_SIZE as usize) {
            let chunk = &mut buf[..(length - at).min(COPY_SIZE) as usize];
            self.store.read(slot, at, chunk)?;
            next.pwrite(chunk, start + at, flags)?;
        }
        self.map.cursor().store(block, State::Clean(slot))?;
        self.store.uncount_dirty(self.export);
        Ok(())
    }

    /// Writes all dirty blocks of this export to the layer below, those of all clients. Goes on
    /// after errors.
    ///
    /// # Errors
    /// The first one.
    pub(super) fn write_back_all(&self, next: &Next) -> Result<()> {
        if !self.store.has_dirty(self.export) {
            return Ok(());
        }
        let mut result = Ok(());
        for found in self.map.present() {
            let written = found.and_then(|(block, state)| match state {
                State::Dirty(_) => self.write_back_one(next, block),
                State::Absent | State::Clean(_) => Ok(()),
            });
            result = result.and(written);
        }
        result
    }

    fn write_back_one(&self, next: &Next, block: u64) -> Result<()> {
        let lock = self.lock(block);
        match self.map.cursor().load(block)?.0 {
            State::Dirty(slot) => self.write_back(&lock, next, block, slot, Flags::empty()),
            State::Absent | State::Clean(_) => Ok(()),
        }
    }

    /// Brings a block into the cache, if there is space and it is not there.
    pub(super) fn prefetch(&self, next: &Next, block: u64, now: u64) -> Result<()> {
        if self.map.cursor().load(block)?.0 != State::Absent {
            return Ok(());
        }
        let lock = self.lock(block);
        if self.map.cursor().load(block)?.0 == State::Absent
            && let Written::Cached(slot) = self.fill(&lock, next, block, None)?
        {
            self.note_use(slot, now)?;
        }
        Ok(())
    }

    /// Removes a block from the cache, and with it what the layer below has not.
    pub(super) fn discard(&self, block: u64) -> Result<()> {
        let lock = self.lock(block);
        self.remove(&lock, &self.map, self.export, block)
    }

    /// Removes a block of any export from the cache.
    pub(super) fn remove(
        &self,
        lock: &BlockLock<'_>,
        map: &Map,
        export: usize,
        block: u64,
    ) -> Result<()> {
        let state = map.cursor().load(block)?.0;
        let Some(slot) = state.slot() else { return Ok(()) };
        let change = || {
            map.cursor().store(block, State::Absent)?;
            self.free(slot)
        };
        lock.change(slot.number, change, |left| self.recover(left))?;
        if matches!(state, State::Dirty(_)) {
            self.store.uncount_dirty(export);
        }
        Ok(())
    }

    fn lock(&self, block: u64) -> BlockLock<'_> {
        self.lock_in(&self.map, block)
    }

    /// The lock of a block of any export. One at a time: several blocks may have one lock.
    pub(super) fn lock_in(&self, map: &Map, block: u64) -> BlockLock<'_> {
        self.store.locks.lock(map, block, |left| self.recover(left))
    }

    /// The table of any export that was opened.
    pub(super) fn map_of(&self, export: usize) -> Result<Arc<Map>> {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = others.get(&export) {
            return Ok(Arc::clone(map));
        }
        let map = Arc::new(self.store.maps.get(export)?);
        if others.len() >= MAX_OTHERS {
            others.clear();
        }
        others.insert(export, Arc::clone(&map));
        Ok(map)
    }

    /// Frees the slot that a killed worker was filling or freeing, unless its block is in it.
    fn recover(&self, left: Unfinished) {
        // If a table is corrupt, the slot is lost.
        let _ = self.try_recover(left);
    }

    fn try_recover(&self, left: Unfinished) -> Result<()> {
        let Owner::Block { export, block } = self.owners.cursor().load(left.note)?.0 else {
            return Ok(());
        };
        let map = self.map_of(export)?;
        let state = map.cursor().load(block)?.0;
        let is_in_it = state.slot().is_some_and(|slot| slot.number == left.note);
        if map.position(block) == left.position && !is_in_it {
            self.free(Slot { number: left.note, fill: 0 })?;
        }
        Ok(())
    }
}

/// Flushes this connection's writes below, if no other connection's flush covers them.
pub(super) fn flush_own(next: &Next) -> Result<()> {
    if !next.can_multi_conn()? && next.can_flush()? { next.flush() } else { Ok(()) }
}
