//! `cow-max`, `cow-max-total`, `cow-max-connection`: limits on the space that overlays use.
//!
//! The unit is a block whose cluster holds space. Each export has an account, a word in shared
//! memory, which caches the number of such blocks in its table. A worker may be killed at any
//! moment, so it sets the account to UNKNOWN, stores the block's state in the table, and then sets
//! the account to the new number. A worker that finds UNKNOWN counts the table.
//!
//! A request that needs several new blocks is carried out completely or not at all: it reserves
//! them first. One such request runs at a time and holds the mutex `reserving`. A reservation left
//! by a killed worker is cleared by the next holder.
//!
//! Lock order: `reserving`, the stripe of a block, `account`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nbdkit_api::shared::Locked;
use nbdkit_api::{Errno, Error, Result};

use super::accounts::{Accounts, UNKNOWN};
use super::overlay::Overlay;
use super::table::{self, Block, Cursor};

/// The account of one export, as seen by one connection.
#[derive(Debug)]
pub(super) struct Quota {
    overlay: Arc<Overlay>,
    /// Of the export.
    number: usize,
    /// Blocks that this connection has added, less those that it has trimmed.
    added: AtomicU64,
}

impl Quota {
    /// `None` if there is no limit.
    pub(super) fn new(overlay: &Arc<Overlay>, number: usize) -> Option<Quota> {
        overlay.accounts.as_ref()?;
        Some(Quota { overlay: Arc::clone(overlay), number, added: AtomicU64::new(0) })
    }

    /// The space that the overlay of this export uses, bytes.
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

    /// The number of blocks of an export that hold space. The caller holds `account`.
    fn count(&self, number: usize) -> Result<u64> {
        let word = &self.accounts()?.blocks[number];
        let known = word.load(Ordering::Relaxed);
        if known != UNKNOWN {
            return Ok(known);
        }
        let count = table::count(&self.overlay.tables.get(number)?)?;
        word.store(count, Ordering::Relaxed);
        Ok(count)
    }

    /// Checks the shared limits for `more` blocks besides those that are reserved. The caller holds
    /// `account`.
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
            for number in 0..self.overlay.tables.count() {
                sum = sum.saturating_add(self.count(number)?);
            }
            if sum > most {
                return Err(full("cow-max-total"));
            }
        }
        Ok(())
    }

    /// Charges `more` blocks to this connection, if its limit allows.
    fn add(&self, more: u64) -> Result<()> {
        let Some(most) = self.accounts()?.limits.connection else { return Ok(()) };
        let add = |added: u64| added.checked_add(more).filter(|sum| *sum <= most);
        let added = self.added.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        added.map(drop).map_err(|_| connection_is_full())
    }

    fn subtract(&self, fewer: u64) {
        let subtract = |added: u64| Some(added.saturating_sub(fewer));
        let _ = self.added.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
    }

    /// Fails before a new block is filled if [`charge`](Self::charge) would fail afterwards.
    ///
    /// # Errors
    /// ENOSPC.
    pub(super) fn check_space(&self, reservation: Option<&Reservation<'_>>) -> Result<()> {
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

    /// Stores the state of a block that did not hold space and now does, and charges it.
    ///
    /// # Errors
    /// ENOSPC: a limit is reached, and nothing was stored.
    pub(super) fn charge(
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
                self.subtract(1);
                return Err(error);
            }
        }
        self.store(cursor, block, state, |count| count.saturating_add(1))?;
        drop(locked);
        Ok(())
    }

    /// Stores the state of a block that does not hold space any more, and uncharges it.
    ///
    /// # Errors
    /// EIO.
    pub(super) fn uncharge(&self, cursor: &mut Cursor<'_>, block: u64, state: Block) -> Result<()> {
        let _locked = self.accounts()?.account.lock();
        self.store(cursor, block, state, |count| count.saturating_sub(1))?;
        self.subtract(1);
        Ok(())
    }

    /// Stores a block's state and the new account, in an order that a killed worker cannot leave
    /// inconsistent. The caller holds `account`.
    fn store(
        &self,
        cursor: &mut Cursor<'_>,
        block: u64,
        state: Block,
        update: impl FnOnce(u64) -> u64,
    ) -> Result<()> {
        let count = self.count(self.number)?;
        let word = &self.accounts()?.blocks[self.number];
        word.store(UNKNOWN, Ordering::Relaxed);
        cursor.store(block, state)?;
        // Release: not visible before the block's state.
        word.store(update(count), Ordering::Release);
        Ok(())
    }

    /// Locks out other requests that need a reservation, and reserves as many blocks as `wanted`
    /// counts then.
    ///
    /// # Errors
    /// ENOSPC.
    pub(super) fn reserve(&self, wanted: impl FnOnce() -> Result<u64>) -> Result<Reservation<'_>> {
        let accounts = self.accounts()?;
        let reserving = accounts.reserving.lock();
        // A killed worker may have left one.
        accounts.reserved[0].store(0, Ordering::Relaxed);
        let wanted = wanted()?;
        self.add(wanted)?;
        let reservation = Reservation {
            quota: self,
            accounts,
            left: AtomicU64::new(wanted),
            _reserving: reserving,
        };
        let _locked = accounts.account.lock();
        self.check(wanted)?;
        accounts.reserved[1].store(self.number as u64, Ordering::Relaxed);
        accounts.reserved[0].store(wanted, Ordering::Relaxed);
        Ok(reservation)
    }

    /// Whether some request, perhaps of a killed worker, has a reservation.
    pub(super) fn has_reservation(&self) -> bool {
        self.accounts().is_ok_and(|it| it.reserved[0].load(Ordering::Relaxed) > 0)
    }
}

fn full(limit: &str) -> Error {
    Error::new(Errno::ENOSPC, format!("cow: no space in the overlay: {limit} is reached"))
}

fn connection_is_full() -> Error {
    full("cow-max-connection")
}

/// Blocks that are reserved for a request; what is not used is released when this is dropped.
#[derive(Debug)]
pub(super) struct Reservation<'a> {
    quota: &'a Quota,
    accounts: &'a Accounts,
    left: AtomicU64,
    _reserving: Locked<'a, 0>,
}

impl Reservation<'_> {
    /// Uses one reserved block; false if none is left. The caller holds `account`.
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
        self.quota.subtract(self.left.load(Ordering::Relaxed));
        let _locked = self.accounts.account.lock();
        self.accounts.reserved[0].store(0, Ordering::Relaxed);
    }
}
