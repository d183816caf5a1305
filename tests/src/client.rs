//! An NBD client written from the protocol document alone, for tests: it can be correct, and it can
//! be wrong on purpose.
//!
//! Whatever the server sends is checked against the protocol's rules; a breach is a
//! [`Failure::Violation`], never silently accepted. [`Client::send_raw`] and friends send what no
//! correct client would.

mod answer;
mod assembly;
mod handshake;
mod transmission;
mod transport;

use std::collections::HashMap;
use std::fmt;
use std::io;

use nbd_protocol::Malformed;
use nbd_protocol::constants::TransmissionFlags;

pub use answer::{InfoAnswer, ListAnswer, MetaAnswer, OptionReply, OwnedInfo};
pub use assembly::{Chunk, Reply, ReplyError};
pub use transmission::Ask;
pub use transport::{TIMEOUT, Transport};

use crate::uninterrupted;
use assembly::Assembly;

/// Why a client could not go on.
#[derive(Debug)]
pub enum Failure {
    /// The server closed the connection between two messages.
    Closed,
    /// The server closed the connection inside a message.
    Cut,
    /// The server said nothing, or took nothing, for [`TIMEOUT`].
    TimedOut,
    /// The socket failed.
    Io(io::Error),
    /// The server sent bytes that are no message of the protocol.
    Malformed(Malformed),
    /// The server broke a rule of the protocol.
    Violation(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Closed => f.write_str("closed"),
            Failure::Cut => f.write_str("closed inside a message"),
            Failure::TimedOut => f.write_str("timed out"),
            Failure::Io(error) => write!(f, "socket error: {error}"),
            Failure::Malformed(malformed) => write!(f, "malformed: {malformed}"),
            Failure::Violation(rule) => write!(f, "protocol violation: {rule}"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Failure::Malformed(malformed)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A peer that closes with our bytes unread resets the connection; to us it is all the
            // same.
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected => Failure::Closed,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::TimedOut,
            io::ErrorKind::UnexpectedEof => Failure::Cut,
            _ => Failure::Io(error),
        }
    }
}

/// The result of everything a client does.
pub type Result<T> = std::result::Result<T, Failure>;

/// What was negotiated about headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headers {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests and replies.
    Extended,
}

/// One connection.
#[derive(Debug)]
pub struct Client<T> {
    stream: T,
    headers: Headers,
    no_zeroes: bool,
    next_cookie: u64,
    outstanding: HashMap<u64, Assembly>,
    contexts: Vec<(u32, String)>,
    export: Option<(u64, TransmissionFlags)>,
}

impl<T: Transport> Client<T> {
    /// A client on a connected socket, on which every read and write now has a deadline.
    ///
    /// # Panics
    /// If the deadline cannot be set.
    #[must_use]
    pub fn new(stream: T) -> Self {
        stream.set_timeout(TIMEOUT).expect("a socket has timeouts");
        Client {
            stream,
            headers: Headers::Simple,
            no_zeroes: false,
            // Not zero, so that a server that forgets the cookie is found out; far from round
            // numbers, too.
            next_cookie: 0x1122_3344_5566_7700,
            outstanding: HashMap::new(),
            contexts: Vec::new(),
            export: None,
        }
    }

    /// The same client on another layer of its stream.
    pub(crate) fn map<U>(self, wrap: impl FnOnce(T) -> U) -> Client<U> {
        let Client { stream, headers, no_zeroes, next_cookie, outstanding, contexts, export } =
            self;
        Client {
            stream: wrap(stream),
            headers,
            no_zeroes,
            next_cookie,
            outstanding,
            contexts,
            export,
        }
    }

    /// Forgets what was negotiated.
    pub(crate) fn forget(&mut self) {
        self.headers = Headers::Simple;
        self.contexts.clear();
    }

    /// What was negotiated about headers so far.
    #[must_use]
    pub fn headers(&self) -> Headers {
        self.headers
    }

    /// The metadata contexts selected so far: id and name.
    #[must_use]
    pub fn contexts(&self) -> &[(u32, String)] {
        &self.contexts
    }

    /// Export size in bytes and transmission flags, once an export is open.
    #[must_use]
    pub fn export(&self) -> Option<(u64, TransmissionFlags)> {
        self.export
    }

    /// Whether the open export has all these flags.
    #[must_use]
    pub fn offers(&self, flags: TransmissionFlags) -> bool {
        self.export.is_some_and(|(_, offered)| offered.contains(flags))
    }

    /// The socket itself.
    pub fn transport(&mut self) -> &mut T {
        &mut self.stream
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// [`Failure::Closed`], [`Failure::TimedOut`] or [`Failure::Io`].
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)?;
        Ok(self.stream.flush()?)
    }

    /// Receives exactly this many bytes.
    ///
    /// # Errors
    /// [`Failure::Closed`] if the stream ends before the first byte, [`Failure::Cut`] if it ends
    /// later.
    pub fn receive_raw(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match uninterrupted(|| self.stream.read(&mut bytes[filled..]))? {
                0 if filled == 0 => return Err(Failure::Closed),
                0 => return Err(Failure::Cut),
                count => filled += count,
            }
        }
        Ok(bytes)
    }

    fn receive_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.receive_raw(N)?;
        // The length is the one asked for.
        bytes.try_into().map_err(|_| Failure::Cut)
    }

    /// As [`receive_raw`](Self::receive_raw) for the later parts of a message, where the end of the
    /// stream is a cut.
    fn receive_rest(&mut self, length: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(length).ok().filter(|length| *length <= LONGEST_PAYLOAD);
        let Some(length) = length else {
            return Err(Failure::Violation("a payload longer than any request".to_owned()));
        };
        self.receive_raw(length).map_err(|failure| match failure {
            Failure::Closed => Failure::Cut,
            other => other,
        })
    }

    /// Checks that the server closes the connection without another word.
    ///
    /// # Errors
    /// [`Failure::Violation`] if it sends something; [`Failure::TimedOut`] if it stays connected.
    pub fn expect_close(&mut self) -> Result<()> {
        match self.receive_raw(1) {
            Err(Failure::Closed) => Ok(()),
            Ok(byte) => Err(Failure::Violation(format!("sent {byte:02x?} instead of closing"))),
            Err(failure) => Err(failure),
        }
    }

    /// Ends our direction of the stream; the server's replies still come.
    ///
    /// # Errors
    /// [`Failure::Closed`] or [`Failure::Io`].
    pub fn half_close(&mut self) -> Result<()> {
        Ok(self.stream.half_close()?)
    }
}

/// The longest payload that a test ever asks for, with its prefix: beyond it, a server's length is
/// a lie.
const LONGEST_PAYLOAD: usize = 65 * 1024 * 1024;
