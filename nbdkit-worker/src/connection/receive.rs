//! Large writes that go from the socket into a file without being copied here, as they come.
//!
//! Only whole blocks: a client that vanishes in the middle of a write may leave it half done, as a disk does that loses
//! its power, but like that disk never a half-written block.

#![forbid(unsafe_code)]

use std::io;

use nbdkit_api::{Backend, FileRange, Flags, Result, log};
use nix::errno::Errno;

use super::inline_writes::InlineWrites;
use super::input::{CAPACITY, Input};
use super::splice::Pipe;

/// What is written together or not at all, bytes; a power of two. The largest block that disks have.
const BLOCK: usize = 4096;

/// Whether the payload of which `available` bytes have come is for [`receive`].
pub(super) fn has_room(available: usize) -> bool {
    available + BLOCK <= CAPACITY
}

/// A large write under way.
pub(super) struct Receive<'a> {
    backend: &'a Backend,
    /// Where it goes.
    range: FileRange<'a>,
    /// On the disk.
    offset: u64,
    /// Bytes of it.
    count: usize,
    /// Bytes of it in the file by now.
    done: usize,
}

impl<'a> Receive<'a> {
    /// A write of `count` bytes at `offset` of the disk, which go to `range`: see [`Backend::write_range`].
    pub(super) fn new(
        backend: &'a Backend,
        range: FileRange<'a>,
        offset: u64,
        count: usize,
    ) -> Receive<'a> {
        Receive { backend, range, offset, count, done: 0 }
    }

    /// Takes the write's payload out of `input`, and tells what came of it. The pipe, if there is one, is empty, and used
    /// again only if all went well.
    ///
    /// # Errors
    /// The client is gone.
    pub(super) fn run(
        mut self,
        input: &mut Input,
        pipe: &mut Option<Pipe>,
        writes: &mut InlineWrites,
    ) -> io::Result<Result<()>> {
        self.backend.trace_write(self.count as u32, self.offset);
        // What came with the header, to the end of its last block.
        let first = self.whole_blocks(input.available().len().min(self.count), usize::div_ceil);
        if first > 0 && !input.fill_exactly(first)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let buffer = &input.available()[..first];
        let begun = match first {
            0 => Ok(()),
            _ => writes.time(first, || self.write(buffer, self.offset)),
        };
        input.consume(first);
        self.done = first;
        if let Err(error) = begun {
            input.skip((self.count - self.done) as u64)?;
            return Ok(Err(error));
        }
        let Some(mut taken) = pipe.take().or_else(|| Pipe::new().ok()) else {
            return self.copy(Vec::new(), input);
        };
        let mut held = 0;
        // Whether the client has sent something that could not be taken.
        let mut stuck = false;
        while self.done < self.count {
            let missing = self.count - self.done - held;
            if missing > 0 {
                match taken.take(input.socket().input(), missing) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(moved) => held += moved,
                    Err(Errno::EAGAIN) if !stuck || held == 0 => {
                        input.socket().wait_input(None)?;
                        stuck = true;
                        continue;
                    }
                    // The pipe is full of crumbs, or this is not a kind of socket to be spliced. What else there may be
                    // shows when it is read.
                    Err(_) => return self.copy(taken.spill(held)?, input),
                }
                stuck = false;
            }
            let whole = if held == self.count - self.done {
                held
            } else {
                self.whole_blocks(held, |bytes, block| bytes / block)
            };
            let to = FileRange { offset: self.range.offset + self.done as u64, ..self.range };
            let put = if whole > 0 { writes.time(whole, || taken.put(to, whole)) } else { 0 };
            self.done += put;
            held -= put;
            if put < whole {
                // What the file has against it is for the layer to find out and say.
                return self.copy(taken.spill(held)?, input);
            }
        }
        *pipe = Some(taken);
        Ok(Ok(()))
    }

    /// So many of the next `bytes` as end a block, or all; `round` says whether a part of a block is one.
    fn whole_blocks(&self, bytes: usize, round: impl Fn(usize, usize) -> usize) -> usize {
        let begun = (self.offset % BLOCK as u64) as usize + self.done;
        let end = round(begun + bytes, BLOCK) * BLOCK;
        end.saturating_sub(begun).min(self.count - self.done)
    }

    /// Does the rest by way of memory; `bytes` have come.
    fn copy(&self, mut bytes: Vec<u8>, input: &mut Input) -> io::Result<Result<()>> {
        let mut rest = Vec::new();
        input.read_payload(&mut rest, self.count - self.done - bytes.len())?;
        bytes.append(&mut rest);
        Ok(self.write(&bytes, self.offset + self.done as u64))
    }

    /// Writes a part of what has been logged as one request.
    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        log::without_datapath(|| self.backend.pwrite(bytes, offset, Flags::empty()))
    }
}
