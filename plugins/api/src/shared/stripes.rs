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
