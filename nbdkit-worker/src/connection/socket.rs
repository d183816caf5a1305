//! The client's descriptors: one socket as a rule, two pipes with `-s`; encrypted once TLS has been negotiated.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, setsockopt, shutdown};
use nix::sys::time::TimeVal;
use nix::unistd::{read, write};

use super::DeadlinePassed;
use super::tls::Stream;

/// How much is written at a time under a deadline: less than any socket buffer that polls as writable has room for.
const DEADLINE_PIECE: usize = 1024;

/// Where a client's bytes come from and go to. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Socket {
    input: Arc<OwnedFd>,
    output: Arc<OwnedFd>,
    tls: Arc<OnceLock<Stream>>,
}

impl Socket {
    /// One socket, or an input and an output.
    pub(crate) fn new(input: OwnedFd, output: Option<OwnedFd>) -> Socket {
        let input = Arc::new(input);
        let output = output.map_or_else(|| Arc::clone(&input), Arc::new);
        Socket { input, output, tls: Arc::default() }
    }

    /// The descriptor that the client's bytes come from.
    pub(crate) fn input(&self) -> &Arc<OwnedFd> {
        &self.input
    }

    /// The descriptor that replies go to.
    pub(crate) fn output(&self) -> &OwnedFd {
        &self.output
    }

    /// From now on everything goes through `stream`; the first call counts.
    pub(super) fn encrypt(&self, stream: Stream) {
        let _ = self.tls.set(stream);
    }

    /// Whether bytes go to the client as they are, so that the kernel may move them.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.tls.get().is_none()
    }

    /// Waits for bytes and puts what there is into `buf`; 0 is the end.
    ///
    /// # Errors
    /// [`DeadlinePassed`] if nothing came before the deadline; WouldBlock if [patience](Self::set_patience) has run out;
    /// InvalidData if it is not what TLS says; the kernel's.
    pub(crate) fn read(&self, buf: &mut [u8], deadline: Option<Instant>) -> io::Result<usize> {
        match self.tls.get() {
            None => self.read_plain(buf, deadline),
            Some(tls) => tls.read(self, buf, deadline),
        }
    }

    /// The same without TLS.
    pub(super) fn read_plain(
        &self,
        buf: &mut [u8],
        deadline: Option<Instant>,
    ) -> io::Result<usize> {
        loop {
            if let Some(deadline) = deadline {
                wait(Some(deadline), &self.input, PollFlags::POLLIN)?;
            }
            match read(&*self.input, buf) {
                Err(Errno::EINTR) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Puts what has come into `buf` without waiting; 0 if nothing has, at the end too, or if that cannot be told.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn read_now(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self.tls.get() {
            None => self.read_plain_now(buf),
            Some(tls) => tls.read_now(self, buf),
        }
    }

    /// The same without TLS.
    pub(super) fn read_plain_now(&self, buf: &mut [u8]) -> io::Result<usize> {
        match recv(self.input.as_raw_fd(), buf, MsgFlags::MSG_DONTWAIT) {
            // A pipe (`-s`) cannot be asked in one call.
            Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOTSOCK) => Ok(0),
            result => Ok(result?),
        }
    }

    /// Makes [`read`](Self::read) fail with WouldBlock when nothing comes for so long; `None` for never. Without effect
    /// on pipes.
    pub(crate) fn set_patience(&self, patience: Option<TimeVal>) {
        let _ = setsockopt(&self.input, ReceiveTimeout, &patience.unwrap_or(TimeVal::new(0, 0)));
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// [`DeadlinePassed`] if the client took too long to take them; the kernel's, EPIPE above all.
    pub(crate) fn write_all(&self, bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        if let Some(tls) = self.tls.get() {
            return tls.write_all(self, bytes, deadline);
        }
        self.write_plain(bytes, deadline, false)
    }

    /// Sends all of `bytes`, which more will follow at once: TCP may wait for that, to send both together. Without TLS.
    ///
    /// # Errors
    /// The kernel's, EPIPE above all.
    pub(super) fn write_before_more(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_plain(bytes, None, true)
    }

    fn write_plain(
        &self,
        bytes: &[u8],
        deadline: Option<Instant>,
        mut more: bool,
    ) -> io::Result<()> {
        let flags = MsgFlags::from_bits_retain(libc::MSG_MORE) | MsgFlags::MSG_NOSIGNAL;
        let mut sent = 0;
        while sent < bytes.len() {
            let mut piece = &bytes[sent..];
            if let Some(deadline) = deadline {
                wait(Some(deadline), &self.output, PollFlags::POLLOUT)?;
                // A blocking socket would wait for room for everything; give it what fits at once.
                piece = &piece[..piece.len().min(DEADLINE_PIECE)];
            }
            let result = if more {
                send(self.output.as_raw_fd(), piece, flags)
            } else {
                write(&*self.output, piece)
            };
            match result {
                Err(Errno::EINTR) => {}
                // A pipe (`-s`).
                Err(Errno::ENOTSOCK) if more => more = false,
                Err(errno) => return Err(errno.into()),
                Ok(count) => sent += count,
            }
        }
        Ok(())
    }

    /// Gives memory back that only a busy connection needs.
    pub(super) fn shrink(&self) {
        if let Some(tls) = self.tls.get() {
            tls.shrink();
        }
    }

    /// Waits until the client sends more, or is at its end.
    ///
    /// # Errors
    /// [`DeadlinePassed`]; the kernel's.
    pub(super) fn wait_input(&self, deadline: Option<Instant>) -> io::Result<()> {
        wait(deadline, &self.input, PollFlags::POLLIN)
    }

    /// Waits until the client takes more.
    ///
    /// # Errors
    /// [`DeadlinePassed`]; the kernel's.
    pub(super) fn wait_output(&self, deadline: Option<Instant>) -> io::Result<()> {
        wait(deadline, &self.output, PollFlags::POLLOUT)
    }

    /// Tells the client that this is the end, where TLS has a way to.
    pub(super) fn close(&self) {
        if let Some(tls) = self.tls.get() {
            tls.close(self);
        }
    }

    /// Cuts the connection in both directions, whoever is waiting on it.
    pub(crate) fn cut(&self) {
        let _ = shutdown(self.input.as_raw_fd(), Shutdown::Both);
        let _ = shutdown(self.output.as_raw_fd(), Shutdown::Both);
    }

    /// Makes reads find the end of input, so that requests stop coming while replies still go.
    pub(crate) fn stop_reading(&self) {
        let _ = shutdown(self.input.as_raw_fd(), Shutdown::Read);
    }
}

/// Waits for the first of `events` and the deadline.
fn wait(deadline: Option<Instant>, fd: &OwnedFd, events: PollFlags) -> io::Result<()> {
    loop {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(DeadlinePassed.into());
                }
                let millis = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
                PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut [PollFd::new(fd.as_fd(), events)], timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}
