//! The accounts of [`quota`](super::quota): how much space each export uses, in memory that all
//! workers share.

use nbdkit_api::Result;
use nbdkit_api::exports::MAX_EXPORTS;
use nbdkit_api::shared::{SharedMutex, SharedWords};

/// An account that a worker is changing, or was changing when it was killed.
pub(super) const UNKNOWN: u64 = u64::MAX;

/// Limits in blocks; `None` for no limit.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Limits {
    /// Of an export.
    pub(super) export: Option<u64>,
    /// Of all exports together.
    pub(super) total: Option<u64>,
    /// Added by one connection.
    pub(super) connection: Option<u64>,
}

impl Limits {
    pub(super) fn any(self) -> bool {
        self.export.or(self.total).or(self.connection).is_some()
    }
}

/// The accounts of all exports, shared by all workers.
#[derive(Debug)]
pub(super) struct Accounts {
    pub(super) limits: Limits,
    /// For each export the number of blocks that hold space, or [`UNKNOWN`].
    pub(super) blocks: SharedWords,
    /// Word 0: blocks reserved by the holder of `reserving`. Word 1: the number of its export.
    pub(super) reserved: SharedWords,
    /// Held while accounts are read or changed.
    pub(super) account: SharedMutex<0>,
    /// Held by a request that has a reservation.
    pub(super) reserving: SharedMutex<0>,
}

impl Accounts {
    /// # Errors
    /// ENOMEM, EMFILE.
    pub(super) fn new(limits: Limits) -> Result<Accounts> {
        Ok(Accounts {
            limits,
            blocks: SharedWords::new(MAX_EXPORTS)?,
            reserved: SharedWords::new(2)?,
            account: SharedMutex::new([])?,
            reserving: SharedMutex::new([])?,
        })
    }
}
