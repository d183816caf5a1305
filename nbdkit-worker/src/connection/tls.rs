//! TLS on a client's socket, after NBD_OPT_STARTTLS.
//!
//! One thread reads. It waits for the socket without the session's lock, so that other threads can
//! encrypt and send meanwhile. A thread that sends waits for room in the socket without the lock,
//! too: otherwise a client that sends requests before it reads replies would deadlock with the
//! server. The caller serializes the replies of different threads, as without TLS.

#![forbid(unsafe_code)]

use std::io::{self, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nbdkit_api::client::TlsPeer;
use nbdkit_api::{debug, log};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};

use super::{Connection, During, End, Socket};
use crate::tls::{self, Session};

/// Size of the buffer for encrypted bytes: several records.
const RECEIVED: usize = 128 * 1024;

/// The TLS session of a connection.
pub(super) struct Stream {
    session: Mutex<Box<dyn Session>>,
    /// Encrypted bytes. Used by the reader only.
    received: Mutex<Received>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stream(..)")
    }
}

/// A buffer of bytes that were received and not yet decrypted.
struct Received {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Received {
    fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// Receives what has arrived, without waiting; false if nothing has.
    fn fill_now(&mut self, socket: &Socket) -> io::Result<bool> {
        self.start = 0;
        self.end = 0;
        self.end = socket.read_plain_now(&mut self.buf)?;
        Ok(self.end > 0)
    }

    /// Waits for more; false at the end of input.
    fn fill(&mut self, socket: &Socket, deadline: Option<Instant>) -> io::Result<bool> {
        self.start = 0;
        self.end = 0;
        self.end = socket.read_plain(&mut self.buf, deadline)?;
        Ok(self.end > 0)
    }
}

/// Performs the TLS handshake and encrypts the connection from then on. No plaintext may be in the
/// input buffer.
///
/// # Errors
/// The handshake failed, the client disconnected or the deadline passed.
pub(super) fn start(connection: &Connection<'_>, deadline: Option<Instant>) -> Result<(), End> {
    let refused = |failure: &dyn std::fmt::Display| End::Protocol(format!("TLS: {failure}"));
    let Some(tls) = &connection.settings.tls else { return Err(End::Refused) };
    let authority = std::sync::Arc::clone(&connection.authority);
    let session = tls.session(authority).map_err(|failure| refused(&failure))?;
    debug!("starting TLS handshake");
    let stream = Stream {
        session: Mutex::new(session),
        received: Mutex::new(Received {
            buf: vec![0; RECEIVED].into_boxed_slice(),
            start: 0,
            end: 0,
        }),
    };
    match stream.handshake(&connection.socket, deadline) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(refused(&error)),
        result => result.during("TLS handshake")?,
    }
    debug!("TLS handshake completed");
    let peer = stream.peer().ok_or_else(|| refused(&"the client's certificate cannot be read"))?;
    if log::flag("nbdkit", "tls.session") != 0 {
        stream.describe(&peer);
    }
    connection.client.set_tls(peer);
    connection.socket.encrypt(stream);
    debug!("using TLS on this connection");
    Ok(())
}

impl Stream {
    fn session(&self) -> MutexGuard<'_, Box<dyn Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handshake(&self, socket: &Socket, deadline: Option<Instant>) -> io::Result<()> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let progress = self.progress(&mut received);
            // Also after a failure, to send its alert.
            let sent = self.flush(socket, deadline);
            let done = progress?;
            sent?;
            if done {
                return Ok(());
            }
            if received.bytes().is_empty() && !received.fill(socket, deadline)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Continues the handshake with the bytes received; true when it is complete.
    fn progress(&self, received: &mut Received) -> io::Result<bool> {
        let mut session = self.session();
        loop {
            if session.handshake()? {
                return Ok(true);
            }
            if received.bytes().is_empty() {
                return Ok(false);
            }
            received.start += session.feed(received.bytes())?;
        }
    }

    fn peer(&self) -> Option<TlsPeer> {
        let Some(certificate) = self.session().peer_certificate() else {
            return Some(TlsPeer::default());
        };
        Some(TlsPeer { dn: tls::subject(&certificate)?, issuer_dn: tls::issuer(&certificate)? })
    }

    /// Logs the session, for `-D nbdkit.tls.session=1`.
    fn describe(&self, peer: &TlsPeer) {
        let session = self.session();
        for line in session.describe() {
            debug!("{line}");
        }
        if session.peer_certificate().is_some() {
            debug!(
                "TLS: peer provided a certificate: subject `{}', issuer `{}'",
                peer.dn, peer.issuer_dn
            );
        } else {
            debug!("TLS: peer provided no certificate");
        }
    }

    /// As [`Socket::read`]. A close without close_notify is an end of input, too: a truncated
    /// request is detected as such.
    pub(super) fn read(
        &self,
        socket: &Socket,
        out: &mut [u8],
        deadline: Option<Instant>,
    ) -> io::Result<usize> {
        self.read_by(socket, out, |received| received.fill(socket, deadline))
    }

    /// As [`Socket::read_now`].
    pub(super) fn read_now(&self, socket: &Socket, out: &mut [u8]) -> io::Result<usize> {
        self.read_by(socket, out, |received| received.fill_now(socket))
    }

    fn read_by(
        &self,
        socket: &Socket,
        out: &mut [u8],
        mut fill: impl FnMut(&mut Received) -> io::Result<bool>,
    ) -> io::Result<usize> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match self.decrypt(&mut received, out) {
                Ok(Some(count)) => return Ok(count),
                Ok(None) => {}
                Err(error) => {
                    let _ = self.send(socket);
                    return Err(error);
                }
            }
            if !fill(&mut received)? {
                return Ok(0);
            }
        }
    }

    /// Frees the buffer's pages, if it is empty.
    pub(super) fn shrink(&self) {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        if received.bytes().is_empty() {
            received.buf = vec![0; RECEIVED].into_boxed_slice();
        }
    }

    /// Decrypts received bytes into `out`; `None` if they contain no data.
    fn decrypt(&self, received: &mut Received, out: &mut [u8]) -> io::Result<Option<usize>> {
        let mut session = self.session();
        let mut filled = 0;
        loop {
            match session.read(&mut out[filled..])? {
                Some(0) => return Ok(Some(filled)),
                Some(count) => filled += count,
                None if received.bytes().is_empty() => return Ok((filled > 0).then_some(filled)),
                None => received.start += session.feed(received.bytes())?,
            }
            if filled == out.len() {
                return Ok(Some(filled));
            }
        }
    }

    /// As [`Socket::write_all`].
    pub(super) fn write_all(
        &self,
        socket: &Socket,
        bytes: &[u8],
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        let mut unsent = bytes;
        while !unsent.is_empty() {
            let sent = {
                let mut session = self.session();
                let count = session.write(unsent)?;
                unsent = &unsent[count..];
                session.send(&mut Sink(socket))
            };
            match sent {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    socket.wait_output(deadline)?;
                }
                Err(error) => return Err(error),
            }
        }
        self.flush(socket, deadline)
    }

    /// Sends all encrypted bytes, waiting for room.
    fn flush(&self, socket: &Socket, deadline: Option<Instant>) -> io::Result<()> {
        loop {
            match self.send(socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    socket.wait_output(deadline)?;
                }
                result => return result,
            }
        }
    }

    /// Sends encrypted bytes as far as there is room.
    fn send(&self, socket: &Socket) -> io::Result<()> {
        self.session().send(&mut Sink(socket))
    }

    /// Sends close_notify, if there is room for it.
    pub(super) fn close(&self, socket: &Socket) {
        self.session().close();
        let _ = self.send(socket);
    }
}

/// More follows immediately: TCP may wait for it to fill a segment. send(2).
const MORE: MsgFlags = MsgFlags::from_bits_retain(libc::MSG_MORE);

/// The socket as a session's output: accepts what fits, without waiting.
struct Sink<'a>(&'a Socket);

impl Sink<'_> {
    fn send(&self, bytes: &[u8], more: MsgFlags) -> io::Result<usize> {
        let fd = self.0.output().as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL | more;
        loop {
            match send(fd, bytes, flags) {
                Err(Errno::EINTR) => {}
                // A pipe (`-s`), whose write waits for room.
                Err(Errno::ENOTSOCK) => return Ok(nix::unistd::write(self.0.output(), bytes)?),
                result => return Ok(result?),
            }
        }
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes, MsgFlags::empty())
    }

    /// Sends slice by slice: the worker's seccomp filter denies sendmsg, and writev would wait.
    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut sent = 0;
        for (index, slice) in slices.iter().enumerate() {
            let is_last = index + 1 == slices.len();
            match self.send(slice, if is_last { MsgFlags::empty() } else { MORE }) {
                Ok(count) => {
                    sent += count;
                    if count < slice.len() {
                        break;
                    }
                }
                Err(_) if sent > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
