//! Locks for changing what a word of a block map stands for, together with something outside the
//! map: a cluster that is filled or freed, a block that is copied.
//!
//! The holder of a lock notes what it is doing before it does it. If it is killed meanwhile, the
//! next holder finds the note and undoes or completes the change.

#![forbid(unsafe_code)]

use std::sync::atomic::AtomicU64;

use crate::error::Result;
use crate::shared::access;
use crate::shared::blocks::{BlockState, SharedBlockMap};
use crate::shared::{Locked, SharedMutex, SharedWords};

/// Locks; blocks that are changed at the same time should rarely have the same one.
const STRIPES: usize = 64;

/// A change that a holder did not complete: it was killed, or it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfinished {
    /// What the holder noted: the number of a cluster, say. Any, if a worker is hostile.
    pub note: u64,
    /// Where the word of its block stands, for
    /// [`SharedBlockMaps::word_at`](super::SharedBlockMaps::word_at). Any likewise.
    pub position: u64,
}

/// The locks of all blocks of all exports. Made in the template.
#[derive(Debug)]
pub struct BlockLocks {
    stripes: Vec<SharedMutex<0>>,
    /// For each stripe two words: the note of its holder plus one, or 0, and the position of the
    /// block's word.
    notes: SharedWords,
}

/// A block that is locked for a change.
#[derive(Debug)]
pub struct BlockLock<'a> {
    locks: &'a BlockLocks,
    stripe: usize,
    position: u64,
    _locked: Locked<'a, 0>,
}

impl BlockLocks {
    /// # Errors
    /// ENOMEM, EMFILE.
    pub fn new() -> Result<BlockLocks> {
        Ok(BlockLocks {
            stripes: (0..STRIPES).map(|_| SharedMutex::new([])).collect::<Result<_>>()?,
            notes: SharedWords::new(2 * STRIPES)?,
        })
    }

    /// Waits until nobody else changes this block. If the last holder of the lock was killed,
    /// `recover` is called first, with what that holder was doing, perhaps to another block. It may
    /// be called again for the same change if this process is killed in turn.
    pub fn lock<S: BlockState>(
        &self,
        map: &SharedBlockMap<S>,
        block: u64,
        recover: impl FnOnce(Unfinished),
    ) -> BlockLock<'_> {
        let position = map.position(block);
        // Maps begin at multiples of a power of two; the upper bits tell them apart.
        let stripe = ((position >> 17).wrapping_add(position) % STRIPES as u64) as usize;
        let locked = self.stripes[stripe].lock();
        self.recover(stripe, recover);
        BlockLock { locks: self, stripe, position, _locked: locked }
    }

    fn notes_of(&self, stripe: usize) -> [&AtomicU64; 2] {
        [&self.notes[2 * stripe], &self.notes[2 * stripe + 1]]
    }

    /// Calls `recover` if there is a note. The caller holds the stripe.
    fn recover(&self, stripe: usize, recover: impl FnOnce(Unfinished)) {
        let [note, position] = self.notes_of(stripe);
        if let Some(noted) = access::load(note).checked_sub(1) {
            recover(Unfinished { note: noted, position: access::peek(position) });
            access::store(note, 0);
        }
    }

    /// Whether no change is being made, and none was left unfinished. For tests.
    #[doc(hidden)]
    pub fn are_clean(&self) -> bool {
        (0..STRIPES).all(|stripe| access::load(self.notes_of(stripe)[0]) == 0)
    }

    /// For the fuzz targets, which are hostile workers: any of the notes.
    #[cfg(any(test, feature = "fuzz"))]
    #[doc(hidden)]
    pub fn scribble(&self, index: usize, word: u64) {
        access::store(&self.notes[index % self.notes.len()], word);
    }
}

impl BlockLock<'_> {
    /// Runs `change` under a note, at most `u64::MAX - 1`. If `change` fails, `recover` is called
    /// at once; if this process is killed meanwhile, by the next holder of the lock.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn change<T>(
        &self,
        note: u64,
        change: impl FnOnce() -> Result<T>,
        recover: impl FnOnce(Unfinished),
    ) -> Result<T> {
        self.note(note);
        let result = change();
        match &result {
            Ok(_) => access::store(self.locks.notes_of(self.stripe)[0], 0),
            Err(_) => self.locks.recover(self.stripe, recover),
        }
        result
    }

    fn note(&self, note: u64) {
        let [word, position] = self.locks.notes_of(self.stripe);
        access::put(position, self.position);
        access::store(word, note.saturating_add(1));
    }

    /// Leaves a note, as a worker that is killed in the middle of a change does. For tests.
    #[doc(hidden)]
    pub fn abandon(self, note: u64) {
        self.note(note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Errno, Error};
    use crate::shared::deaths;
    use crate::shared::{SharedBlockMaps, SharedWords};

    /// A block that is in a cluster, by the number of the cluster plus one.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Cluster(u64);

    impl BlockState for Cluster {
        const ABSENT: Cluster = Cluster(0);

        fn encode(self) -> u64 {
            self.0
        }

        fn decode(word: u64) -> Result<Cluster> {
            Ok(Cluster(word))
        }
    }

    struct Disk {
        maps: SharedBlockMaps,
        locks: BlockLocks,
        map: SharedBlockMap<Cluster>,
        /// For each cluster whether it holds space.
        space: SharedWords,
    }

    impl Disk {
        fn new() -> Disk {
            let maps = SharedBlockMaps::new("test", 4096).unwrap();
            let (_, map) = maps.open("", 1 << 30).unwrap();
            Disk {
                maps,
                locks: BlockLocks::new().unwrap(),
                map,
                space: SharedWords::new(2).unwrap(),
            }
        }

        /// Frees the cluster that was being filled, unless the block is in it.
        fn recover(&self, left: Unfinished) {
            let word = self.maps.word_at(left.position).unwrap();
            if word != left.note + 1 {
                access::store(&self.space[left.note as usize], 0);
            }
        }

        /// Moves block 5 to a cluster. The change fails after the first half if `fails`.
        fn fill(&self, cluster: u64, fails: bool) -> Result<()> {
            let lock = self.locks.lock(&self.map, 5, |left| self.recover(left));
            let change = || {
                access::store(&self.space[cluster as usize], 1);
                if fails {
                    return Err(Error::silent(Errno::ENOSPC));
                }
                self.map.cursor().store(5, Cluster(cluster + 1))
            };
            lock.change(cluster, change, |left| self.recover(left))
        }

        fn block(&self) -> Cluster {
            self.map.cursor().load(5).unwrap().0
        }

        fn holds_space(&self, cluster: usize) -> bool {
            access::load(&self.space[cluster]) != 0
        }
    }

    #[test]
    fn a_change_that_fails_is_recovered_from_at_once() {
        let disk = Disk::new();
        disk.fill(0, true).unwrap_err();
        assert!(!disk.holds_space(0) && disk.locks.are_clean());
        disk.fill(0, false).unwrap();
        assert!(disk.holds_space(0) && disk.locks.are_clean());
        assert_eq!(disk.block(), Cluster(1));
    }

    #[test]
    fn a_change_that_is_killed_at_any_step_leaves_no_space_that_no_block_has() {
        deaths::alone(
            "shared::stripes::tests::\
             a_change_that_is_killed_at_any_step_leaves_no_space_that_no_block_has",
            || {
                deaths::at_every_step(
                    Disk::new,
                    |disk| disk.fill(0, false).unwrap(),
                    |disk, how| {
                        // Another block of the same lock.
                        drop(disk.locks.lock(&disk.map, 5 + 64, |left| disk.recover(left)));
                        assert_eq!(disk.holds_space(0), disk.block() == Cluster(1), "{how}");
                        assert!(disk.locks.are_clean(), "{how}");
                        disk.fill(1, false).unwrap();
                        assert_eq!(disk.block(), Cluster(2), "{how}");
                    },
                );
            },
        );
    }
}
