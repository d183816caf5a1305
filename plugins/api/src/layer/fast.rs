//! The ways around the callbacks of a request: answers that cannot block, and ranges of files that
//! the server reads and writes itself.

use super::opened::Opened;
use super::{Backend, Context};
use crate::error::{Result, log_once};
use crate::log;
use crate::types::{DataPath, Direction, FileRange};

impl Backend {
    /// The layer of a context that stays as it is: where a layer may be reopened, its callbacks
    /// carry out every request.
    fn fixed(&self) -> Option<&Opened> {
        match &self.context {
            Context::Fixed(opened) => Some(opened),
            Context::Reopenable(_) | Context::Absent => None,
        }
    }

    /// The offset of the layer below to which a request passes as it is, if it does.
    pub fn passes_to(&self, direction: Direction, count: u64, offset: u64) -> Option<u64> {
        let opened = self.fixed()?;
        match opened.data_path(direction) {
            DataPath::Transparent => Some(offset),
            DataPath::Shifted(by) => offset.checked_add(by),
            DataPath::PerRequest => {
                let passes = opened.layer.passes(opened.next(), direction, count, offset);
                passes.then_some(offset)
            }
            DataPath::Opaque => None,
        }
    }

    /// `pread` if that cannot block; `None` if it might, and nothing was done. Always `None` where
    /// requests are traced: the line of each layer comes before those of the layers below, and only
    /// `pread` knows that there will be one.
    pub fn try_pread(&self, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        if log::datapath() {
            return None;
        }
        let opened = self.fixed()?;
        let _entered = opened.enter();
        if let Err(error) = opened.check_range(buf.len() as u64, offset) {
            return Some(Err(log_once(error)));
        }
        let next = opened.next();
        let result = match opened.data_path(Direction::Read) {
            DataPath::Transparent => next.try_pread(buf, offset),
            DataPath::Shifted(by) => next.try_pread(buf, offset.checked_add(by)?),
            DataPath::PerRequest | DataPath::Opaque => opened.layer.try_pread(next, buf, offset),
        }?;
        Some(result.map_err(log_once))
    }

    /// The range of a file that has the bytes of a read, if there is one.
    pub fn file_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        let opened = self.fixed()?;
        opened.check_range(count.into(), offset).ok()?;
        opened.trace_range(|| format!("pread count={count} offset={offset}"));
        match self.passes_to(Direction::Read, count.into(), offset) {
            Some(below) => opened.next().file_range(count, below),
            None => opened.layer.file_range(Direction::Read, count, offset),
        }
    }

    /// The range of a file that a write without flags goes to, if writing there is all that the
    /// layers do.
    pub fn write_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        let opened = self.fixed()?;
        opened.check_write(count.into(), offset).ok()?;
        opened.trace_range(|| format!("pwrite count={count} offset={offset} fua=0"));
        match self.passes_to(Direction::Write, count.into(), offset) {
            Some(below) => opened.next().write_range(count, below),
            None => opened.layer.file_range(Direction::Write, count, offset),
        }
    }

    /// Traces a read that goes to a [`file_range`](Self::file_range), in every layer, as `pread`
    /// does.
    #[inline]
    pub fn trace_read(&self, count: u32, offset: u64) {
        if log::datapath() {
            log::trace_ranges(|| self.file_range(count, offset));
        }
    }

    /// Traces a write that goes to a [`write_range`](Self::write_range), in every layer, as
    /// `pwrite` does.
    #[inline]
    pub fn trace_write(&self, count: u32, offset: u64) {
        if log::datapath() {
            log::trace_ranges(|| self.write_range(count, offset));
        }
    }
}

impl Opened {
    fn trace_range(&self, text: impl FnOnce() -> String) {
        if log::ranges() {
            let _entered = self.enter();
            log::debug(&format!("{}: {}", self.name, text()));
        }
    }
}
