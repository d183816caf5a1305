//! One layer from `open` to `close`.

use std::sync::{Mutex, PoisonError};

use super::cached::Answers;
use super::{Next, OpenLayer};
use crate::debug_control;
use crate::error::{Result, log_once};
use crate::log::{self, Speaker};

/// What `open` made, with its answers so far.
pub(crate) struct Opened {
    pub(super) name: &'static str,
    speaker: Speaker,
    /// Declared before the layer below, so it is dropped (closed) first.
    pub(super) layer: Box<dyn OpenLayer>,
    below: Below,
    readonly: bool,
    /// Locked while the layer is prepared.
    prepared: Mutex<bool>,
    pub(super) answers: Answers,
}

/// What a filter has below.
#[derive(Default)]
pub(crate) struct Below {
    pub(crate) next: Next,
    /// The context was opened for this connection, hence is prepared and finalized with it.
    pub(crate) owned: bool,
}

impl Drop for Opened {
    /// The drop of the layer, which follows, is `.close`.
    fn drop(&mut self) {
        let _entered = log::enter(self.speaker);
        debug_control!("{}: close", self.name);
    }
}

impl Opened {
    /// What the `open` of the layer called `name` made, for requests of `speaker`.
    pub(crate) fn new(
        name: &'static str,
        speaker: Speaker,
        layer: Box<dyn OpenLayer>,
        below: Below,
        readonly: bool,
    ) -> Opened {
        Opened {
            name,
            speaker,
            layer,
            below,
            readonly,
            prepared: Mutex::new(false),
            answers: Answers::default(),
        }
    }

    pub(super) fn next(&self) -> &Next {
        &self.below.next
    }

    pub(super) fn is_readonly(&self) -> bool {
        self.readonly
    }

    /// What this thread logs from now on is logged in the name of this layer.
    pub(super) fn enter(&self) -> log::Entered {
        log::enter(self.speaker)
    }

    /// Runs a callback in the name of this layer; an error that the callback made is logged here.
    pub(super) fn call<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let _entered = self.enter();
        body().map_err(log_once)
    }

    pub(super) fn prepare(&self) -> Result<()> {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if *prepared {
            return Ok(());
        }
        if self.below.owned {
            self.next().prepare()?;
        }
        self.call(|| {
            debug_control!("{}: prepare readonly={}", self.name, u8::from(self.readonly));
            self.layer.prepare(self.next(), self.readonly)
        })?;
        *prepared = true;
        Ok(())
    }

    pub(super) fn finalize(&self) -> Result<()> {
        let prepared = {
            let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *prepared)
        };
        let own = if prepared {
            self.call(|| {
                debug_control!("{}: finalize", self.name);
                self.layer.finalize(self.next())
            })
        } else {
            Ok(())
        };
        // Layers below that were prepared are finalized even if this one failed to prepare.
        let below = if self.below.owned { self.next().finalize() } else { Ok(()) };
        own.and(below)
    }
}
