//! What all clients share: the file with the data of the overlay in clusters of the size of a
//! block, the tables that say which block is where, and the locks for moving blocks.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use nbdkit_api::shared::{
    BlockLock, BlockLocks, BlockState, SharedBlockMaps, SharedFile, SharedWords, Unfinished,
};
use nbdkit_api::{Errno, Error, Result, page_cache};

use super::accounts::{Accounts, Limits};
use super::table::{Block, Table};

/// The overlay of all exports: clusters, tables, locks.
#[derive(Debug)]
pub(super) struct Overlay {
    block_size: u64,
    clusters: SharedFile,
    /// The number of the first cluster that was never used.
    pub(super) free: SharedWords,
    pub(super) tables: SharedBlockMaps,
    /// A holder notes the cluster that it fills or frees.
    pub(super) locks: BlockLocks,
    /// If there are limits.
    pub(super) accounts: Option<Accounts>,
    /// Whether the file system can punch holes.
    frees: bool,
}

/// A block that is locked for moving it.
#[derive(Debug)]
pub(super) struct Stripe<'a> {
    overlay: &'a Overlay,
    lock: BlockLock<'a>,
}

impl Stripe<'_> {
    /// Runs `change`, which fills `cluster` and then stores the block's state, or stores it and
    /// then frees `cluster`. If `change` fails or this process is killed meanwhile, the cluster is
    /// freed unless the table refers to it: data that nobody can read must not use space.
    ///
    /// # Errors
    /// Those of `change`.
    pub(super) fn with_pending<T>(
        &self,
        cluster: u64,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.lock.change(cluster, change, |unfinished| self.overlay.reclaim(unfinished))
    }

    /// Leaves `cluster` pending, as a killed worker does.
    #[cfg(test)]
    pub(super) fn abandon(self, cluster: u64) {
        self.lock.abandon(cluster);
    }
}

impl Overlay {
    /// An overlay in an unlinked file in `$TMPDIR`.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn new(block_size: u64, limits: Limits) -> Result<Overlay> {
        Overlay::in_file(SharedFile::temporary("cow overlay", 0)?, block_size, limits)
    }

    /// An overlay in this empty file.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn in_file(
        clusters: SharedFile,
        block_size: u64,
        limits: Limits,
    ) -> Result<Overlay> {
        Ok(Overlay {
            block_size,
            frees: clusters.punch_hole(0, block_size).is_ok(),
            clusters,
            free: SharedWords::new(1)?,
            tables: SharedBlockMaps::new("cow", block_size)?,
            locks: BlockLocks::new()?,
            accounts: limits.any().then(|| Accounts::new(limits)).transpose()?,
        })
    }

    pub(super) fn block_size(&self) -> u64 {
        self.block_size
    }

    /// The file that holds the clusters.
    #[cfg(test)]
    pub(super) fn file(&self) -> &SharedFile {
        &self.clusters
    }

    /// Whether [`free`](Self::free) frees space.
    pub(super) fn frees(&self) -> bool {
        self.frees
    }

    /// Holds up others who want to move this block.
    pub(super) fn lock(&self, table: &Table, block: u64) -> Stripe<'_> {
        let lock = self.locks.lock(table, block, |unfinished| self.reclaim(unfinished));
        Stripe { overlay: self, lock }
    }

    /// Frees the cluster of a change that was not completed unless the table refers to it.
    fn reclaim(&self, unfinished: Unfinished) {
        let cluster = unfinished.note;
        // If the word cannot be read, the cluster is kept.
        let Some(word) = self.tables.word_at(unfinished.position) else { return };
        match Block::decode(word) {
            Ok(Block::Present(it) | Block::Unfreed(it)) if it == cluster => {}
            _ => drop(self.free(cluster)),
        }
    }

    /// The number of a cluster that was never used. If it is not used now either, it is lost, which
    /// costs nothing but its number.
    ///
    /// # Errors
    /// ENOSPC if the file cannot be that long.
    pub(super) fn allocate(&self) -> Result<u64> {
        let cluster = self.free[0].fetch_add(1, Ordering::Relaxed);
        self.offset(cluster)
            .map(|_| cluster)
            .map_err(|_| Error::new(Errno::ENOSPC, "cow: the overlay is full"))
    }

    /// Where a cluster begins in the file.
    ///
    /// # Errors
    /// EIO: the number makes no sense.
    pub(super) fn offset(&self, cluster: u64) -> Result<u64> {
        cluster
            .checked_mul(self.block_size)
            .filter(|&at| at <= i64::MAX as u64 - self.block_size)
            .ok_or_else(|| Error::new(Errno::EIO, format!("cow: there is no cluster {cluster}")))
    }

    /// Gives the space of a cluster back to the file system, if that is possible there.
    ///
    /// # Errors
    /// EIO.
    pub(super) fn free(&self, cluster: u64) -> Result<()> {
        match self.clusters.punch_hole(self.offset(cluster)?, self.block_size) {
            Err(error) if !error.is_unsupported() => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads from the file.
    ///
    /// # Errors
    /// EIO.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        self.clusters.read_at(buf, at)
    }

    /// As [`read`](Self::read), if all of it is in the page cache; false otherwise.
    pub(super) fn read_now(&self, buf: &mut [u8], at: u64) -> bool {
        page_cache::read_now(self.clusters.as_fd(), buf, at) == Ok(buf.len())
    }

    /// Writes to the file.
    ///
    /// # Errors
    /// ENOSPC, EIO.
    pub(super) fn write(&self, buf: &[u8], at: u64) -> Result<()> {
        self.clusters.write_at(buf, at)
    }
}
