//! What all clients share: the file with the data of the overlay in clusters of the size of a
//! block, the tables that say which block is where, and the locks for moving blocks.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use nbdkit_api::shared::{Locked, SharedFile, SharedMutex, SharedWords};
use nbdkit_api::{Errno, Error, Result};

use super::exports::{ALL_TABLES, ExportTables};
use super::table::Table;

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
}

impl Overlay {
    /// An overlay in an unlinked file in `$TMPDIR`.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn new(block_size: u64) -> Result<Overlay> {
        Ok(Overlay {
            block_size,
            clusters: SharedFile::temporary("cow overlay", 0)?,
            free: SharedWords::new(1)?,
            exports: ExportTables::new()?,
            // As long as it will ever be, so that no worker ever changes its length.
            tables: Arc::new(SharedFile::in_memory("cow-tables", ALL_TABLES)?),
            stripes: (0..STRIPES).map(|_| SharedMutex::new([])).collect::<Result<_>>()?,
        })
    }

    pub(super) fn block_size(&self) -> u64 {
        self.block_size
    }

    /// The table of an export whose disk has `size` bytes.
    ///
    /// # Errors
    /// Those of [`ExportTables::find`].
    pub(super) fn table(&self, export: &str, size: u64) -> Result<Table> {
        let blocks = size.div_ceil(self.block_size);
        let base = self.exports.find(export, size, blocks)?;
        Ok(Table::new(Arc::clone(&self.tables), base, blocks))
    }

    /// Holds up others who want to move this block.
    pub(super) fn lock(&self, table: &Table, block: u64) -> Locked<'_, 0> {
        // The base is a multiple of a power of two; its upper bits tell tables apart.
        let mixed = (table.base() >> 20).wrapping_add(block);
        self.stripes[(mixed % STRIPES as u64) as usize].lock()
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
