//! Questions about a layer: each is asked once, in the name of the layer, and the answer is cached.

use std::sync::OnceLock;

use super::opened::Opened;
use super::{Backend, Context, Next, OpenLayer};
use crate::debug_control;
use crate::error::{Errno, Error, Result};
use crate::exports::MAX_STRING;
use crate::types::{BlockSize, Blocking, Cache, DataPath, Direction, Fua, Zero};

impl Opened {
    /// Returns the cached answer, or asks the layer; `name` is the callback's.
    fn ask<T: Copy>(
        &self,
        name: &str,
        cached: &OnceLock<T>,
        question: impl FnOnce(&dyn OpenLayer, &Next) -> Result<T>,
    ) -> Result<T> {
        if let Some(answer) = cached.get() {
            return Ok(*answer);
        }
        self.call(|| {
            debug_control!("{}: {name}", self.name);
            let answer = question(&*self.layer, self.next())?;
            Ok(*cached.get_or_init(|| answer))
        })
    }

    pub(super) fn size(&self) -> Result<u64> {
        self.ask("get_size", &self.answers.size, |layer, next| check_size(layer.size(next)?))
    }

    pub(super) fn can_write(&self) -> Result<bool> {
        if self.is_readonly() {
            return Ok(false);
        }
        self.ask("can_write", &self.answers.can_write, |layer, next| layer.can_write(next))
    }

    pub(super) fn data_path(&self, direction: Direction) -> DataPath {
        let cached = match direction {
            Direction::Read => &self.answers.reads,
            Direction::Write => &self.answers.writes,
        };
        *cached.get_or_init(|| self.layer.data_path(direction))
    }
}

impl Backend {
    /// Size of the disk in bytes, at most `i64::MAX`.
    ///
    /// # Errors
    /// Those of the layer; every question below may fail the same way.
    pub fn size(&self) -> Result<u64> {
        self.with(Opened::size)
    }

    /// Text for NBD_INFO_DESCRIPTION, at most 4096 bytes.
    pub fn export_description(&self) -> Option<String> {
        let text = self.with(|opened| {
            let _entered = opened.enter();
            debug_control!("{}: export_description", opened.name);
            Ok(opened.layer.export_description(opened.next()))
        });
        text.ok().flatten().filter(|text| text.len() <= MAX_STRING)
    }

    /// Block size constraints that keep the rules; all zero for none.
    ///
    /// # Errors
    /// The layer's, or EINVAL if its answer breaks the rules.
    pub fn block_size(&self) -> Result<BlockSize> {
        self.with(|opened| {
            opened.ask("block_size", &opened.answers.block_size, |layer, next| {
                let size = layer.block_size(next)?;
                size.check().map_err(|why| Error::new(Errno::EINVAL, why))?;
                Ok(size)
            })
        })
    }

    /// Whether writing is allowed: never on a context that was opened read-only.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_write(&self) -> Result<bool> {
        self.with(Opened::can_write)
    }

    /// Whether `flush` works.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_flush(&self) -> Result<bool> {
        self.with(|opened| {
            opened.ask("can_flush", &opened.answers.can_flush, |layer, next| layer.can_flush(next))
        })
    }

    /// Whether the disk behaves like a rotating one.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn is_rotational(&self) -> Result<bool> {
        self.with(|opened| {
            opened.ask("is_rotational", &opened.answers.is_rotational, |layer, next| {
                layer.is_rotational(next)
            })
        })
    }

    /// Whether `trim` works; never without writing.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_trim(&self) -> Result<bool> {
        if !self.can_write()? {
            return Ok(false);
        }
        self.with(|opened| {
            opened.ask("can_trim", &opened.answers.can_trim, |layer, next| layer.can_trim(next))
        })
    }

    /// What is done about zeroes; nothing without writing.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_zero(&self) -> Result<Zero> {
        if !self.can_write()? {
            return Ok(Zero::None);
        }
        self.with(|opened| {
            opened.ask("can_zero", &opened.answers.can_zero, |layer, next| layer.can_zero(next))
        })
    }

    /// Whether fast zero may be asked for; never if zeroes are not advertised.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_fast_zero(&self) -> Result<bool> {
        if self.can_zero()? == Zero::None {
            return Ok(false);
        }
        self.with(|opened| {
            opened.ask("can_fast_zero", &opened.answers.can_fast_zero, |layer, next| {
                layer.can_fast_zero(next)
            })
        })
    }

    /// Whether `extents` can answer more than "all data".
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_extents(&self) -> Result<bool> {
        self.with(|opened| {
            opened.ask("can_extents", &opened.answers.can_extents, |layer, next| {
                layer.can_extents(next)
            })
        })
    }

    /// What is done about FUA; nothing without writing.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_fua(&self) -> Result<Fua> {
        if !self.can_write()? {
            return Ok(Fua::None);
        }
        self.with(|opened| {
            opened.ask("can_fua", &opened.answers.can_fua, |layer, next| layer.can_fua(next))
        })
    }

    /// Whether a flush on one connection covers the writes of all.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_multi_conn(&self) -> Result<bool> {
        self.with(|opened| {
            opened.ask("can_multi_conn", &opened.answers.can_multi_conn, |layer, next| {
                layer.can_multi_conn(next)
            })
        })
    }

    /// What is done about cache requests.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_cache(&self) -> Result<Cache> {
        self.with(|opened| {
            opened.ask("can_cache", &opened.answers.can_cache, |layer, next| layer.can_cache(next))
        })
    }

    /// How long data requests may take.
    pub fn blocking(&self) -> Blocking {
        match &self.context {
            Context::Fixed(opened) => {
                let ask = || opened.layer.blocking().max(opened.next().blocking());
                *opened.answers.blocking.get_or_init(ask)
            }
            // A request may have to wait for the layer to be reopened.
            Context::Reopenable(_) => Blocking::Long,
            Context::Absent => Blocking::Never,
        }
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
