//! The socket to an upstream server, with TLS or without: receiving and sending that never outlast
//! those who wait.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nbdkit_api::endpoints::Wait;
use nbdkit_api::{Client, Errno, Error, Result, ResultExt, client};
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::haggle::Stream;
use super::session::Session;
use super::tls::Tls;

/// How long a thread waits before it looks whether its client is still there.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// Encrypted bytes that are received at a time.
const CIPHERTEXT: usize = 64 * 1024;
/// How long a server may take no bytes, where giving up is not one client's affair.
const STALLED: Duration = Duration::from_secs(60);

/// What receiving brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing will come any more.
    End,
    /// Nothing has come for [`LOOK`].
    Nothing,
}

/// A connected stream socket.
pub(super) struct Socket {
    fd: OwnedFd,
    tls: Option<Encrypted>,
}

struct Encrypted {
    session: Mutex<Box<dyn Session>>,
    /// Of the one thread that receives.
    received: Mutex<Ciphertext>,
}

/// Bytes that have been received and not yet been decrypted: a session takes as many as it has room
/// for what is in them.
#[derive(Default)]
struct Ciphertext {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// MSG_MORE, which nix lacks. send(2).
fn more_follows() -> MsgFlags {
    MsgFlags::from_bits_retain(libc::MSG_MORE)
}

/// The connection has ended where more was expected.
pub(super) fn disconnected() -> Error {
    Error::new(Errno::ESHUTDOWN, "the NBD server has closed the connection")
}

/// A socket that is of no use any more.
fn broken(call: &str, errno: Errno) -> Error {
    Error::os(call, errno).with_errno(Errno::ESHUTDOWN)
}

impl Socket {
    /// Takes a connected socket.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn new(fd: OwnedFd) -> Result<Socket> {
        let look = TimeVal::milliseconds(LOOK.as_millis() as i64);
        setsockopt(&fd, sockopt::ReceiveTimeout, &look).or_error(|| "setsockopt: SO_RCVTIMEO")?;
        Ok(Socket { fd, tls: None })
    }

    /// Receives bytes into `buf`, which is not empty. One thread at a time.
    ///
    /// # Errors
    /// The kernel's; those of TLS.
    pub(super) fn receive(&self, buf: &mut [u8]) -> Result<Received> {
        let Some(Encrypted { session, received }) = &self.tls else { return self.receive_raw(buf) };
        let mut received = lock(received);
        loop {
            let mut session = lock(session);
            match session.read(buf)? {
                Some(0) => return Ok(Received::End),
                Some(count) => return Ok(Received::Bytes(count)),
                None => {}
            }
            if received.start < received.end {
                let Ciphertext { buffer, start, end } = &mut *received;
                match session.feed(&buffer[*start..*end])? {
                    // It has nothing to be read, and no room.
                    0 => return Err(Error::new(Errno::EIO, "TLS: too much data")),
                    count => *start += count,
                }
                continue;
            }
            drop(session);
            received.buffer.resize(CIPHERTEXT, 0);
            match self.receive_raw(&mut received.buffer)? {
                Received::Bytes(count) => (received.start, received.end) = (0, count),
                other => return Ok(other),
            }
        }
    }

    /// The socket itself.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether bytes are sent and received as they are.
    pub(super) fn is_plain(&self) -> bool {
        self.tls.is_none()
    }

    /// Receives what has come into `buf`, which is not empty, without waiting. Without TLS.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn receive_now(&self, buf: &mut [u8]) -> Result<Received> {
        self.receive_with(buf, MsgFlags::MSG_DONTWAIT)
    }

    fn receive_raw(&self, buf: &mut [u8]) -> Result<Received> {
        self.receive_with(buf, MsgFlags::empty())
    }

    fn receive_with(&self, buf: &mut [u8], flags: MsgFlags) -> Result<Received> {
        loop {
            return match recv(self.fd.as_raw_fd(), buf, flags) {
                Ok(0) => Ok(Received::End),
                Ok(count) => Ok(Received::Bytes(count)),
                Err(Errno::EAGAIN) => Ok(Received::Nothing),
                Err(Errno::EINTR) => continue,
                Err(errno) => Err(broken("recv", errno)),
            };
        }
    }

    /// Sends all of `head` and then of `body`. One thread at a time. If it fails, a part may have
    /// been sent: the connection is of no use any more. `client`: whose end is a reason to fail;
    /// `None` for a connection that others use too.
    ///
    /// # Errors
    /// ESHUTDOWN: the client has gone; ETIMEDOUT: the server takes nothing; the kernel's.
    pub(super) fn send(&self, client: Option<&Client>, head: &[u8], body: &[u8]) -> Result<()> {
        let Some(Encrypted { session, .. }) = &self.tls else {
            let more = if body.is_empty() { MsgFlags::empty() } else { more_follows() };
            self.send_raw(client, head, more)?;
            return self.send_raw(client, body, MsgFlags::empty());
        };
        let mut ciphertext = Vec::new();
        for mut bytes in [head, body] {
            while !bytes.is_empty() {
                let mut session = lock(session);
                let count = session.write(bytes)?;
                session.output(&mut ciphertext);
                drop(session);
                bytes = &bytes[count..];
                // A small head goes with its body.
                if count == 0 || !bytes.is_empty() || ciphertext.len() >= CIPHERTEXT {
                    self.send_raw(client, &ciphertext, more_follows())?;
                    ciphertext.clear();
                }
            }
        }
        self.send_raw(client, &ciphertext, MsgFlags::empty())
    }

    /// Sends as many of `bytes` as there is room for, without waiting; how many. `more` follow at
    /// once. Without TLS.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn send_now(&self, bytes: &[u8], more: bool) -> Result<usize> {
        let flags = if more { more_follows() } else { MsgFlags::empty() };
        self.send_some(bytes, flags).map(Option::unwrap_or_default)
    }

    fn send_some(&self, bytes: &[u8], flags: MsgFlags) -> Result<Option<usize>> {
        let flags = flags | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            return match send(self.fd.as_raw_fd(), bytes, flags) {
                Ok(count) => Ok(Some(count)),
                Err(Errno::EAGAIN) => Ok(None),
                Err(Errno::EINTR) => continue,
                Err(errno) => Err(broken("send", errno)),
            };
        }
    }

    fn send_raw(&self, client: Option<&Client>, mut bytes: &[u8], flags: MsgFlags) -> Result<()> {
        while !bytes.is_empty() {
            match self.send_some(bytes, flags)? {
                Some(count) => bytes = &bytes[count..],
                None => {
                    let wait = Wait { client, deadline: Instant::now() + STALLED };
                    match wait.ready(self.fd.as_fd(), PollFlags::POLLOUT) {
                        // A client of its own may wait as long as it likes.
                        Err(Errno::ETIMEDOUT) if client.is_some() => {}
                        result => result.map_err(|errno| broken("send", errno))?,
                    }
                }
            }
        }
        Ok(())
    }

    /// Says goodbye with these last bytes, if that does not wait.
    pub(super) fn close(&self, last: &[u8]) {
        let mut bytes = last.to_vec();
        if let Some(Encrypted { session, .. }) = &self.tls {
            bytes.clear();
            let mut session = lock(session);
            let _ = session.write(last);
            session.close();
            session.output(&mut bytes);
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = send(self.fd.as_raw_fd(), &bytes, flags);
    }
}

/// A socket during the handshake, which has a deadline.
pub(super) struct Handshake<'a> {
    pub(super) socket: Socket,
    pub(super) client: Option<&'a Client>,
    pub(super) deadline: Instant,
    pub(super) tls: Option<&'a Tls>,
}

impl Handshake<'_> {
    fn receive(&self, buf: &mut [u8]) -> Result<usize> {
        loop {
            // Looked at for each piece: a server may be slow on purpose.
            if Instant::now() >= self.deadline {
                return Err(Error::os("handshake with the NBD server", Errno::ETIMEDOUT));
            }
            match self.socket.receive(buf)? {
                Received::Bytes(count) => return Ok(count),
                Received::End => return Err(disconnected().context("handshake")),
                Received::Nothing => client::check_present(self.client)?,
            }
        }
    }
}

impl Stream for Handshake<'_> {
    fn read_exact(&mut self, buf: &mut [u8]) -> Result<()> {
        let mut got = 0;
        while got < buf.len() {
            got += self.receive(&mut buf[got..])?;
        }
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.socket.send(self.client, bytes, &[])
    }

    fn start_tls(&mut self) -> Result<()> {
        let tls = self.tls.ok_or_else(|| Error::msg("TLS is not configured"))?;
        let mut session = tls.session()?;
        let mut received = Ciphertext::default();
        let mut output = Vec::new();
        loop {
            let done = session.handshake();
            // An alert is sent too.
            session.output(&mut output);
            self.socket.send(self.client, &output, &[])?;
            output.clear();
            if done? {
                break;
            }
            if received.start == received.end {
                received.buffer.resize(CIPHERTEXT, 0);
                (received.start, received.end) = (0, self.receive(&mut received.buffer)?);
            }
            match session.feed(&received.buffer[received.start..received.end])? {
                0 => return Err(Error::new(Errno::EIO, "TLS: too much data")),
                count => received.start += count,
            }
        }
        // What has come behind the handshake belongs to the session.
        let received = Mutex::new(received);
        self.socket.tls = Some(Encrypted { session: Mutex::new(session), received });
        Ok(())
    }
}
