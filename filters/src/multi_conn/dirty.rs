//! Which connections, and which exports, have something to flush.

use std::sync::atomic::{AtomicU64, Ordering};

use nbdkit_api::Result;
use nbdkit_api::exports::MAX_EXPORTS;
use nbdkit_api::shared::{BlockState, SharedBlockMaps, SharedWords};

/// The connection has changed the disk since its last flush.
pub(super) const WRITTEN: u64 = 1;
/// The connection has read, and may have what it read in a cache.
pub(super) const READ: u64 = 2;

/// What one connection has done since its last flush.
#[derive(Debug, Default)]
pub(super) struct Own(AtomicU64);

impl Own {
    pub(super) fn note(&self, bits: u64) {
        note(&self.0, bits);
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }

    /// What it has done, which is being flushed.
    pub(super) fn take(&self) -> u64 {
        self.0.swap(0, Ordering::SeqCst)
    }
}

/// Adds bits to a word that many look at and few have to change.
pub(super) fn note(word: &AtomicU64, bits: u64) {
    if word.load(Ordering::SeqCst) & bits != bits {
        word.fetch_or(bits, Ordering::SeqCst);
    }
}

/// For each export how many writes there were, and how many the last flush has found.
#[derive(Debug)]
pub(super) struct Epochs {
    /// Numbers the names; nothing is stored in the maps.
    names: SharedBlockMaps,
    words: SharedWords,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Nothing;

impl BlockState for Nothing {
    const ABSENT: Nothing = Nothing;

    fn encode(self) -> u64 {
        0
    }

    fn decode(_: u64) -> Result<Nothing> {
        Ok(Nothing)
    }
}

impl Epochs {
    /// # Errors
    /// ENOMEM, EMFILE.
    pub(super) fn new() -> Result<Epochs> {
        Ok(Epochs {
            names: SharedBlockMaps::new("multi-conn", 1)?,
            words: SharedWords::new(2 * MAX_EXPORTS)?,
        })
    }

    /// The number of an export, below [`MAX_EXPORTS`].
    ///
    /// # Errors
    /// ENOSPC: there are too many.
    pub(super) fn export(&self, name: &str) -> Result<usize> {
        Ok(self.names.open::<Nothing>(name, 0)?.0 % MAX_EXPORTS)
    }

    /// The disk of an export was changed.
    pub(super) fn written(&self, export: usize) {
        self.words[2 * export].fetch_add(1, Ordering::SeqCst);
    }

    /// How many changes there were.
    pub(super) fn now(&self, export: usize) -> u64 {
        self.words[2 * export].load(Ordering::SeqCst)
    }

    /// A flush that began when there were so many changes has succeeded.
    pub(super) fn flushed(&self, export: usize, changes: u64) {
        self.words[2 * export + 1].fetch_max(changes, Ordering::SeqCst);
    }

    /// Whether this export, or any, has changes that no flush has found.
    pub(super) fn is_dirty(&self, export: Option<usize>) -> bool {
        let is_dirty =
            |export: usize| self.now(export) != self.words[2 * export + 1].load(Ordering::SeqCst);
        match export {
            Some(export) => is_dirty(export),
            None => (0..self.names.count()).any(is_dirty),
        }
    }
}
