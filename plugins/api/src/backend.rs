//! [`Backend`]: the wrapper around each open layer of the stack, which holds nbdkit's contract in one
//! place. The server calls the outermost one; each filter calls the one below.
//!
//! - this file: opening, preparing, finalizing and closing;
//! - [`answers`]: questions about the layer, each asked once and cached;
//! - [`data`]: requests, whose ranges are checked and which are traced;
//! - [`fast`]: the ways around a request's callbacks: answers that cannot block, ranges of files;
//! - [`emulate`]: zeroes and prefetching done by writing and reading;
//! - [`extents`]: `nbdkit_extents_full` and `nbdkit_extents_aligned`.
//!
//! nbdkit-plugin(3) and nbdkit-filter(3), "Callbacks".

mod answers;
mod data;
pub(crate) mod emulate;
mod extents;
mod fast;

use std::sync::Arc;

use self::answers::Answers;
use crate::debug_control;
use crate::error::{Errno, Error, Result};
use crate::filter::Slot;
use crate::layer::OpenLayer;
use crate::log::{self, Speaker};
use crate::plugin::Open;
use crate::stack::{Layer, Module, log_once};

/// The wrapper of a filter that opened nothing below itself.
static ABSENT: Backend =
    Backend { name: "nbdkit", speaker: Speaker { layer: None, connection: 0 }, opened: None };

/// An open layer of the stack, as a connection or a shared context uses it.
pub struct Backend {
    name: &'static str,
    speaker: Speaker,
    /// `None` in [`ABSENT`] alone.
    opened: Option<Opened>,
}

/// What `open` made, with what it said about itself.
struct Opened {
    /// Declared before the layer below, so it is dropped (closed) first.
    layer: Box<dyn OpenLayer>,
    /// `None` below a plugin, and below a filter that opened nothing.
    below: Option<Arc<Backend>>,
    readonly: bool,
    prepared: bool,
    answers: Answers,
}

impl Opened {
    fn below(&self) -> &Backend {
        self.below.as_deref().unwrap_or(&ABSENT)
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Backend {
    /// The drop of the layer, which follows, is `.close`.
    fn drop(&mut self) {
        let _entered = log::enter(self.speaker);
        debug_control!("{}: close", self.name);
    }
}

impl Backend {
    /// Opens a configured layer and, through it, those below.
    ///
    /// # Errors
    /// A layer refused; nothing stays open.
    pub(crate) fn open(layer: &Arc<Layer>, open: &Open<'_>) -> Result<Backend> {
        let speaker = Speaker {
            layer: Some(layer.speaker),
            connection: open.client.map_or(0, |client| client.number()),
        };
        let (opened, below) = match &layer.module {
            Module::Plugin(plugin) => (plugin.open(open)?.into_layer(), None),
            Module::Filter(filter, below) => {
                let mut slot = Slot::new(below);
                let opened = filter.open(&mut slot, open)?;
                (opened, slot.into_backend())
            }
        };
        let opened = Opened {
            layer: opened,
            below,
            readonly: open.readonly,
            prepared: false,
            answers: Answers::default(),
        };
        Ok(Backend { name: layer.name(), speaker, opened: Some(opened) })
    }

    /// Name of the layer.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The open layer.
    ///
    /// # Errors
    /// EIO if the filter above opened none.
    fn opened(&self) -> Result<&Opened> {
        self.opened
            .as_ref()
            .ok_or_else(|| Error::new(Errno::EIO, "there is no open layer below this filter"))
    }

    /// Runs a callback in the name of this layer; an error that the callback made is logged here.
    fn call<T>(&self, body: impl FnOnce(&Opened) -> Result<T>) -> Result<T> {
        let _entered = log::enter(self.speaker);
        self.opened().and_then(body).map_err(log_once)
    }

    /// Prepares this layer after those below it. A context that a filter put in place with
    /// [`Slot::set`] is shared: the filter prepares and finalizes it.
    ///
    /// # Errors
    /// A layer failed; the context must be dropped.
    pub fn prepare(&mut self) -> Result<()> {
        let Some(opened) = &mut self.opened else { return Ok(()) };
        if let Some(below) = opened.below.as_mut().and_then(Arc::get_mut) {
            below.prepare()?;
        }
        let _entered = log::enter(self.speaker);
        debug_control!("{}: prepare readonly={}", self.name, u8::from(opened.readonly));
        let below = opened.below.as_deref().unwrap_or(&ABSENT);
        opened.layer.prepare(below, opened.readonly).map_err(log_once)?;
        opened.prepared = true;
        Ok(())
    }

    /// Finalizes this layer and then those below it, as far as they were prepared.
    ///
    /// # Errors
    /// The first failure; the client must be cut off.
    pub fn finalize(&mut self) -> Result<()> {
        let Some(opened) = &mut self.opened else { return Ok(()) };
        if !std::mem::take(&mut opened.prepared) {
            return Ok(());
        }
        let _entered = log::enter(self.speaker);
        debug_control!("{}: finalize", self.name);
        let own = opened.layer.finalize(opened.below()).map_err(log_once);
        let below = opened.below.as_mut().and_then(Arc::get_mut);
        own.and(below.map_or(Ok(()), Backend::finalize))
    }
}
