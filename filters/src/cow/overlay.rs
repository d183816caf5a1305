//! What all clients share: the file with the data of the overlay in clusters of the size of a
//! block, the tables that say which block is where, and the locks for moving blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nbdkit_api::shared::{Locked, SharedFile, SharedMutex, SharedWords};
use nbdkit_api::{Errno, Error, Result};

use super::exports::{ALL_TABLES, ExportTables};
use super::quota::{Accounts, Limits};
use super::table::{Block, Table};

/// Locks; blocks that are moved at the same time should rarely have the same one.
const STRIPES: usize = 64;

/// The overlay of all exports: clusters, tables, locks.
#[derive(Debug)]
pub(super) struct Overlay {
    block_size: u64,
    clusters: SharedFile,
    /// The number of the first cluster that was never used.
    pub(super) free: SharedWords,
    pub(super) exports: ExportTables,
    pub(super) tables: Arc<SharedFile>,
    stripes: Vec<SharedMutex<0>>,
    /// For each stripe two words: the cluster that its holder fills or frees, plus one, or 0; and
    /// the position of the block's word in the file of the tables. Read by the next holder if that
    /// one was killed.
    pub(super) pending: SharedWords,
    /// If there are limits.
    pub(super) accounts: Option<Accounts>,
    /// Whether the file system can punch holes.
    frees: bool,
}

/// A stripe that is locked for moving one block.
#[derive(Debug)]
pub(super) struct Stripe<'a> {
    overlay: &'a Overlay,
    number: usize,
    /// Of the block.
    word: u64,
    _locked: Locked<'a, 0>,
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
        let [pending, word] = self.overlay.pending_of(self.number);
        word.store(self.word, Ordering::Relaxed);
        // Release: the word above is visible first.
        pending.store(cluster.saturating_add(1), Ordering::Release);
        let result = change();
        match &result {
            Ok(_) => pending.store(0, Ordering::Release),
            Err(_) => self.overlay.reclaim(self.number),
        }
        result
    }

    /// Leaves `cluster` pending, as a killed worker does.
    #[cfg(test)]
    pub(super) fn abandon(self, cluster: u64) {
        let [pending, word] = self.overlay.pending_of(self.number);
        word.store(self.word, Ordering::Relaxed);
        pending.store(cluster + 1, Ordering::Relaxed);
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
            exports: ExportTables::new()?,
            // As long as it will ever be, so that no worker ever changes its length.
            tables: Arc::new(SharedFile::in_memory("cow-tables", ALL_TABLES)?),
            stripes: (0..STRIPES).map(|_| SharedMutex::new([])).collect::<Result<_>>()?,
            pending: SharedWords::new(2 * STRIPES)?,
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

    /// The number and the table of an export whose disk has `size` bytes.
    ///
    /// # Errors
    /// Those of [`ExportTables::find`].
    pub(super) fn table(&self, export: &str, size: u64) -> Result<(usize, Table)> {
        let blocks = size.div_ceil(self.block_size);
        let (number, base) = self.exports.find(export, size, blocks)?;
        Ok((number, Table::new(Arc::clone(&self.tables), base, blocks)))
    }

    /// The table of an export that was opened before.
    ///
    /// # Errors
    /// EIO.
    pub(super) fn table_of(&self, number: usize) -> Result<Table> {
        let (size, base) = self.exports.get(number, self.block_size)?;
        Ok(Table::new(Arc::clone(&self.tables), base, size.div_ceil(self.block_size)))
    }

    /// Holds up others who want to move this block.
    pub(super) fn lock(&self, table: &Table, block: u64) -> Stripe<'_> {
        // The base is a multiple of a power of two; its upper bits tell tables apart.
        let mixed = (table.base() >> 20).wrapping_add(block);
        let number = (mixed % STRIPES as u64) as usize;
        let locked = self.stripes[number].lock();
        if self.pending_of(number)[0].load(Ordering::Acquire) != 0 {
            // The last holder was killed.
            self.reclaim(number);
        }
        Stripe { overlay: self, number, word: table.word(block), _locked: locked }
    }

    /// The two words of a stripe in `pending`.
    fn pending_of(&self, stripe: usize) -> [&AtomicU64; 2] {
        [&self.pending[2 * stripe], &self.pending[2 * stripe + 1]]
    }

    /// Frees the pending cluster of a stripe unless the table refers to it. The caller holds the
    /// stripe.
    fn reclaim(&self, stripe: usize) {
        let [pending, word] = self.pending_of(stripe);
        let Some(cluster) = pending.load(Ordering::Acquire).checked_sub(1) else { return };
        let mut bytes = [0; size_of::<u64>()];
        let at = word.load(Ordering::Relaxed).checked_mul(bytes.len() as u64);
        let read = at.map(|at| self.tables.read_at(&mut bytes, at));
        let state = Block::decode(u64::from_ne_bytes(bytes));
        // If the word cannot be read, the cluster is kept.
        let is_used = !matches!(read, Some(Ok(())))
            || matches!(state, Ok(Block::Present(it) | Block::Unfreed(it)) if it == cluster);
        if !is_used {
            let _ = self.free(cluster);
        }
        pending.store(0, Ordering::Release);
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

    /// Writes to the file.
    ///
    /// # Errors
    /// ENOSPC, EIO.
    pub(super) fn write(&self, buf: &[u8], at: u64) -> Result<()> {
        self.clusters.write_at(buf, at)
    }
}
