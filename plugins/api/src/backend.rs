//! A layer as one connection opened it, with nbdkit's contract held in one place: what is asked is
//! asked once and cached, ranges are checked, what a layer cannot do is emulated, what it says is
//! logged in its name. The server calls the outermost one; each filter calls the one below.
//!
//! nbdkit-plugin(3) and nbdkit-filter(3), "Callbacks".

use std::sync::{Arc, OnceLock};

use crate::debug_control;
use crate::error::{Errno, Error, Result};
use crate::extents::{ExtentKind, Extents};
use crate::filter::{FilterConnection, Slot};
use crate::log::{self, Speaker};
use crate::plugin::{Connection, Open};
use crate::scratch::Scratch;
use crate::stack::{Layer, Module, log_once};
use crate::types::{BlockSize, Blocking, Cache, FileRange, Flags, Fua, Zero};

/// Largest piece in which zeroes are written when a layer has no `zero`, bytes.
const EMULATED_ZERO: usize = 64 << 20;

enum Handle {
    Plugin(Box<dyn Connection>),
    /// Declared before the layer below, so it is dropped (closed) first.
    Filter(Box<dyn FilterConnection>, Arc<Backend>),
    /// A filter that opened nothing below itself.
    Absent,
}

/// What has been asked so far.
#[derive(Default)]
struct Answers {
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

/// An open layer of the stack. See the module's text.
pub struct Backend {
    handle: Handle,
    name: &'static str,
    speaker: Speaker,
    readonly: bool,
    prepared: bool,
    answers: Answers,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Returns the cached answer or asks for it, in the name of the layer.
macro_rules! ask {
    ($self:ident, $slot:ident, $plugin:expr, $filter:expr) => {
        ask!($self, $slot, stringify!($slot), $plugin, $filter)
    };
    ($self:ident, $slot:ident, $name:expr, $plugin:expr, $filter:expr) => {{
        if let Some(answer) = $self.answers.$slot.get() {
            return Ok(*answer);
        }
        let answer = $self.call(|| {
            debug_control!("{}: {}", $self.name(), $name);
            match &$self.handle {
                Handle::Plugin(plugin) => $plugin(&**plugin),
                Handle::Filter(filter, next) => $filter(&**filter, &**next),
                Handle::Absent => Err(absent()),
            }
        })?;
        Ok(*$self.answers.$slot.get_or_init(|| answer))
    }};
}

fn absent() -> Error {
    Error::new(Errno::EIO, "there is no open layer below this filter")
}

impl Drop for Backend {
    /// The handle's drop, which follows, is `.close`.
    fn drop(&mut self) {
        if !matches!(self.handle, Handle::Absent) {
            let _entered = log::enter(self.speaker);
            debug_control!("{}: close", self.name());
        }
    }
}

impl Backend {
    pub(crate) fn open(layer: &Arc<Layer>, open: &Open<'_>) -> Result<Backend> {
        let speaker = Speaker {
            layer: Some(layer.speaker),
            connection: open.client.map_or(0, |client| client.number()),
        };
        let handle = match &layer.module {
            Module::Plugin(plugin) => Handle::Plugin(plugin.open(open)?),
            Module::Filter(filter, below) => {
                let mut slot = Slot::new(below);
                let handle = filter.open(&mut slot, open)?;
                Handle::Filter(handle, slot.into_backend())
            }
        };
        Ok(Backend {
            handle,
            name: layer.name(),
            speaker,
            readonly: open.readonly,
            prepared: false,
            answers: Answers::default(),
        })
    }

    pub(crate) fn absent() -> Backend {
        Backend {
            handle: Handle::Absent,
            name: "nbdkit",
            speaker: Speaker::default(),
            readonly: true,
            prepared: false,
            answers: Answers::default(),
        }
    }

    /// Name of the layer.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs a callback in the name of this layer; errors that it made are logged here.
    fn call<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let _entered = log::enter(self.speaker);
        body().map_err(log_once)
    }

    /// Prepares this layer after those below it. A context that a filter put in place with
    /// [`Slot::set`] is shared, hence not ours to prepare.
    ///
    /// # Errors
    /// A layer failed; the context must be dropped.
    pub fn prepare(&mut self) -> Result<()> {
        let Backend { handle, name, speaker, readonly, .. } = self;
        let announce = || debug_control!("{name}: prepare readonly={}", u8::from(*readonly));
        match handle {
            Handle::Filter(filter, next) => {
                if let Some(next) = Arc::get_mut(next) {
                    next.prepare()?;
                }
                let _entered = log::enter(*speaker);
                announce();
                filter.prepare(next, *readonly).map_err(log_once)?;
            }
            Handle::Plugin(_) => {
                let _entered = log::enter(*speaker);
                announce();
            }
            Handle::Absent => {}
        }
        self.prepared = true;
        Ok(())
    }

    /// Finalizes this layer and then those below it, as far as they were prepared.
    ///
    /// # Errors
    /// The first failure; the client must be cut off.
    pub fn finalize(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.prepared) {
            return Ok(());
        }
        let _entered = log::enter(self.speaker);
        debug_control!("{}: finalize", self.name());
        let Handle::Filter(filter, next) = &mut self.handle else { return Ok(()) };
        let own = filter.finalize(next).map_err(log_once);
        let below = Arc::get_mut(next).map_or(Ok(()), Backend::finalize);
        own.and(below)
    }

    /// Size of the disk in bytes, at most `i64::MAX`.
    ///
    /// # Errors
    /// Those of the layer; every question below may fail the same way.
    pub fn size(&self) -> Result<u64> {
        ask!(
            self,
            size,
            "get_size",
            |p: &dyn Connection| p.size().and_then(check_size),
            |f: &dyn FilterConnection, n| f.size(n).and_then(check_size)
        )
    }

    /// Text for NBD_INFO_DESCRIPTION, at most 4096 bytes.
    pub fn export_description(&self) -> Option<String> {
        let _entered = log::enter(self.speaker);
        debug_control!("{}: export_description", self.name());
        let text = match &self.handle {
            Handle::Plugin(plugin) => plugin.export_description(),
            Handle::Filter(filter, next) => filter.export_description(next),
            Handle::Absent => None,
        };
        text.filter(|text| text.len() <= crate::exports::MAX_STRING)
    }

    /// Block size constraints that keep the rules; all zero for none.
    ///
    /// # Errors
    /// The layer's, or EINVAL if its answer breaks the rules.
    pub fn block_size(&self) -> Result<BlockSize> {
        fn check(size: BlockSize) -> Result<BlockSize> {
            size.check().map(|()| size).map_err(|why| Error::new(Errno::EINVAL, why))
        }
        ask!(
            self,
            block_size,
            |p: &dyn Connection| p.block_size().and_then(check),
            |f: &dyn FilterConnection, n| f.block_size(n).and_then(check)
        )
    }

    /// Whether writing is allowed: never on a context that was opened read-only.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_write(&self) -> Result<bool> {
        if self.readonly {
            return Ok(false);
        }
        ask!(self, can_write, |p: &dyn Connection| p.can_write(), |f: &dyn FilterConnection, n| f
            .can_write(n))
    }

    /// Whether `flush` works.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_flush(&self) -> Result<bool> {
        ask!(self, can_flush, |p: &dyn Connection| p.can_flush(), |f: &dyn FilterConnection, n| f
            .can_flush(n))
    }

    /// Whether the disk behaves like a rotating one.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn is_rotational(&self) -> Result<bool> {
        ask!(
            self,
            is_rotational,
            |p: &dyn Connection| p.is_rotational(),
            |f: &dyn FilterConnection, n| f.is_rotational(n)
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
        ask!(self, can_trim, |p: &dyn Connection| p.can_trim(), |f: &dyn FilterConnection, n| f
            .can_trim(n))
    }

    /// What is done about zeroes; nothing without writing.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_zero(&self) -> Result<Zero> {
        if !self.can_write()? {
            return Ok(Zero::None);
        }
        ask!(
            self,
            can_zero,
            |p: &dyn Connection| p.can_zero().map(|yes| if yes {
                Zero::Native
            } else {
                Zero::Emulate
            }),
            |f: &dyn FilterConnection, n| f.can_zero(n)
        )
    }

    /// Whether fast zero may be asked for; never if zeroes are not advertised.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_fast_zero(&self) -> Result<bool> {
        if self.can_zero()? == Zero::None {
            return Ok(false);
        }
        ask!(
            self,
            can_fast_zero,
            |p: &dyn Connection| p.can_fast_zero(),
            |f: &dyn FilterConnection, n| f.can_fast_zero(n)
        )
    }

    /// Whether `extents` has more to say than "all data".
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_extents(&self) -> Result<bool> {
        ask!(
            self,
            can_extents,
            |p: &dyn Connection| p.can_extents(),
            |f: &dyn FilterConnection, n| f.can_extents(n)
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
        ask!(self, can_fua, |p: &dyn Connection| p.can_fua(), |f: &dyn FilterConnection, n| f
            .can_fua(n))
    }

    /// Whether a flush on one connection covers the writes of all.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_multi_conn(&self) -> Result<bool> {
        ask!(
            self,
            can_multi_conn,
            |p: &dyn Connection| p.can_multi_conn(),
            |f: &dyn FilterConnection, n| f.can_multi_conn(n)
        )
    }

    /// What is done about cache requests.
    ///
    /// # Errors
    /// Those of the layer.
    pub fn can_cache(&self) -> Result<Cache> {
        ask!(self, can_cache, |p: &dyn Connection| p.can_cache(), |f: &dyn FilterConnection, n| f
            .can_cache(n))
    }

    /// How long data requests may take.
    pub fn blocking(&self) -> Blocking {
        *self.answers.blocking.get_or_init(|| match &self.handle {
            Handle::Plugin(plugin) => plugin.blocking(),
            Handle::Filter(filter, next) => filter.blocking(next),
            Handle::Absent => Blocking::Never,
        })
    }

    /// Checks that a request lies within the disk. The server has checked what clients send, so
    /// this catches filters.
    fn check_range(&self, count: u64, offset: u64) -> Result<()> {
        let size = self.size()?;
        if offset > size || count > size - offset {
            return Err(Error::new(
                Errno::EINVAL,
                format!("request out of bounds: offset={offset} count={count} size={size}"),
            ));
        }
        Ok(())
    }

    fn check_write(&self, count: u64, offset: u64) -> Result<()> {
        if !self.can_write()? {
            return Err(Error::silent(Errno::EROFS));
        }
        self.check_range(count, offset)
    }

    /// Whether FUA must be left to a flush afterwards: only the plugin's own layer emulates it, filters
    /// pass the flag on.
    fn emulates_fua(&self, flags: Flags) -> Result<bool> {
        Ok(flags.contains(Flags::FUA)
            && matches!(self.handle, Handle::Plugin(_))
            && self.can_fua()? != Fua::Native)
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// The layer's; EINVAL outside the disk.
    pub fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.call(|| {
            self.check_range(buf.len() as u64, offset)?;
            debug_data(|| format!("{}: pread count={} offset={offset}", self.name(), buf.len()));
            match &self.handle {
                Handle::Plugin(plugin) => plugin.pread(buf, offset),
                Handle::Filter(filter, next) => filter.pread(next, buf, offset),
                Handle::Absent => Err(absent()),
            }
        })
    }

    /// `pread` if that can be done at once; `None` if it might wait, and nothing was done. Never where requests are
    /// logged: each layer's line comes before those of the layers below, and only `pread` knows that there will be one.
    pub fn try_pread(&self, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        if log::datapath() {
            return None;
        }
        let _entered = log::enter(self.speaker);
        if let Err(error) = self.check_range(buf.len() as u64, offset) {
            return Some(Err(log_once(error)));
        }
        let result = match &self.handle {
            Handle::Plugin(plugin) => plugin.try_pread(buf, offset),
            Handle::Filter(filter, next) => filter.try_pread(next, buf, offset),
            Handle::Absent => Some(Err(absent())),
        }?;
        Some(result.map_err(log_once))
    }

    /// Where the bytes of a read stand in a file, if they do.
    pub fn file_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        self.check_range(count.into(), offset).ok()?;
        self.trace_range(|| format!("pread count={count} offset={offset}"));
        match &self.handle {
            Handle::Plugin(plugin) => plugin.file_range(count, offset),
            Handle::Filter(filter, next) => filter.file_range(next, count, offset),
            Handle::Absent => None,
        }
    }

    /// Writes `buf` at `offset`. Flags: FUA.
    ///
    /// # Errors
    /// The layer's; EROFS if writing is not allowed; EINVAL outside the disk.
    pub fn pwrite(&self, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.call(|| {
            self.check_write(buf.len() as u64, offset)?;
            debug_data(|| {
                let fua = u8::from(flags.contains(Flags::FUA));
                format!("{}: pwrite count={} offset={offset} fua={fua}", self.name(), buf.len())
            });
            let flush = self.emulates_fua(flags)?;
            match &self.handle {
                Handle::Plugin(plugin) => {
                    plugin.pwrite(buf, offset, if flush { flags - Flags::FUA } else { flags })?;
                }
                Handle::Filter(filter, next) => filter.pwrite(next, buf, offset, flags)?,
                Handle::Absent => return Err(absent()),
            }
            if flush { self.flush() } else { Ok(()) }
        })
    }

    /// Where the bytes of a write without flags go in a file, if that is all there is to it.
    pub fn write_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        self.check_write(count.into(), offset).ok()?;
        self.trace_range(|| format!("pwrite count={count} offset={offset} fua=0"));
        match &self.handle {
            Handle::Plugin(plugin) => plugin.write_range(count, offset),
            Handle::Filter(filter, next) => filter.write_range(next, count, offset),
            Handle::Absent => None,
        }
    }

    /// Logs a read whose bytes were found by [`file_range`](Self::file_range), in every layer, as `pread` does.
    #[inline]
    pub fn trace_read(&self, count: u32, offset: u64) {
        if log::datapath() {
            log::trace_ranges(|| self.file_range(count, offset));
        }
    }

    /// Logs a write whose place was found by [`write_range`](Self::write_range), in every layer, as `pwrite` does.
    #[inline]
    pub fn trace_write(&self, count: u32, offset: u64) {
        if log::datapath() {
            log::trace_ranges(|| self.write_range(count, offset));
        }
    }

    fn trace_range(&self, text: impl FnOnce() -> String) {
        if log::ranges() {
            let _entered = log::enter(self.speaker);
            log::debug(&format!("{}: {}", self.name(), text()));
        }
    }

    /// Puts completed writes on stable storage.
    ///
    /// # Errors
    /// The layer's.
    pub fn flush(&self) -> Result<()> {
        self.call(|| {
            debug_data(|| format!("{}: flush", self.name()));
            match &self.handle {
                Handle::Plugin(plugin) => plugin.flush(),
                Handle::Filter(filter, next) => filter.flush(next),
                Handle::Absent => Err(absent()),
            }
        })
    }

    /// Makes the range a hole if that is possible. Flags: FUA.
    ///
    /// # Errors
    /// The layer's; EROFS if writing is not allowed; EINVAL outside the disk.
    pub fn trim(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.call(|| {
            self.check_write(count, offset)?;
            if !self.can_trim()? {
                return Err(Error::new(Errno::EINVAL, "trim is not supported"));
            }
            debug_data(|| {
                let fua = u8::from(flags.contains(Flags::FUA));
                format!("{}: trim count={count} offset={offset} fua={fua}", self.name())
            });
            let flush = self.emulates_fua(flags)?;
            match &self.handle {
                Handle::Plugin(plugin) => {
                    plugin.trim(count, offset, if flush { flags - Flags::FUA } else { flags })?;
                }
                Handle::Filter(filter, next) => filter.trim(next, count, offset, flags)?,
                Handle::Absent => return Err(absent()),
            }
            if flush { self.flush() } else { Ok(()) }
        })
    }

    /// Makes the range read as zeroes, by `zero` or by writing. Flags: MAY_TRIM, FUA, FAST_ZERO.
    ///
    /// # Errors
    /// The layer's; EOPNOTSUPP only with FAST_ZERO; EROFS if writing is not allowed; EINVAL
    /// outside the disk.
    pub fn zero(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.call(|| {
            self.check_write(count, offset)?;
            debug_data(|| {
                let on = |flag| u8::from(flags.contains(flag));
                format!(
                    "{}: zero count={count} offset={offset} may_trim={} fua={} fast={}",
                    self.name(),
                    on(Flags::MAY_TRIM),
                    on(Flags::FUA),
                    on(Flags::FAST_ZERO)
                )
            });
            let fast = flags.contains(Flags::FAST_ZERO);
            match self.can_zero()? {
                Zero::None => {
                    return Err(Error::new(Errno::EINVAL, "writing zeroes is not supported"));
                }
                Zero::Emulate => {}
                Zero::Native => {
                    let flush = self.emulates_fua(flags)?;
                    let result = match &self.handle {
                        Handle::Plugin(plugin) => plugin.zero(
                            count,
                            offset,
                            if flush { flags - Flags::FUA } else { flags },
                        ),
                        Handle::Filter(filter, next) => filter.zero(next, count, offset, flags),
                        Handle::Absent => Err(absent()),
                    };
                    match result {
                        Ok(()) => return if flush { self.flush() } else { Ok(()) },
                        Err(error)
                            if error.is_unsupported()
                                && matches!(self.handle, Handle::Plugin(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            if fast {
                Err(Error::silent(Errno::EOPNOTSUPP))
            } else {
                self.write_zeroes(count, offset, flags)
            }
        })
    }

    /// Zeroes by writing. With emulated FUA one flush at the end stands for all pieces.
    fn write_zeroes(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let fua = flags & Flags::FUA;
        let every_piece = if self.can_fua()? == Fua::Native { fua } else { Flags::empty() };
        // Untouched zero pages: the kernel backs them with one page until somebody writes.
        let zeroes = vec![0; count.min(EMULATED_ZERO as u64) as usize];
        let mut done = 0;
        while done < count {
            let piece = (count - done).min(EMULATED_ZERO as u64);
            let last = done + piece == count;
            self.pwrite(
                &zeroes[..piece as usize],
                offset + done,
                if last { fua } else { every_piece },
            )?;
            done += piece;
        }
        Ok(())
    }

    /// Describes the disk from `offset` on into `extents`, which is at most as long as the disk.
    /// Flags: REQ_ONE. A layer without extents counts as data.
    ///
    /// # Errors
    /// The layer's; EINVAL outside the disk or if the layer said nothing about `offset`.
    pub fn extents(
        &self,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        self.call(|| {
            self.check_range(count, offset)?;
            debug_data(|| {
                let one = u8::from(flags.contains(Flags::REQ_ONE));
                format!("{}: extents count={count} offset={offset} req_one={one}", self.name())
            });
            if !self.can_extents()? {
                return extents.add(offset, count, ExtentKind::DATA);
            }
            match &self.handle {
                Handle::Plugin(plugin) => plugin.extents(count, offset, flags, extents)?,
                Handle::Filter(filter, next) => {
                    filter.extents(next, count, offset, flags, extents)?;
                }
                Handle::Absent => return Err(absent()),
            }
            if extents.is_empty() {
                return Err(Error::new(
                    Errno::EINVAL,
                    "extents: plugin returned no extents for the requested offset",
                ));
            }
            Ok(())
        })
    }

    /// Describes all of `offset .. offset + count`, asking as often as that takes
    /// (`nbdkit_extents_full`).
    ///
    /// # Errors
    /// Those of [`extents`](Self::extents).
    pub fn extents_full(&self, count: u64, offset: u64) -> Result<Extents> {
        let end = offset + count;
        let mut full = Extents::new(offset, end);
        while full.covered_to() < end {
            let from = full.covered_to();
            let mut part = Extents::new(from, end);
            self.extents(end - from, from, Flags::empty(), &mut part)?;
            full.add_shifted(&part, 0)?;
            if full.covered_to() == from {
                break; // The list is full.
            }
        }
        Ok(full)
    }

    /// Describes the disk in extents whose bounds are multiples of `align`, a power of two;
    /// an unaligned end of the disk is left as it is (`nbdkit_extents_aligned`). Where the layer's
    /// extents differ within a block, the block is what all of them are.
    ///
    /// # Errors
    /// EINVAL if `count` (short of the end of the disk) or `offset` is not aligned; those of
    /// [`extents`](Self::extents).
    pub fn extents_aligned(
        &self,
        count: u64,
        offset: u64,
        flags: Flags,
        align: u32,
        extents: &mut Extents,
    ) -> Result<()> {
        let align = u64::from(align);
        let size = self.size()?;
        if !offset.is_multiple_of(align) || !(count.is_multiple_of(align) || offset + count == size)
        {
            return Err(Error::new(Errno::EINVAL, "nbdkit_extents_aligned: unaligned request"));
        }
        let end = offset + count;
        let mut at = offset;
        while at < end {
            let mut part = Extents::new(at, size);
            self.extents(end - at, at, flags & Flags::REQ_ONE, &mut part)?;
            let Some(first) = part.as_slice().first().copied() else { break };
            let whole =
                if first.end() >= size { size - at } else { (first.end() - at) / align * align };
            if whole > 0 {
                extents.add(at, whole.min(end - at), first.kind)?;
                at += whole.min(end - at);
            } else {
                let block = align.min(size - at);
                let kind = self
                    .extents_full(block, at)?
                    .iter()
                    .fold(ExtentKind::all(), |kind, extent| kind & extent.kind);
                extents.add(at, block, kind)?;
                at += block;
            }
            if flags.contains(Flags::REQ_ONE) {
                break;
            }
        }
        Ok(())
    }

    /// Prefetches the range, by `cache` or by reading it.
    ///
    /// # Errors
    /// The layer's; EINVAL outside the disk or if cache requests are not supported.
    pub fn cache(&self, count: u64, offset: u64) -> Result<()> {
        self.call(|| {
            self.check_range(count, offset)?;
            debug_data(|| format!("{}: cache count={count} offset={offset}", self.name()));
            match self.can_cache()? {
                Cache::None => Err(Error::new(Errno::EINVAL, "cache requests are not supported")),
                Cache::Emulate => {
                    let mut scratch = Scratch::new(count);
                    let mut done = 0;
                    while done < count {
                        let piece = (count - done).min(scratch.buf.len() as u64);
                        self.pread(&mut scratch.buf[..piece as usize], offset + done)?;
                        done += piece;
                    }
                    Ok(())
                }
                Cache::Native => match &self.handle {
                    Handle::Plugin(plugin) => plugin.cache(count, offset),
                    Handle::Filter(filter, next) => filter.cache(next, count, offset),
                    Handle::Absent => Err(absent()),
                },
            }
        })
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

/// A debug line of the data path, which `-D nbdkit.backend.datapath=0` silences.
#[inline]
fn debug_data(text: impl FnOnce() -> String) {
    if log::datapath() {
        log::debug(&text());
    }
}
