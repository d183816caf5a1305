//! State that all clients of a server share although each has a process of its own: kernel objects
//! made before the first fork and inherited.
//!
//! - [`SharedFile`]: bytes, sparse, in memory (memfd) or in an unlinked temporary file.
//! - [`SharedWords`]: an array of atomic 64-bit words.
//! - [`SharedBlockMaps`], [`SharedBlockMap`]: for each export a word per block of its disk, and
//!   [`BlockLocks`] for changing what a word stands for.
//! - [`SharedMutex`]: a few words under a lock that a killed worker cannot wedge (`presence`: who
//!   is alive).
//! - [`RangeLock`]: ranges of a disk, shared or exclusive.
//! - [`SharedOnce`]: work that one process does for all.
//! - [`SharedEvent`]: waiting for what another process changes.
//! - [`TokenBucket`], [`TokenBuckets`]: a rate for all clients together, or for each key.
//!
//! docs/shared-state.md says what each costs and what is not promised.
//!
//! Make them up to `get_ready`; what is made later is seen by one process only. Another worker may
//! have been taken over by its client: what is read from shared state is checked like any input.

mod access;
mod blocks;
mod bucket;
mod buckets;
#[cfg(test)]
mod deaths;
mod event;
mod exports;
pub mod file;
mod futex;
pub mod map;
pub mod mutex;
mod once;
mod presence;
mod ranges;
mod stripes;

pub use blocks::{BlockCursor, BlockState, Present, SharedBlockMap};
pub use bucket::{Rate, TokenBucket};
pub use buckets::TokenBuckets;
pub use event::SharedEvent;
pub use exports::SharedBlockMaps;
pub use file::{SharedFile, seek_extents};
pub use map::SharedWords;
pub use mutex::{Locked, SharedMutex};
pub use once::SharedOnce;
pub use ranges::{LockedRange, RangeLock, Sharing};
pub use stripes::{BlockLock, BlockLocks, Unfinished};
