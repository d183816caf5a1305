//! The ways around the callbacks of a request: answers that cannot block, and ranges of files that
//! the server reads and writes itself.

use std::time::{Duration, Instant};

use super::opened::Opened;
use super::{Backend, Context, Next};
use crate::error::{Result, log_once};
use crate::log;
use crate::types::{DataPath, Direction, FileRange, Flags};

/// The range of a whole request, as one layer sees it.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// Bytes.
    pub count: u64,
    /// Bytes from the layer's beginning.
    pub offset: u64,
}

impl Backend {
    /// The layer of a context that stays as it is: where a layer may be reopened, its callbacks
    /// carry out every request.
    pub(super) fn fixed(&self) -> Option<&Opened> {
        match &self.context {
            Context::Fixed(opened) => Some(opened),
            Context::Reopenable(_) | Context::Absent => None,
        }
    }

    /// The offset of the layer below to which a request passes as it is, if it does.
    pub fn passes_to(&self, direction: Direction, count: u64, offset: u64) -> Option<u64> {
        let opened = self.fixed()?;
        match opened.data_path(direction) {
            DataPath::Transparent | DataPath::Watched => Some(offset),
            DataPath::Shifted(by) => offset.checked_add(by),
            DataPath::PerRequest => {
                let passes = opened.layer.passes(opened.next(), direction, count, offset);
                passes.then_some(offset)
            }
            DataPath::Opaque => None,
        }
    }

    /// `pread` if that need not wait; `None` if it has to, and nothing was done that `pread` does
    /// again. Always `None` where requests are traced: the line of each layer comes before those of
    /// the layers below, and only `pread` knows that there will be one.
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
            DataPath::Watched => {
                let start = Instant::now();
                let result = next.try_pread(buf, offset);
                if let Some(result) = &result {
                    let (count, took) = (buf.len() as u64, start.elapsed());
                    opened.layer.passed(Direction::Read, count, offset, took, result.is_ok());
                }
                result
            }
            DataPath::PerRequest
                if opened.layer.passes(next, Direction::Read, buf.len() as u64, offset) =>
            {
                next.try_pread(buf, offset)
            }
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

    /// The time, if a layer is to be [told](Self::passed) of a request that is carried out from
    /// now on where [`file_range`](Self::file_range) or [`write_range`](Self::write_range) says.
    #[inline]
    pub fn watch(&self) -> Option<Instant> {
        self.is_watched().then(Instant::now)
    }

    fn is_watched(&self) -> bool {
        self.fixed().is_some_and(|opened| {
            *opened.answers.watched.get_or_init(|| {
                [Direction::Read, Direction::Write]
                    .iter()
                    .any(|&direction| opened.data_path(direction) == DataPath::Watched)
                    || opened.next().is_watched()
            })
        })
    }

    /// Tells the layers that `request` passes of it, once it has been carried out, as a whole or in
    /// parts; `started` is when [`watch`](Self::watch) was called, `done` whether it succeeded.
    #[inline]
    pub fn passed(
        &self,
        started: Option<Instant>,
        direction: Direction,
        request: Range,
        done: bool,
    ) {
        if let Some(started) = started {
            self.tell(direction, request, started.elapsed(), done);
        }
    }

    fn tell(&self, direction: Direction, request: Range, took: Duration, done: bool) {
        let Range { count, offset } = request;
        if let (Some(opened), Some(below)) =
            (self.fixed(), self.passes_to(direction, count, offset))
        {
            if opened.data_path(direction) == DataPath::Watched {
                opened.layer.passed(direction, count, offset, took, done);
            }
            opened.next().tell(direction, Range { count, offset: below }, took, done);
        }
    }

    /// Reads a part of `request`, for which there is a
    /// [`file_range`](Self::file_range), into `buf` from `offset` on. The layers that the request
    /// passes do not see its parts, whose sizes and offsets are not those that the client chose.
    ///
    /// # Errors
    /// As `pread`.
    pub fn pread_part(&self, request: Range, buf: &mut [u8], offset: u64) -> Result<()> {
        match self.below(Direction::Read, request, offset) {
            Some((next, request, offset)) => next.pread_part(request, buf, offset),
            None => self.pread(buf, offset),
        }
    }

    /// Writes a part of `request`, for which there is a
    /// [`write_range`](Self::write_range): see [`pread_part`](Self::pread_part).
    ///
    /// # Errors
    /// As `pwrite`.
    pub fn pwrite_part(&self, request: Range, buf: &[u8], offset: u64) -> Result<()> {
        match self.below(Direction::Write, request, offset) {
            Some((next, request, offset)) => next.pwrite_part(request, buf, offset),
            None => self.pwrite(buf, offset, Flags::empty()),
        }
    }

    /// The layer below, if `request` passes to it, and where the request and a part of it at
    /// `offset` are there.
    fn below(
        &self,
        direction: Direction,
        request: Range,
        offset: u64,
    ) -> Option<(&Next, Range, u64)> {
        let below = self.passes_to(direction, request.count, request.offset)?;
        let offset = below.checked_add(offset.checked_sub(request.offset)?)?;
        Some((self.fixed()?.next(), Range { offset: below, ..request }, offset))
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
