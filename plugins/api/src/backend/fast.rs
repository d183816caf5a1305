//! The ways around the callbacks of a request: answers that cannot block, and ranges of files that the
//! server reads and writes itself.

use super::opened::Opened;
use super::{Backend, Context};
use crate::error::Result;
use crate::log;
use crate::stack::log_once;
use crate::types::FileRange;

impl Backend {
    /// The layer of a context that stays as it is: where a layer may be reopened, its callbacks carry out
    /// every request.
    fn fixed(&self) -> Option<&Opened> {
        match &self.context {
            Context::Fixed(opened) => Some(opened),
            Context::Reopenable(_) | Context::Absent => None,
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
        let result = opened.layer.try_pread(opened.next(), buf, offset)?;
        Some(result.map_err(log_once))
    }

    /// The range of a file that has the bytes of a read, if there is one.
    pub fn file_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        let opened = self.fixed()?;
        opened.check_range(count.into(), offset).ok()?;
        opened.trace_range(|| format!("pread count={count} offset={offset}"));
        opened.layer.file_range(opened.next(), count, offset)
    }

    /// The range of a file that a write without flags goes to, if writing there is all that the
    /// layers do.
    pub fn write_range(&self, count: u32, offset: u64) -> Option<FileRange<'_>> {
        let opened = self.fixed()?;
        opened.check_write(count.into(), offset).ok()?;
        opened.trace_range(|| format!("pwrite count={count} offset={offset} fua=0"));
        opened.layer.write_range(opened.next(), count, offset)
    }

    /// Traces a read that goes to a [`file_range`](Self::file_range), in every layer, as `pread` does.
    #[inline]
    pub fn trace_read(&self, count: u32, offset: u64) {
        if log::datapath() {
            log::trace_ranges(|| self.file_range(count, offset));
        }
    }

    /// Traces a write that goes to a [`write_range`](Self::write_range), in every layer, as `pwrite`
    /// does.
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
