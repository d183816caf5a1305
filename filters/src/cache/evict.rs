//! Making room in a cache whose size is limited: the blocks that were used least recently leave it.

use std::sync::atomic::{AtomicU64, Ordering};

use nbdkit_api::{Flags, Next, Result};

use super::blocks::{Blocks, flush_own};
use super::state::{Owner, Slot, State};
use super::store::Limits;

/// Slots that are looked at to find out what is old.
const SAMPLES: u64 = 1 << 16;
/// Blocks that leave when the file system is full.
const AT_A_TIME: u64 = 64;
/// Blocks that are written in vain before eviction is tried again.
const BACK_OFF: u64 = 256;

/// Of one connection.
#[derive(Debug, Default)]
pub(super) struct Evictor {
    /// How often to do nothing, since nothing could be evicted.
    skip: AtomicU64,
}

impl Evictor {
    /// Evicts blocks if the cache is fuller than it should be. The caller has no block locked.
    /// Blocks that cannot be written below stay, and so do dirty ones of other exports.
    ///
    /// # Errors
    /// A table is corrupt.
    pub(super) fn make_room(&self, blocks: &Blocks, next: &Next) -> Result<()> {
        if blocks.store.take_full() {
            give_up_space(blocks, next)?;
        }
        let Some(limits) = blocks.store.limits() else { return Ok(()) };
        if blocks.store.in_use() <= limits.high {
            return Ok(());
        }
        let skip = |left: u64| left.checked_sub(1);
        if self.skip.fetch_update(Ordering::Relaxed, Ordering::Relaxed, skip).is_ok() {
            return Ok(());
        }
        let before = blocks.store.in_use();
        evict(blocks, next, limits)?;
        if blocks.store.in_use() >= before {
            self.skip.store(BACK_OFF, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Evicts some blocks because the file system is full, those first that came first.
fn give_up_space(blocks: &Blocks, next: &Next) -> Result<()> {
    let slots = blocks.store.oldest();
    let (mut evicted, mut wrote, mut owners) = (0, false, blocks.owners.cursor());
    let mut number = slots.start;
    while number < slots.end && evicted < AT_A_TIME {
        let (owner, holds) = owners.load(number)?;
        if let Owner::Block { export, block } = owner {
            evicted += u64::from(evict_one(blocks, next, number, export, block, &mut wrote)?);
        }
        number = number.saturating_add(holds);
    }
    blocks.store.set_oldest(number);
    if wrote { flush_own(next) } else { Ok(()) }
}

fn evict(blocks: &Blocks, next: &Next, limits: Limits) -> Result<()> {
    let cutoff = cutoff(blocks, limits)?;
    let mut wrote = false;
    let (mut owners, mut used) = (blocks.owners.cursor(), blocks.used.cursor());
    let mut seen = 0;
    for number in 0..limits.capacity {
        if blocks.store.in_use() <= limits.low {
            return if wrote { flush_own(next) } else { Ok(()) };
        }
        let Owner::Block { export, block } = owners.load(number)?.0 else { continue };
        seen += 1;
        if used.load(number)?.0.0 <= cutoff
            && evict_one(blocks, next, number, export, block, &mut wrote)?
        {
            seen -= 1;
        }
    }
    // Every slot was looked at: the count may have been off.
    blocks.store.set_in_use(seen);
    if wrote { flush_own(next) } else { Ok(()) }
}

/// The time of use up to which slots have to leave.
fn cutoff(blocks: &Blocks, limits: Limits) -> Result<u64> {
    let (mut owners, mut used) = (blocks.owners.cursor(), blocks.used.cursor());
    let mut times = Vec::new();
    for number in (0..limits.capacity).step_by(limits.capacity.div_ceil(SAMPLES).max(1) as usize) {
        if owners.load(number)?.0 != Owner::Free {
            times.push(used.load(number)?.0.0);
        }
    }
    times.sort_unstable();
    let in_use = blocks.store.in_use().max(1);
    let excess = in_use.saturating_sub(limits.low);
    let index = (times.len() as u128 * u128::from(excess)).div_ceil(u128::from(in_use));
    Ok(times.get((index as usize).saturating_sub(1)).or(times.last()).copied().unwrap_or(0))
}

/// Evicts the block in a slot, and returns whether the slot is free now.
fn evict_one(
    blocks: &Blocks,
    next: &Next,
    number: u64,
    export: usize,
    block: u64,
    wrote: &mut bool,
) -> Result<bool> {
    let map = blocks.map_of(export)?;
    let lock = blocks.lock_in(&map, block);
    let is_owner = blocks.owners.cursor().load(number)?.0 == Owner::Block { export, block };
    let state = map.cursor().load(block)?.0;
    match (is_owner, state.slot()) {
        (false, _) => return Ok(false),
        (true, Some(slot)) if slot.number == number => {}
        (true, _) => {
            // No worker is filling the slot, since the lock was free: the one that did was killed.
            blocks.free(Slot { number, fill: 0 })?;
            return Ok(true);
        }
    }
    if let State::Dirty(slot) = state {
        if export != blocks.export || !next.can_write()? {
            return Ok(false);
        }
        // What cannot be written stays where it is. The layer below has logged why.
        if blocks.write_back(&lock, next, block, slot, Flags::empty()).is_err() {
            return Ok(false);
        }
        *wrote = true;
    }
    blocks.remove(&lock, &map, export, block)?;
    Ok(true)
}
