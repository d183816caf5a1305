//! For the fuzz targets: what workers share, to be scribbled on.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use nbdkit_api::{Filter, Open, OpenLayer, Result, Slot};

use super::accounts::Limits;
use super::overlay::Overlay;
use super::{Cow, Handle, OnRead};

/// What is scribbled on.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// The word of this block in the first table.
    Table(u64),
    /// The next free cluster.
    Free,
    /// This byte of the list of exports.
    Exports(u64),
    /// The number of exports (0) and of windows (1).
    Counts(usize),
    /// The account of this export.
    Accounts(usize),
    /// This note of those who move blocks.
    Moves(usize),
}

/// A cow filter's shared state.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Overlay>);

impl Shared {
    /// For blocks of so many bytes, a power of two.
    ///
    /// # Errors
    /// No memory, no file.
    pub fn new(block_size: u64) -> Result<Shared> {
        Ok(Shared(Arc::new(Overlay::new(
            block_size,
            Limits { export: Some(64), total: Some(64), connection: None },
        )?)))
    }

    /// The filter that uses it; it needs no configuration.
    pub fn filter(&self) -> Box<dyn Filter> {
        Box::new(Ready(Cow::default(), Arc::clone(&self.0)))
    }

    /// Puts a word somewhere, as any worker can.
    ///
    /// # Errors
    /// The kernel's.
    pub fn scribble(&self, place: Place, word: u64) -> Result<()> {
        match place {
            Place::Table(block) => {
                self.0.tables.scribble_map(block, word)?;
            }
            Place::Free => self.0.free[0].store(word, Ordering::Relaxed),
            Place::Exports(at) => self.0.tables.scribble_list(at, word)?,
            Place::Accounts(number) => {
                if let Some(accounts) = &self.0.accounts {
                    accounts.blocks[number % accounts.blocks.len()].store(word, Ordering::Relaxed);
                }
            }
            Place::Moves(index) => {
                self.0.locks.scribble(index, word);
            }
            Place::Counts(index) => self.0.tables.scribble_counts(index, word),
        }
        Ok(())
    }
}

/// A cow filter that is ready before it is told to be.
struct Ready(Cow, Arc<Overlay>);

impl Filter for Ready {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(&open.readonly(true))?;
        Ok(Box::new(Handle {
            export: open.export.to_owned(),
            overlay: Arc::clone(&self.1),
            on_cache: true,
            on_read: OnRead::Never,
            blocks: std::sync::OnceLock::new(),
        }))
    }
}
