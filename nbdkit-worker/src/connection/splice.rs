//! Large reads and writes without a copy in this process: file → pipe → socket and back, by
//! splice(2).
//!
//! A read fills the pipe before the reply's header is sent, so that a failure can still be replied
//! to with an error. Writes: [`super::receive`].

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nbdkit_api::FileRange;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{pipe2, read};

/// Requests from this length on, bytes, are spliced: below, a copy costs less than the two
/// additional system calls.
pub(super) const SPLICE_FROM: usize = 128 * 1024;
/// Capacity of a pipe, bytes, and so the longest read that can be checked before its header is
/// sent: the kernel's limit for ordinary users (pipe(7), pipe-max-size).
pub(super) const SPLICE_UP_TO: usize = 1 << 20;

/// A thread's pipe for splicing.
#[derive(Debug)]
pub(super) struct Pipe {
    input: OwnedFd,
    output: OwnedFd,
    /// Bytes in whole pages.
    capacity: usize,
}

impl Pipe {
    /// A pipe of the largest permitted capacity.
    pub(super) fn new() -> io::Result<Pipe> {
        let (output, input) = pipe2(OFlag::O_CLOEXEC)?;
        // EPERM: the user's pipes have too many pages already (pipe-user-pages-soft). A smaller
        // pipe still serves.
        let capacity = match fcntl(&input, FcntlArg::F_SETPIPE_SZ(SPLICE_UP_TO as i32)) {
            Ok(capacity) => capacity as usize,
            Err(_) => fcntl(&input, FcntlArg::F_GETPIPE_SZ)? as usize,
        };
        Ok(Pipe { input, output, capacity })
    }

    /// Fills the empty pipe with `count` bytes of a file; false if they do not all fit or cannot be
    /// read, and then the pipe must be dropped.
    ///
    /// The capacity counts pages, and an unaligned range spans one more than it fills.
    pub(super) fn fill(&mut self, from: FileRange<'_>, count: usize) -> bool {
        let page = 4096;
        let pages = (from.offset % page + count as u64).div_ceil(page) * page;
        if pages > self.capacity as u64 {
            return false;
        }
        let Ok(mut offset) = i64::try_from(from.offset) else { return false };
        let mut left = count;
        while left > 0 {
            match splice(
                from.fd,
                Some(&mut offset),
                &self.input,
                None,
                left,
                SpliceFFlags::SPLICE_F_NONBLOCK,
            ) {
                Ok(0) => return false,
                Ok(moved) => left -= moved,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Moves what the client has sent, at most `count` bytes, into the pipe, without waiting. 0:
    /// end of input.
    ///
    /// # Errors
    /// EAGAIN: the client has sent nothing, or the pipe is full; the kernel's.
    pub(super) fn take(&mut self, from: impl AsFd, count: usize) -> nix::Result<usize> {
        loop {
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
            match splice(from.as_fd(), None, &self.input, None, count, flags) {
                Err(Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Moves `count` bytes from the pipe into a file; returns how many, fewer only if writing
    /// fails.
    pub(super) fn put(&mut self, to: FileRange<'_>, count: usize) -> usize {
        let Ok(mut offset) = i64::try_from(to.offset) else { return 0 };
        let mut put = 0;
        while put < count {
            let flags = SpliceFFlags::SPLICE_F_MOVE;
            match splice(&self.output, None, to.fd, Some(&mut offset), count - put, flags) {
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => break,
                Ok(moved) => put += moved,
            }
        }
        put
    }

    /// Reads the next `count` bytes from the pipe, which contains as many.
    ///
    /// # Errors
    /// The kernel's; none is known.
    pub(super) fn spill(&mut self, count: usize) -> nix::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        let mut out = &mut bytes[..];
        while !out.is_empty() {
            let count = read(&self.output, out)?;
            out = &mut out[count..];
        }
        Ok(bytes)
    }

    /// Moves `count` bytes from the pipe to the client.
    ///
    /// # Errors
    /// The client is gone.
    pub(super) fn send(&mut self, to: impl AsFd, count: usize) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            match splice(&self.output, None, to.as_fd(), None, left, SpliceFFlags::SPLICE_F_MOVE) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(moved) => left -= moved,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdkit_api::shared::SharedFile;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn data_passes_the_pipe_unchanged() {
        let file = SharedFile::in_memory("splice", 1 << 20).unwrap();
        let pattern: Vec<u8> = (0..1 << 20).map(|n: u32| (n / 7) as u8).collect();
        file.write_at(&pattern, 0).unwrap();
        let mut pipe = Pipe::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        for (offset, count) in [(0, SPLICE_UP_TO), (12_345, SPLICE_FROM), (4096, 200_001)] {
            assert!(
                pipe.fill(FileRange { fd: file.as_fd(), offset, in_memory: None }, count),
                "{offset} {count}"
            );
            let mut got = vec![0; count];
            std::thread::scope(|scope| {
                scope.spawn(|| pipe.send(&ours, count).unwrap());
                theirs.read_exact(&mut got).unwrap();
            });
            assert_eq!(got, pattern[offset as usize..offset as usize + count]);
        }
    }

    #[test]
    fn a_file_that_is_too_short_fails_before_anything_is_sent() {
        let file = SharedFile::in_memory("splice", 1000).unwrap();
        let range = |offset| FileRange { fd: file.as_fd(), offset, in_memory: None };
        let mut pipe = Pipe::new().unwrap();
        assert!(!pipe.fill(range(0), SPLICE_FROM));
        let mut pipe = Pipe::new().unwrap();
        assert!(!pipe.fill(range(u64::MAX), SPLICE_FROM));
    }
}
