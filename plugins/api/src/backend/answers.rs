//! Questions about a layer: each is asked once, in the name of the layer, and the answer is cached.

use std::sync::OnceLock;

use super::Backend;
use crate::debug_control;
use crate::error::{Errno, Error, Result};
use crate::exports::MAX_STRING;
use crate::layer::OpenLayer;
use crate::log;
use crate::types::{BlockSize, Blocking, Cache, Fua, Zero};

/// The answers so far.
#[derive(Default)]
pub(super) struct Answers {
    size: OnceLock<u64>,
    block_size: OnceLock<BlockSize>,
    can_write: OnceLock<bool>,
    can_flush: OnceLock<bool>,
    is_rotational: OnceLock<bool>,
    can_trim: OnceLock<bool>,
    can_zero: OnceLock<Zero>,
    can_fast_zero: OnceLock<bool>,
    can_extents: OnceLock<bool>,
    can_fua: OnceLock<Fua>,
    can_multi_conn: OnceLock<bool>,
    can_cache: OnceLock<Cache>,
    blocking: OnceLock<Blocking>,
}

impl Backend {
    /// Returns the cached answer, or asks the layer; `name` is the callback's.
    fn ask<T: Copy>(
        &self,
        name: &str,
        cached: impl Fn(&Answers) -> &OnceLock<T>,
        question: impl FnOnce(&dyn OpenLayer, &Backend) -> Result<T>,
    ) -> Result<T> {
        if let Ok(opened) = self.opened()
            && let Some(answer) = cached(&opened.answers).get()
        {
            return Ok(*answer);
        }
        self.call(|opened| {
            debug_control!("{}: {name}", self.name);
            let answer = question(&*opened.layer, opened.below())?;
            Ok(*cached(&opened.answers).get_or_init(|| answer))
        })
    }

    /// Size of the disk in bytes, at most `i64::MAX`.
    ///
    /// # Errors
    /// Those of the layer; every question below may fail the same way.
    pub fn size(&self) -> Result<u64> {
        self.ask("get_size", |answers| &answers.size, |layer, next| check_size(layer.size(next)?))
    }

    /// Text for NBD_INFO_DESCRIPTION, at most 4096 bytes.
    pub fn export_description(&self) -> Option<String> {
        let _entered = log::enter(self.speaker);
        debug_control!("{}: export_description", self.name);
        let opened = self.opened().ok()?;
        opened.layer.export_description(opened.below()).filter(|text| text.len() <= MAX_STRING)
    }

    /// Block size constraints that keep the rules; all zero for none.
    ///
    /// # Errors
    /// The layer's, or EINVAL if its answer breaks the rules.
    pub fn block_size(&self) -> Result<BlockSize> {
        self.ask(
            "block_size",
            |answers| &answers.block_size,
            |layer, next| {
                let size = layer.block_size(next)?;
                size.check().map_err(|why| Error::new(Errno::EINVAL, why))?;
                Ok(size)
            },
        )
    }

    /// Whether writing is allowed: never on a context that was opened read-only.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_write(&self) -> Result<bool> {
        if self.opened.as_ref().is_none_or(|opened| opened.readonly) {
            return Ok(false);
        }
        self.ask("can_write", |answers| &answers.can_write, |layer, next| layer.can_write(next))
    }

    /// Whether `flush` works.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_flush(&self) -> Result<bool> {
        self.ask("can_flush", |answers| &answers.can_flush, |layer, next| layer.can_flush(next))
    }

    /// Whether the disk behaves like a rotating one.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn is_rotational(&self) -> Result<bool> {
        self.ask(
            "is_rotational",
            |answers| &answers.is_rotational,
            |layer, next| layer.is_rotational(next),
        )
    }

    /// Whether `trim` works; never without writing.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_trim(&self) -> Result<bool> {
        if !self.can_write()? {
            return Ok(false);
        }
        self.ask("can_trim", |answers| &answers.can_trim, |layer, next| layer.can_trim(next))
    }

    /// What is done about zeroes; nothing without writing.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_zero(&self) -> Result<Zero> {
        if !self.can_write()? {
            return Ok(Zero::None);
        }
        self.ask("can_zero", |answers| &answers.can_zero, |layer, next| layer.can_zero(next))
    }

    /// Whether fast zero may be asked for; never if zeroes are not advertised.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_fast_zero(&self) -> Result<bool> {
        if self.can_zero()? == Zero::None {
            return Ok(false);
        }
        self.ask(
            "can_fast_zero",
            |answers| &answers.can_fast_zero,
            |layer, next| layer.can_fast_zero(next),
        )
    }

    /// Whether `extents` can say more than "all data".
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_extents(&self) -> Result<bool> {
        self.ask(
            "can_extents",
            |answers| &answers.can_extents,
            |layer, next| layer.can_extents(next),
        )
    }

    /// What is done about FUA; nothing without writing.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_fua(&self) -> Result<Fua> {
        if !self.can_write()? {
            return Ok(Fua::None);
        }
        self.ask("can_fua", |answers| &answers.can_fua, |layer, next| layer.can_fua(next))
    }

    /// Whether a flush on one connection covers the writes of all.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_multi_conn(&self) -> Result<bool> {
        self.ask(
            "can_multi_conn",
            |answers| &answers.can_multi_conn,
            |layer, next| layer.can_multi_conn(next),
        )
    }

    /// What is done about cache requests.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_cache(&self) -> Result<Cache> {
        self.ask("can_cache", |answers| &answers.can_cache, |layer, next| layer.can_cache(next))
    }

    /// How long data requests may take.
    pub fn blocking(&self) -> Blocking {
        let Ok(opened) = self.opened() else { return Blocking::Never };
        let ask = || opened.layer.blocking(opened.below());
        *opened.answers.blocking.get_or_init(ask)
    }
}

fn check_size(size: u64) -> Result<u64> {
    if size > i64::MAX as u64 {
        return Err(Error::new(
            Errno::EOVERFLOW,
            format!("get_size: size {size} is larger than 2^63-1"),
        ));
    }
    Ok(size)
}
