//! What all clients share: the file with the cached blocks in slots of the size of a block, the
//! tables of blocks and slots, and the locks for changing a block.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use nbdkit_api::exports::MAX_EXPORTS;
use nbdkit_api::shared::{BlockLocks, SharedBlockMaps, SharedFile, SharedMutex, SharedWords};
use nbdkit_api::{Errno, Error, Result, page_cache};

use super::state::{FILL_MASK, MAX_SLOTS, Slot};

/// How full the file may become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Slots.
    pub(super) capacity: u64,
    /// Beyond so many slots, blocks are evicted,
    pub(super) high: u64,
    /// until there are so many.
    pub(super) low: u64,
}

/// Shared words: where to look for a free slot, how many are in use (about: workers may be killed
/// between taking a slot and counting it), the count of requests, the count of fills, whether the
/// file system was full, and the slot where to begin to make room then.
const HINT: usize = 0;
const IN_USE: usize = 1;
const CLOCK: usize = 2;
const FILLS: usize = 3;
const FULL: usize = 4;
const OLDEST: usize = 5;

/// The cache of all exports.
#[derive(Debug)]
pub(super) struct Store {
    block_size: u64,
    limits: Option<Limits>,
    file: SharedFile,
    pub(super) maps: SharedBlockMaps,
    /// Two tables with a word for each slot: the owner, and when it was used.
    pub(super) slots: SharedBlockMaps,
    pub(super) locks: BlockLocks,
    /// Locked while an export is flushed whose plugin does not flush for all connections.
    pub(super) flushing: SharedMutex<0>,
    words: SharedWords,
    /// For each export how many blocks are dirty: at least, if workers were killed.
    dirty: SharedWords,
}

impl Store {
    /// # Errors
    /// The kernel's.
    pub(super) fn new(file: SharedFile, block_size: u64, limits: Option<Limits>) -> Result<Store> {
        Ok(Store {
            block_size,
            limits,
            file,
            maps: SharedBlockMaps::new("cache", block_size)?,
            slots: SharedBlockMaps::new("cache-slots", 1)?,
            locks: BlockLocks::new()?,
            flushing: SharedMutex::new([])?,
            words: SharedWords::new(6)?,
            dirty: SharedWords::new(MAX_EXPORTS)?,
        })
    }

    pub(super) fn block_size(&self) -> u64 {
        self.block_size
    }

    pub(super) fn limits(&self) -> Option<Limits> {
        self.limits
    }

    /// How many slots there can be.
    pub(super) fn capacity(&self) -> u64 {
        self.limits.map_or(MAX_SLOTS, |limits| limits.capacity)
    }

    /// About how many slots are in use.
    pub(super) fn in_use(&self) -> u64 {
        self.words[IN_USE].load(Ordering::Relaxed)
    }

    /// Corrects the count.
    pub(super) fn set_in_use(&self, count: u64) {
        self.words[IN_USE].store(count, Ordering::Relaxed);
    }

    pub(super) fn count_slot(&self) {
        self.words[IN_USE].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn uncount_slot(&self) {
        decrement(&self.words[IN_USE]);
    }

    /// Where to look for a free slot next.
    pub(super) fn hint(&self) -> u64 {
        self.words[HINT].fetch_add(1, Ordering::Relaxed) % self.capacity()
    }

    /// The slot with this number, which is about to be filled.
    pub(super) fn to_fill(&self, number: u64) -> Slot {
        let fill = self.words[FILLS].fetch_add(1, Ordering::Relaxed) & FILL_MASK;
        Slot { number, fill: fill as u32 }
    }

    /// Notes that the file system has no space for a block.
    pub(super) fn set_full(&self) {
        self.words[FULL].store(1, Ordering::Relaxed);
    }

    /// Whether the file system was full; only the first one to ask gets to know.
    pub(super) fn take_full(&self) -> bool {
        self.words[FULL].load(Ordering::Relaxed) != 0
            && self.words[FULL].swap(0, Ordering::Relaxed) != 0
    }

    /// The slots that were given out, from the one that is looked at next to make room on. All,
    /// if there were more slots than there can be.
    pub(super) fn oldest(&self) -> std::ops::Range<u64> {
        let end = self.words[HINT].load(Ordering::Relaxed).min(self.capacity());
        let start = self.words[OLDEST].load(Ordering::Relaxed);
        if start < end { start..end } else { 0..end }
    }

    pub(super) fn set_oldest(&self, number: u64) {
        self.words[OLDEST].store(number, Ordering::Relaxed);
    }

    /// Counts a request.
    pub(super) fn tick(&self) -> u64 {
        self.words[CLOCK].fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn has_dirty(&self, export: usize) -> bool {
        self.dirty[export % MAX_EXPORTS].load(Ordering::SeqCst) != 0
    }

    /// Called before a block is stored as dirty.
    pub(super) fn count_dirty(&self, export: usize) {
        self.dirty[export % MAX_EXPORTS].fetch_add(1, Ordering::SeqCst);
    }

    /// Called after a block is no longer dirty.
    pub(super) fn uncount_dirty(&self, export: usize) {
        decrement(&self.dirty[export % MAX_EXPORTS]);
    }

    /// Where a slot begins in the file.
    fn offset(&self, slot: Slot) -> Result<u64> {
        slot.number
            .checked_mul(self.block_size)
            .filter(|at| slot.number < self.capacity() && *at <= i64::MAX as u64 - self.block_size)
            .ok_or_else(|| Error::new(Errno::EIO, format!("cache: no slot {}", slot.number)))
    }

    /// Reads from byte `within` of a slot.
    ///
    /// # Errors
    /// EIO.
    pub(super) fn read(&self, slot: Slot, within: u64, buf: &mut [u8]) -> Result<()> {
        self.file.read_at(buf, self.offset(slot)? + within)
    }

    /// As [`read`](Self::read), if all of it is in the page cache; false otherwise.
    pub(super) fn read_now(&self, slot: Slot, within: u64, buf: &mut [u8]) -> bool {
        let Ok(offset) = self.offset(slot) else { return false };
        let read = page_cache::read_now(self.file.as_fd(), buf, offset + within);
        read == Ok(buf.len())
    }

    /// Writes to byte `within` of a slot.
    ///
    /// # Errors
    /// ENOSPC, EIO.
    pub(super) fn write(&self, slot: Slot, within: u64, buf: &[u8]) -> Result<()> {
        self.file.write_at(buf, self.offset(slot)? + within)
    }

    /// Gives the space of a slot back to the file system, if that is possible there.
    ///
    /// # Errors
    /// EIO.
    pub(super) fn punch(&self, slot: Slot) -> Result<()> {
        match self.file.punch_hole(self.offset(slot)?, self.block_size) {
            Err(error) if !error.is_unsupported() => Err(error),
            _ => Ok(()),
        }
    }

    #[cfg(test)]
    pub(super) fn limit_for_test(&mut self, capacity: u64) {
        self.limits = Some(Limits { capacity, high: capacity, low: capacity });
    }

    /// Bytes that the file takes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.file.used().unwrap()
    }
}

fn decrement(word: &AtomicU64) {
    let _ = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1));
}
