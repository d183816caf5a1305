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

/// See the module's text.
#[derive(Debug)]
pub(super) struct Overlay {
    block_size: u64,
    clusters: SharedFile,
    /// The number of the first cluster that was never used.
    pub(super) free: SharedWords,
    pub(super) exports: ExportTables,
    pub(super) tables: Arc<SharedFile>,
    stripes: Vec<SharedMutex<0>>,
    /// Of each stripe: the cluster whose contents its holder is changing while the block's word says something else, plus one,
    /// or 0; and where that word is in the file of the tables.
    pub(super) moves: SharedWords,
    /// If there are limits.
    pub(super) accounts: Option<Accounts>,
    /// Whether the file system takes room back.
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
    /// Changes what is in `cluster` by `change`, which then says so in the table, or says first that the block is not there any more and
    /// then takes the room back. If it fails, or this process is killed in between, the cluster is left without room unless the
    /// table says that the block is in it: what nobody can find any more must not take room.
    ///
    /// # Errors
    /// Those of `change`.
    pub(super) fn change<T>(&self, cluster: u64, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let [moved, word] = self.overlay.moved(self.number);
        word.store(self.word, Ordering::Relaxed);
        // Who finds the cluster finds the word.
        moved.store(cluster.saturating_add(1), Ordering::Release);
        let result = change();
        match &result {
            Ok(_) => moved.store(0, Ordering::Release),
            Err(_) => self.overlay.settle(self.number),
        }
        result
    }

    /// Notes a change that never ends, as a worker that is killed does.
    #[cfg(test)]
    pub(super) fn leave(self, cluster: u64) {
        let [moved, word] = self.overlay.moved(self.number);
        word.store(self.word, Ordering::Relaxed);
        moved.store(cluster + 1, Ordering::Relaxed);
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
            moves: SharedWords::new(2 * STRIPES)?,
            accounts: limits.any().then(|| Accounts::new(limits)).transpose()?,
        })
    }

    pub(super) fn block_size(&self) -> u64 {
        self.block_size
    }

    /// The file with the data.
    #[cfg(test)]
    pub(super) fn file(&self) -> &SharedFile {
        &self.clusters
    }

    /// Whether room is given back by [`free`](Self::free).
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
        if self.moved(number)[0].load(Ordering::Acquire) != 0 {
            // The last holder died.
            self.settle(number);
        }
        Stripe { overlay: self, number, word: table.word(block), _locked: locked }
    }

    /// The words of a stripe: see `moves`.
    fn moved(&self, stripe: usize) -> [&AtomicU64; 2] {
        [&self.moves[2 * stripe], &self.moves[2 * stripe + 1]]
    }

    /// Takes back the room of a cluster whose holder did not come to the end. The stripe must be locked.
    fn settle(&self, stripe: usize) {
        let [moved, word] = self.moved(stripe);
        let Some(cluster) = moved.load(Ordering::Acquire).checked_sub(1) else { return };
        let mut bytes = [0; size_of::<u64>()];
        let at = word.load(Ordering::Relaxed).checked_mul(bytes.len() as u64);
        let read = at.map(|at| self.tables.read_at(&mut bytes, at));
        let state = Block::decode(u64::from_ne_bytes(bytes));
        // If it cannot be found out, it stays as it is.
        let is_there = !matches!(read, Some(Ok(())))
            || matches!(state, Ok(Block::Present(it) | Block::Unfreed(it)) if it == cluster);
        if !is_there {
            let _ = self.free(cluster);
        }
        moved.store(0, Ordering::Release);
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
