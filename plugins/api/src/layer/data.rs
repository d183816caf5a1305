//! Data requests: the range is checked, the request traced, and then carried out by the layer.

use super::opened::Opened;
use super::{Backend, emulate};
use crate::error::{Errno, Error, Result};
use crate::extents::{ExtentKind, Extents};
use crate::log;
use crate::types::{Cache, Flags, Zero};

impl Opened {
    /// Checks that a request lies within the disk. The server has checked what clients send, so
    /// this catches filters.
    pub(super) fn check_range(&self, count: u64, offset: u64) -> Result<()> {
        let size = self.size()?;
        if offset > size || count > size - offset {
            return Err(Error::new(
                Errno::EINVAL,
                format!("request out of bounds: offset={offset} count={count} size={size}"),
            ));
        }
        Ok(())
    }

    pub(super) fn check_write(&self, count: u64, offset: u64) -> Result<()> {
        if !self.can_write()? {
            return Err(Error::silent(Errno::EROFS));
        }
        self.check_range(count, offset)
    }
}

impl Backend {
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// The layer's; EINVAL outside the disk.
    pub fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.with(|opened| {
            opened.call(|| {
                opened.check_range(buf.len() as u64, offset)?;
                trace(|| format!("{}: pread count={} offset={offset}", opened.name, buf.len()));
                opened.layer.pread(opened.next(), buf, offset)
            })
        })
    }

    /// Writes `buf` at `offset`. Flags: FUA.
    ///
    /// # Errors
    /// The layer's; EROFS if writing is not allowed; EINVAL outside the disk.
    pub fn pwrite(&self, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.with(|opened| {
            opened.call(|| {
                opened.check_write(buf.len() as u64, offset)?;
                trace(|| {
                    let fua = u8::from(flags.contains(Flags::FUA));
                    format!("{}: pwrite count={} offset={offset} fua={fua}", opened.name, buf.len())
                });
                opened.layer.pwrite(opened.next(), buf, offset, flags)
            })
        })
    }

    /// Puts completed writes on stable storage.
    ///
    /// # Errors
    /// The layer's.
    pub fn flush(&self) -> Result<()> {
        self.with(|opened| {
            opened.call(|| {
                trace(|| format!("{}: flush", opened.name));
                opened.layer.flush(opened.next())
            })
        })
    }

    /// Makes the range a hole if that is possible. Flags: FUA.
    ///
    /// # Errors
    /// The layer's; EROFS if writing is not allowed; EINVAL outside the disk.
    pub fn trim(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.with(|opened| {
            opened.call(|| {
                opened.check_write(count, offset)?;
                if !self.can_trim()? {
                    return Err(Error::new(Errno::EINVAL, "trim is not supported"));
                }
                trace(|| {
                    let fua = u8::from(flags.contains(Flags::FUA));
                    format!("{}: trim count={count} offset={offset} fua={fua}", opened.name)
                });
                opened.layer.trim(opened.next(), count, offset, flags)
            })
        })
    }

    /// Makes the range read as zeroes, by `zero` or by writing. Flags: MAY_TRIM, FUA, FAST_ZERO.
    ///
    /// # Errors
    /// The layer's; EOPNOTSUPP only with FAST_ZERO; EROFS if writing is not allowed; EINVAL
    /// outside the disk.
    pub fn zero(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.with(|opened| {
            opened.call(|| {
                opened.check_write(count, offset)?;
                trace(|| {
                    let on = |flag| u8::from(flags.contains(flag));
                    format!(
                        "{}: zero count={count} offset={offset} may_trim={} fua={} fast={}",
                        opened.name,
                        on(Flags::MAY_TRIM),
                        on(Flags::FUA),
                        on(Flags::FAST_ZERO)
                    )
                });
                match self.can_zero()? {
                    Zero::None => Err(Error::new(Errno::EINVAL, "writing zeroes is not supported")),
                    Zero::Emulate => {
                        emulate::zero(count, offset, flags, self.can_fua()?, |b, at, f| {
                            self.pwrite(b, at, f)
                        })
                    }
                    Zero::Native => opened.layer.zero(opened.next(), count, offset, flags),
                }
            })
        })
    }

    /// Describes the disk from `offset` on into `extents`, which is at most as long as the disk.
    /// Flags: REQ_ONE. A layer without extents counts as data.
    ///
    /// # Errors
    /// The layer's; EINVAL outside the disk or if the layer's extents do not cover `offset`.
    pub fn extents(
        &self,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        self.with(|opened| {
            opened.call(|| {
                opened.check_range(count, offset)?;
                trace(|| {
                    let one = u8::from(flags.contains(Flags::REQ_ONE));
                    format!("{}: extents count={count} offset={offset} req_one={one}", opened.name)
                });
                if !self.can_extents()? {
                    return extents.add(offset, count, ExtentKind::DATA);
                }
                opened.layer.extents(opened.next(), count, offset, flags, extents)?;
                if extents.is_empty() {
                    return Err(Error::new(
                        Errno::EINVAL,
                        "extents: plugin returned no extents for the requested offset",
                    ));
                }
                Ok(())
            })
        })
    }

    /// Prefetches the range, by `cache` or by reading it.
    ///
    /// # Errors
    /// The layer's; EINVAL outside the disk or if cache requests are not supported.
    pub fn cache(&self, count: u64, offset: u64) -> Result<()> {
        self.with(|opened| {
            opened.call(|| {
                opened.check_range(count, offset)?;
                trace(|| format!("{}: cache count={count} offset={offset}", opened.name));
                match self.can_cache()? {
                    Cache::None => {
                        Err(Error::new(Errno::EINVAL, "cache requests are not supported"))
                    }
                    Cache::Emulate => emulate::cache(count, offset, |b, at| self.pread(b, at)),
                    Cache::Native => opened.layer.cache(opened.next(), count, offset),
                }
            })
        })
    }
}

/// A debug line of the data path, which `-D nbdkit.backend.datapath=0` silences.
#[inline]
fn trace(text: impl FnOnce() -> String) {
    if log::datapath() {
        log::debug(&text());
    }
}
