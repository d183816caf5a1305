//! Splices the payload of a large write from the socket into a file while it arrives.
//!
//! Only whole blocks are written: a client that disconnects in the middle of a write may leave it
//! half done, as on a disk that loses power, but no block half written.

#![forbid(unsafe_code)]

use std::io;

use nbdkit_api::{Backend, Direction, FileRange, Range, Result, log};
use nix::errno::Errno;

use super::inline_writes::InlineWrites;
use super::input::{CAPACITY, Input};
use super::splice::Pipe;

/// The unit of writing, bytes: a power of two, the largest block size of disks.
const BLOCK: usize = 4096;

/// Whether a payload can be spliced of which `available` bytes are in the input buffer: the last
/// block of those must fit in the buffer.
pub(super) fn has_room(available: usize) -> bool {
    available + BLOCK <= CAPACITY
}

/// A large write in progress.
pub(super) struct Receive<'a> {
    backend: &'a Backend,
    /// Where in a file the data goes.
    range: FileRange<'a>,
    /// The request's offset in the export.
    offset: u64,
    /// The request's length, bytes.
    count: usize,
    /// Bytes written to the file so far.
    done: usize,
}

impl<'a> Receive<'a> {
    /// A write of `count` bytes at `offset` of the export, which are stored at `range`: see
    /// [`Backend::write_range`].
    pub(super) fn new(
        backend: &'a Backend,
        range: FileRange<'a>,
        offset: u64,
        count: usize,
    ) -> Receive<'a> {
        Receive { backend, range, offset, count, done: 0 }
    }

    /// Reads the write's payload from `input` and writes it; the inner result is the backend's. The
    /// pipe, if there is one, is empty, and is kept only after success.
    ///
    /// # Errors
    /// The client is gone.
    pub(super) fn run(
        self,
        input: &mut Input,
        pipe: &mut Option<Pipe>,
        writes: &mut InlineWrites,
    ) -> io::Result<Result<()>> {
        let (backend, request) = (self.backend, self.request());
        backend.trace_write(self.count as u32, self.offset);
        let started = backend.watch();
        let result = self.splice(input, pipe, writes)?;
        backend.passed(started, Direction::Write, request, result.is_ok());
        Ok(result)
    }

    fn request(&self) -> Range {
        Range { count: self.count as u64, offset: self.offset }
    }

    fn splice(
        mut self,
        input: &mut Input,
        pipe: &mut Option<Pipe>,
        writes: &mut InlineWrites,
    ) -> io::Result<Result<()>> {
        // First the bytes in the input buffer, completed to a whole block.
        let first = self.whole_blocks(input.available().len().min(self.count), usize::div_ceil);
        if first > 0 && !input.fill_exactly(first)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes = &input.available()[..first];
        let written = match first {
            0 => Ok(()),
            _ => writes.time(first, || self.write(bytes, self.offset)),
        };
        input.consume(first);
        self.done = first;
        if let Err(error) = written {
            input.skip((self.count - self.done) as u64)?;
            return Ok(Err(error));
        }
        let Some(mut buffer) = pipe.take().or_else(|| Pipe::new().ok()) else {
            return self.copy(Vec::new(), input);
        };
        let mut in_pipe = 0;
        // Whether the last splice returned EAGAIN, after which input arrived: if the next does too,
        // the pipe is full.
        let mut stuck = false;
        while self.done < self.count {
            let missing = self.count - self.done - in_pipe;
            if missing > 0 {
                match buffer.take(input.socket().input(), missing) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(moved) => in_pipe += moved,
                    Err(Errno::EAGAIN) if !stuck || in_pipe == 0 => {
                        input.socket().wait_input(None)?;
                        stuck = true;
                        continue;
                    }
                    // The pipe's pages are all in use, though not full, or this kind of socket
                    // cannot be spliced. A real error shows when the payload is read.
                    Err(_) => return self.copy(buffer.spill(in_pipe)?, input),
                }
                stuck = false;
            }
            let whole = if in_pipe == self.count - self.done {
                in_pipe
            } else {
                self.whole_blocks(in_pipe, |bytes, block| bytes / block)
            };
            let to = FileRange { offset: self.range.offset + self.done as u64, ..self.range };
            let put = if whole > 0 { writes.time(whole, || buffer.put(to, whole)) } else { 0 };
            self.done += put;
            in_pipe -= put;
            if put < whole {
                // The backend's own write reports the error.
                return self.copy(buffer.spill(in_pipe)?, input);
            }
        }
        *pipe = Some(buffer);
        Ok(Ok(()))
    }

    /// How many of the next `bytes` end with a whole block; `round` rounds a partial block up or
    /// down.
    fn whole_blocks(&self, bytes: usize, round: impl Fn(usize, usize) -> usize) -> usize {
        let start = (self.offset % BLOCK as u64) as usize + self.done;
        let end = round(start + bytes, BLOCK) * BLOCK;
        end.saturating_sub(start).min(self.count - self.done)
    }

    /// Falls back to reading the remaining payload into memory, behind `bytes`, which were spliced
    /// already.
    fn copy(&self, mut bytes: Vec<u8>, input: &mut Input) -> io::Result<Result<()>> {
        let mut remaining = Vec::new();
        input.read_payload(&mut remaining, self.count - self.done - bytes.len())?;
        bytes.append(&mut remaining);
        Ok(self.write(&bytes, self.offset + self.done as u64))
    }

    /// Writes a part of the request, which was logged as one.
    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        log::without_datapath(|| self.backend.pwrite_part(self.request(), bytes, offset))
    }
}
