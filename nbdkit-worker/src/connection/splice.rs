//! Large reads that leave without being copied, and large writes that come so: file → pipe → socket, and back, by splice(2).
//!
//! The file is read into the pipe before the reply's header is sent, so that a read that fails can still
//! be answered with an error. How writes are taken: [`super::receive`].

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nbdkit_api::FileRange;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{pipe2, read};

/// What is worth it, bytes: below, copying costs less than the two system calls more.
pub(super) const SPLICE_FROM: usize = 128 * 1024;
/// What the pipe can be made to hold, and so the longest read that can be checked before its header is
/// sent: the kernel's limit for ordinary users (pipe-max-size).
pub(super) const SPLICE_UP_TO: usize = 1 << 20;

/// A pipe for one thread.
#[derive(Debug)]
pub(super) struct Pipe {
    input: OwnedFd,
    output: OwnedFd,
    /// Bytes that it holds when full.
    capacity: usize,
}

impl Pipe {
    /// A pipe as large as it may be.
    pub(super) fn new() -> io::Result<Pipe> {
        let (output, input) = pipe2(OFlag::O_CLOEXEC)?;
        // Less than asked for, if the user has too much in pipes already, is still of use.
        let capacity = match fcntl(&input, FcntlArg::F_SETPIPE_SZ(SPLICE_UP_TO as i32)) {
            Ok(capacity) => capacity as usize,
            Err(_) => fcntl(&input, FcntlArg::F_GETPIPE_SZ)? as usize,
        };
        Ok(Pipe { input, output, capacity })
    }

    /// Puts `count` bytes of a file into the empty pipe; false if they do not all go in, and then the pipe
    /// is of no more use.
    ///
    /// An unaligned range touches one page more than it fills, and pages are what the capacity counts.
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

    /// Takes what the client has sent, at most `count` bytes, behind what the pipe holds, without waiting. 0: the client's
    /// end.
    ///
    /// # Errors
    /// EAGAIN: it has sent nothing, or the pipe is full; the kernel's.
    pub(super) fn take(&mut self, from: impl AsFd, count: usize) -> nix::Result<usize> {
        loop {
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
            match splice(from.as_fd(), None, &self.input, None, count, flags) {
                Err(Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Moves `count` bytes from the pipe into a file; how many, which is fewer only if the file takes no more.
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

    /// Takes the next `count` bytes out of the pipe, which holds as many.
    ///
    /// # Errors
    /// None that a kernel has for this.
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
    fn what_goes_in_comes_out() {
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
    fn a_file_that_ends_too_soon_is_noticed_before_anything_is_sent() {
        let file = SharedFile::in_memory("splice", 1000).unwrap();
        let range = |offset| FileRange { fd: file.as_fd(), offset, in_memory: None };
        let mut pipe = Pipe::new().unwrap();
        assert!(!pipe.fill(range(0), SPLICE_FROM));
        let mut pipe = Pipe::new().unwrap();
        assert!(!pipe.fill(range(u64::MAX), SPLICE_FROM));
    }
}
