//! Sends batches of replies to the client, from the reader and from the threads of the pool.

#![forbid(unsafe_code)]

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::super::reply::Replies;
use super::super::{Connection, Socket};

/// The sending side of a connection, shared by its threads.
pub(super) struct Sender<'a> {
    connection: &'a Connection<'a>,
    /// Held while a batch is sent, so that batches of two threads do not mix.
    output: Mutex<()>,
    /// The first error of sending. Once it is set, nothing is sent any more.
    failed: OnceLock<io::Error>,
}

impl<'a> Sender<'a> {
    pub(super) fn new(connection: &'a Connection<'a>) -> Sender<'a> {
        Sender { connection, output: Mutex::new(()), failed: OnceLock::new() }
    }

    /// Sends a batch and empties it.
    ///
    /// # Errors
    /// A reply could not be sent, now or before.
    pub(super) fn send(&self, replies: &mut Replies) -> io::Result<()> {
        if replies.is_empty() {
            return Ok(());
        }
        self.send_with(replies, |socket, bytes| socket.write_all(bytes, None))
    }

    /// Lets `send` send a batch while no other thread sends, and empties it.
    ///
    /// # Errors
    /// That of `send`; a reply could not be sent before.
    pub(super) fn send_with(
        &self,
        replies: &mut Replies,
        send: impl FnOnce(&Socket, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let result = {
            let _output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            if self.connection.client.is_cut() || self.failed.get().is_some() {
                Err(io::ErrorKind::BrokenPipe.into())
            } else {
                send(&self.connection.socket, replies.bytes())
            }
        };
        replies.clear();
        result.map_err(|error| {
            // io::Error has no Clone: the caller gets the kind, the first error is kept for the
            // log.
            let copy = io::Error::from(error.kind());
            if self.failed.set(error).is_ok() {
                // Wakes the reader, which may wait for requests that nobody could be replied to.
                self.connection.socket.stop_reading();
            }
            copy
        })
    }

    /// The first error of sending, if there was one.
    pub(super) fn take_error(&mut self) -> Option<io::Error> {
        self.failed.take()
    }
}
