//! Contexts whose layer can be closed and opened anew (`nbdkit_next_reopen`).

use std::sync::{Arc, Mutex, PoisonError};

use super::absent;
use super::opened::Opened;
use crate::client::Client;
use crate::error::Result;
use crate::plugin::Open;
use crate::stack::Layer;

/// A layer that is open, and what it was opened with.
pub(super) struct Reopenable {
    layer: Arc<Layer>,
    /// `None` in contexts that serve several.
    client: Option<Arc<Client>>,
    export: String,
    tls: bool,
    /// Nothing is open after a reopening that failed. Locked while the layer is reopened, so that
    /// requests wait for the new one.
    current: Mutex<Option<Arc<Opened>>>,
}

impl Reopenable {
    pub(super) fn open(layer: &Arc<Layer>, open: &Open<'_>) -> Result<Reopenable> {
        let opened = Opened::open(layer, open)?;
        Ok(Reopenable {
            layer: Arc::clone(layer),
            client: open.client.cloned(),
            export: open.export.to_owned(),
            tls: open.tls,
            current: Mutex::new(Some(Arc::new(opened))),
        })
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
        let client = self.client.as_ref();
        let open = Open { client, readonly, export: &self.export, tls: self.tls };
        let opened = Opened::open(&self.layer, &open)?;
        if let Err(error) = opened.prepare() {
            let _ = opened.finalize();
            return Err(error);
        }
        *current = Some(Arc::new(opened));
        Ok(())
    }
}
