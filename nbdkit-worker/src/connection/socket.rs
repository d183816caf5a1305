//! The client's socket, or the two pipes of `-s`; encrypted once TLS has been negotiated.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use nbdkit_api::pipeline::Awaited;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, setsockopt, shutdown};
use nix::sys::time::TimeVal;
use nix::unistd::{read, write};

use super::DeadlinePassed;
use super::tls::Stream;

/// Bytes per write under a deadline: a socket that polls as writable has room for more than this.
const DEADLINE_CHUNK: usize = 1024;

/// Milliseconds to wait for a plugin before looking whether the connection is closing.
const LOOK: u8 = 250;

/// The connection to a client: an input and an output, which may be the same descriptor. Cheap to
/// clone.
#[derive(Debug, Clone)]
pub(crate) struct Socket {
    input: Arc<OwnedFd>,
    output: Arc<OwnedFd>,
    tls: Arc<OnceLock<Stream>>,
}

impl Socket {
    /// A connection over one socket, or over an input and an output.
    pub(crate) fn new(input: OwnedFd, output: Option<OwnedFd>) -> Socket {
        let input = Arc::new(input);
        let output = output.map_or_else(|| Arc::clone(&input), Arc::new);
        Socket { input, output, tls: Arc::default() }
    }

    /// The descriptor that requests are read from.
    pub(crate) fn input(&self) -> &Arc<OwnedFd> {
        &self.input
    }

    /// The descriptor that replies are written to.
    pub(crate) fn output(&self) -> &OwnedFd {
        &self.output
    }

    /// Encrypts everything from now on by `stream`. Has an effect once.
    pub(super) fn encrypt(&self, stream: Stream) {
        let _ = self.tls.set(stream);
    }

    /// Whether bytes are sent as they are, without TLS, so that they can be spliced.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.tls.get().is_none()
    }

    /// Waits for bytes and reads what has arrived into `buf`; 0 at the end of input.
    ///
    /// # Errors
    /// [`DeadlinePassed`] if nothing arrived before the deadline; WouldBlock after the
    /// [timeout](Self::set_read_timeout); InvalidData if it violates TLS; the kernel's.
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

    /// Reads what has arrived into `buf` without waiting; 0 if nothing has, at the end of input,
    /// and always from a pipe.
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
            // A pipe (`-s`) has no MSG_DONTWAIT.
            Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOTSOCK) => Ok(0),
            result => Ok(result?),
        }
    }

    /// Makes [`read`](Self::read) fail with WouldBlock when nothing arrives for this long; `None`
    /// for never. No effect on pipes.
    pub(crate) fn set_read_timeout(&self, timeout: Option<TimeVal>) {
        let _ = setsockopt(&self.input, ReceiveTimeout, &timeout.unwrap_or(TimeVal::new(0, 0)));
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// [`DeadlinePassed`] if the client did not read in time; the kernel's, mostly EPIPE.
    pub(crate) fn write_all(&self, bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        if let Some(tls) = self.tls.get() {
            return tls.write_all(self, bytes, deadline);
        }
        self.write_plain(bytes, deadline, false)
    }

    /// Sends all of `bytes`, ahead of more that follows immediately, so that TCP may send both
    /// together (MSG_MORE). Without TLS.
    ///
    /// # Errors
    /// The kernel's, mostly EPIPE.
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
            let mut chunk = &bytes[sent..];
            if let Some(deadline) = deadline {
                wait(Some(deadline), &self.output, PollFlags::POLLOUT)?;
                // A blocking socket would wait until everything fits, beyond the deadline.
                chunk = &chunk[..chunk.len().min(DEADLINE_CHUNK)];
            }
            let result = if more {
                send(self.output.as_raw_fd(), chunk, flags)
            } else {
                write(&*self.output, chunk)
            };
            match result {
                Err(Errno::EINTR) => {}
                // A pipe (`-s`) has no MSG_MORE.
                Err(Errno::ENOTSOCK) if more => more = false,
                Err(errno) => return Err(errno.into()),
                Ok(count) => sent += count,
            }
        }
        Ok(())
    }

    /// Frees memory that only a busy connection needs.
    pub(super) fn shrink(&self) {
        if let Some(tls) = self.tls.get() {
            tls.shrink();
        }
    }

    /// Waits until input arrives or ends.
    ///
    /// # Errors
    /// [`DeadlinePassed`]; the kernel's.
    pub(super) fn wait_input(&self, deadline: Option<Instant>) -> io::Result<()> {
        wait(deadline, &self.input, PollFlags::POLLIN)
    }

    /// Waits until there is room for output.
    ///
    /// # Errors
    /// [`DeadlinePassed`]; the kernel's.
    pub(super) fn wait_output(&self, deadline: Option<Instant>) -> io::Result<()> {
        wait(deadline, &self.output, PollFlags::POLLOUT)
    }

    /// Sends the client a TLS close_notify, if TLS is in use.
    pub(super) fn close(&self) {
        if let Some(tls) = self.tls.get() {
            tls.close(self);
        }
    }

    /// Shuts the connection down in both directions, which wakes every thread that waits on it.
    pub(crate) fn cut(&self) {
        let _ = shutdown(self.input.as_raw_fd(), Shutdown::Both);
        let _ = shutdown(self.output.as_raw_fd(), Shutdown::Both);
    }

    /// Shuts the input down: reads find the end of input, while replies can still be sent.
    pub(crate) fn stop_reading(&self) {
        let _ = shutdown(self.input.as_raw_fd(), Shutdown::Read);
    }
}

/// What has become ready.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    /// The plugin may have something to collect, or there is an error to find.
    pub(super) plugin: bool,
    /// The plugin's socket has room.
    pub(super) room: bool,
    pub(super) client: bool,
}

/// Waits for a plugin's socket, and for input of the client if there is one, for up to [`LOOK`].
///
/// # Errors
/// The kernel's.
pub(super) fn wait_either(awaited: &Awaited<'_>, client: Option<&Socket>) -> io::Result<Ready> {
    let mut events = PollFlags::POLLIN;
    events.set(PollFlags::POLLOUT, awaited.writable);
    let input = client.map_or(awaited.fd, |client| client.input.as_fd());
    let mut fds = [PollFd::new(awaited.fd, events), PollFd::new(input, PollFlags::POLLIN)];
    let count = if client.is_some() { 2 } else { 1 };
    match poll(&mut fds[..count], LOOK) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(Ready { plugin: false, room: false, client: false }),
        Err(errno) => return Err(errno.into()),
    }
    let [plugin, input] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::all()));
    Ok(Ready {
        plugin: plugin.intersects(!PollFlags::POLLOUT),
        room: plugin.contains(PollFlags::POLLOUT),
        client: client.is_some() && !input.is_empty(),
    })
}

/// Waits for one of `events`, until the deadline.
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
