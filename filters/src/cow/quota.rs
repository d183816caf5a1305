//! How much room the overlay takes, of each export, of all together, and of one connection, and how much it may.
//!
//! What is counted are blocks whose clusters hold room. The account of an export is a word that all workers share; what is
//! true stands in its table. A worker may be killed at any moment: before it changes the table it marks the account as unknown, and
//! puts the number there when the table is changed. Whoever finds an account unknown counts the table.
//!
//! A request for several new blocks is carried out as a whole or not at all, so it reserves room for all of them first. There is one such
//! request at a time, which holds `turn`: a reservation that was left by a worker that died is void once another has it.
//!
//! Order of locks: `turn`, the stripe of a block, `account`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nbdkit_api::exports::MAX_EXPORTS;
use nbdkit_api::shared::{Locked, SharedMutex, SharedWords};
use nbdkit_api::{Errno, Error, Result};

use super::overlay::Overlay;
use super::table::{Block, Cursor};

/// An account that a worker is changing, or was when it died.
const UNKNOWN: u64 = u64::MAX;

/// Most blocks; `None` for no limit.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Limits {
    /// Of an export.
    pub(super) export: Option<u64>,
    /// Of all exports together.
    pub(super) total: Option<u64>,
    /// That one connection may add.
    pub(super) connection: Option<u64>,
}

impl Limits {
    pub(super) fn any(self) -> bool {
        self.export.or(self.total).or(self.connection).is_some()
    }
}

/// What workers share.
#[derive(Debug)]
pub(super) struct Accounts {
    limits: Limits,
    /// Blocks of each export that hold room, or [`UNKNOWN`].
    pub(super) blocks: SharedWords,
    /// Blocks that the holder of `turn` will take: word 0, and its export: word 1.
    pub(super) reserved: SharedWords,
    account: SharedMutex<0>,
    turn: SharedMutex<0>,
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
            turn: SharedMutex::new([])?,
        })
    }
}

/// The account of one export as one connection uses it.
#[derive(Debug)]
pub(super) struct Quota {
    overlay: Arc<Overlay>,
    /// Of the export.
    number: usize,
    /// Blocks that this connection has added and that were not given back.
    added: AtomicU64,
}

/// A change of a block's state that changes the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Take,
    GiveBack,
}

impl Quota {
    /// `None` if there is no limit.
    pub(super) fn new(overlay: &Arc<Overlay>, number: usize) -> Option<Quota> {
        overlay.accounts.as_ref()?;
        Some(Quota { overlay: Arc::clone(overlay), number, added: AtomicU64::new(0) })
    }

    /// The account of this export, bytes.
    ///
    /// # Errors
    /// The table cannot be counted.
    pub(super) fn bytes(&self) -> Result<u64> {
        let _locked = self.accounts()?.account.lock();
        Ok(self.count(self.number)?.saturating_mul(self.overlay.block_size()))
    }

    fn accounts(&self) -> Result<&Accounts> {
        let accounts = self.overlay.accounts.as_ref();
        accounts.ok_or_else(|| Error::new(Errno::EIO, "cow: there are no accounts"))
    }

    /// Blocks of an export that hold room. The account must be locked.
    fn count(&self, number: usize) -> Result<u64> {
        let word = &self.accounts()?.blocks[number];
        let known = word.load(Ordering::Relaxed);
        if known != UNKNOWN {
            return Ok(known);
        }
        let count = self.overlay.table_of(number)?.count()?;
        word.store(count, Ordering::Relaxed);
        Ok(count)
    }

    /// Whether `more` blocks may be added now; those that are reserved are taken. The account must be locked.
    fn check(&self, more: u64) -> Result<()> {
        let accounts = self.accounts()?;
        let reserved = accounts.reserved[0].load(Ordering::Relaxed);
        if let Some(most) = accounts.limits.export {
            let same = accounts.reserved[1].load(Ordering::Relaxed) == self.number as u64;
            let more = more.saturating_add(if same { reserved } else { 0 });
            if self.count(self.number)?.saturating_add(more) > most {
                return Err(full("cow-max"));
            }
        }
        if let Some(most) = accounts.limits.total {
            let mut sum = more.saturating_add(reserved);
            for number in 0..self.overlay.exports.count() {
                sum = sum.saturating_add(self.count(number)?);
            }
            if sum > most {
                return Err(full("cow-max-total"));
            }
        }
        Ok(())
    }

    /// Counts `more` blocks as added by this connection, if it may add so many.
    fn add(&self, more: u64) -> Result<()> {
        let Some(most) = self.accounts()?.limits.connection else { return Ok(()) };
        let add = |added: u64| added.checked_add(more).filter(|sum| *sum <= most);
        let added = self.added.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        added.map(drop).map_err(|_| connection_is_full())
    }

    fn take_off(&self, fewer: u64) {
        let take_off = |added: u64| Some(added.saturating_sub(fewer));
        let _ = self.added.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take_off);
    }

    /// Fails early where there is no room for one more block, before it is filled.
    ///
    /// # Errors
    /// ENOSPC.
    pub(super) fn foresee(&self, reservation: Option<&Reservation<'_>>) -> Result<()> {
        if reservation.is_some() {
            return Ok(());
        }
        let most = self.accounts()?.limits.connection;
        if most.is_some_and(|most| self.added.load(Ordering::Relaxed) >= most) {
            return Err(connection_is_full());
        }
        let _locked = self.accounts()?.account.lock();
        self.check(1)
    }

    /// Stores the state of a block that holds room from now on, and did not before.
    ///
    /// # Errors
    /// ENOSPC: there is no room for it, and nothing was stored.
    pub(super) fn take(
        &self,
        reservation: Option<&Reservation<'_>>,
        cursor: &mut Cursor<'_>,
        block: u64,
        state: Block,
    ) -> Result<()> {
        let locked = self.accounts()?.account.lock();
        let reserved = reservation.is_some_and(Reservation::take_one);
        if !reserved {
            self.add(1)?;
            if let Err(error) = self.check(1) {
                self.take_off(1);
                return Err(error);
            }
        }
        self.store(Change::Take, cursor, block, state)?;
        drop(locked);
        Ok(())
    }

    /// Stores the state of a block that holds no room any more.
    ///
    /// # Errors
    /// EIO.
    pub(super) fn give_back(
        &self,
        cursor: &mut Cursor<'_>,
        block: u64,
        state: Block,
    ) -> Result<()> {
        let _locked = self.accounts()?.account.lock();
        self.store(Change::GiveBack, cursor, block, state)?;
        self.take_off(1);
        Ok(())
    }

    /// The account must be locked.
    fn store(
        &self,
        change: Change,
        cursor: &mut Cursor<'_>,
        block: u64,
        state: Block,
    ) -> Result<()> {
        let count = self.count(self.number)?;
        let word = &self.accounts()?.blocks[self.number];
        word.store(UNKNOWN, Ordering::Relaxed);
        cursor.store(block, state)?;
        let now = match change {
            Change::Take => count.saturating_add(1),
            Change::GiveBack => count.saturating_sub(1),
        };
        // Not before the state is there.
        word.store(now, Ordering::Release);
        Ok(())
    }

    /// Holds up other requests for several new blocks, and reserves room for as many as `wanted` says then.
    ///
    /// # Errors
    /// ENOSPC.
    pub(super) fn reserve(&self, wanted: impl FnOnce() -> Result<u64>) -> Result<Reservation<'_>> {
        let accounts = self.accounts()?;
        let turn = accounts.turn.lock();
        // What one left that died.
        accounts.reserved[0].store(0, Ordering::Relaxed);
        let wanted = wanted()?;
        self.add(wanted)?;
        let reservation =
            Reservation { quota: self, accounts, left: AtomicU64::new(wanted), _turn: turn };
        let _locked = accounts.account.lock();
        self.check(wanted)?;
        accounts.reserved[1].store(self.number as u64, Ordering::Relaxed);
        accounts.reserved[0].store(wanted, Ordering::Relaxed);
        Ok(reservation)
    }

    /// Whether another request has reserved room, which it may give back.
    pub(super) fn is_reserved(&self) -> bool {
        self.accounts().is_ok_and(|it| it.reserved[0].load(Ordering::Relaxed) > 0)
    }
}

fn full(limit: &str) -> Error {
    Error::new(Errno::ENOSPC, format!("cow: no room in the overlay: {limit} is reached"))
}

fn connection_is_full() -> Error {
    full("cow-max-connection")
}

/// Room for the blocks of a request.
#[derive(Debug)]
pub(super) struct Reservation<'a> {
    quota: &'a Quota,
    accounts: &'a Accounts,
    left: AtomicU64,
    _turn: Locked<'a, 0>,
}

impl Reservation<'_> {
    /// Uses one block of it; false if there is none left. The account must be locked.
    fn take_one(&self) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return false;
        }
        self.left.store(left - 1, Ordering::Relaxed);
        self.accounts.reserved[0].store(left - 1, Ordering::Relaxed);
        true
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.quota.take_off(self.left.load(Ordering::Relaxed));
        let _locked = self.accounts.account.lock();
        self.accounts.reserved[0].store(0, Ordering::Relaxed);
    }
}
