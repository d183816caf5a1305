//! Contexts whose layer can be closed and opened anew (`nbdkit_next_reopen`).

use std::sync::{Arc, Mutex, PoisonError};

use super::absent;
use super::opened::Opened;
use crate::error::Result;

/// Opens a layer once more, for the client and the export of the context; read-only if that is
/// given.
pub(crate) type Opener = dyn Fn(bool) -> Result<Opened> + Send + Sync;

/// A layer that is open, and how to open it anew.
pub(super) struct Reopenable {
    open: Box<Opener>,
    /// Nothing is open after a reopening that failed. Locked while the layer is reopened, so that
    /// requests wait for the new one.
    current: Mutex<Option<Arc<Opened>>>,
}

impl Reopenable {
    pub(super) fn new(opened: Opened, open: Box<Opener>) -> Reopenable {
        Reopenable { open, current: Mutex::new(Some(Arc::new(opened))) }
    }

    /// The layer that is open now.
    ///
    /// # Errors
    /// EIO if there is none.
    pub(super) fn current(&self) -> Result<Arc<Opened>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.clone().ok_or_else(absent)
    }

    pub(super) fn reopen(&self, readonly: bool) -> Result<()> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = current.take() {
            // A layer that has to be reopened need not succeed in finalizing; it has logged why.
            let _ = old.finalize();
        }
        let opened = (self.open)(readonly)?;
        if let Err(error) = opened.prepare() {
            let _ = opened.finalize();
            return Err(error);
        }
        *current = Some(Arc::new(opened));
        Ok(())
    }
}
