//! Requests that the plugin has in flight for the reader, which replies when they are done: see
//! [`nbdkit_api::pipeline`].
//!
//! The reader waits for its client and for the plugin's socket at once. Before any other request is
//! carried out by the reader or the pool, none is in flight: two threads that receive from one
//! server would hand each other what they receive.

#![forbid(unsafe_code)]

use std::io;

use nbd_protocol::constants::Command;
use nbd_protocol::transmission::Request;
use nbdkit_api::pipeline::Ticket;
use nbdkit_api::{Errno, Error, Flags, client};

use super::super::super::socket::{Ready, wait_either};
use super::super::super::{During, End};
use super::super::route::is_large_write;
use super::{Reader, read_data};

/// The most requests in flight, and their bytes: the plugin keeps the data of each.
const MAX: usize = 64;
const MAX_BYTES: u64 = 8 << 20;
/// The data of a read from this length on, bytes, is sent from where the plugin has it.
const SENT_APART: usize = 32 * 1024;

/// What the reader waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Plugin,
    PluginOrClient,
    /// The plugin, or that a large request can be sent to it.
    Room,
}

/// The requests in flight, by their tickets.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    requests: Vec<Option<Request>>,
    count: usize,
    bytes: u64,
    /// Their replies are not waited for, and no more are begun.
    given_up: bool,
}

impl InFlight {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Whether there is no room for another of `length` bytes.
    fn is_full(&self, length: u64) -> bool {
        self.count >= MAX || self.count > 0 && self.bytes + length > MAX_BYTES
    }

    fn begin(&mut self, ticket: Ticket, request: Request) {
        let at = ticket as usize;
        if self.requests.len() <= at {
            self.requests.resize(at + 1, None);
        }
        self.requests[at] = Some(request);
        self.count += 1;
        self.bytes += request.length;
    }

    fn end(&mut self, ticket: Ticket) -> Option<Request> {
        let request = self.requests.get_mut(ticket as usize)?.take()?;
        self.count -= 1;
        self.bytes -= request.length;
        Some(request)
    }
}

impl Reader<'_> {
    /// Queues a request with `length` bytes of payload; false if it has to take another way, and
    /// nothing was done.
    pub(super) fn queue(&mut self, request: &Request, length: usize) -> Result<bool, End> {
        while self.in_flight.is_full(request.length) {
            self.flush()?;
            self.wait_for_plugin(For::Plugin)?;
        }
        if self.in_flight.given_up {
            return Ok(false);
        }
        let backend = self.session.target.backend;
        if is_large_write(request) {
            return self.queue_large_write(request, length).map(|()| true);
        }
        let ticket = if request.command == Command::WRITE {
            if length > 0 && !self.input.fill(length).during(read_data(request))? {
                return Err(io::ErrorKind::UnexpectedEof.into()).during(read_data(request));
            }
            backend.queue_write(&self.input.available()[..length], request.offset)
        } else {
            backend.queue_read(request.length as u32, request.offset)
        };
        let Some(ticket) = ticket else { return Ok(false) };
        self.input.consume(length);
        self.in_flight.begin(ticket, *request);
        Ok(true)
    }

    /// Queues a write whose payload is received apart from the input buffer; if that is not
    /// possible, carries it out.
    fn queue_large_write(&mut self, request: &Request, length: usize) -> Result<(), End> {
        // What does not fit the socket would be copied. A dead one has nothing in flight.
        while self.in_flight.count > 0 && !self.wait_for_plugin(For::Room)?.room {
            self.flush()?;
        }
        self.input.read_payload(&mut self.payload, length).during(read_data(request))?;
        let target = &self.session.target;
        match target.backend.queue_write(&self.payload, request.offset) {
            Some(ticket) => self.in_flight.begin(ticket, *request),
            None => {
                self.finish_in_flight()?;
                target.execute(request, Flags::empty(), &self.payload, &mut self.replies);
            }
        }
        // The next payload should stay in the socket, to be received apart too.
        self.input.set_narrow(true);
        Ok(())
    }

    /// Waits until no request is in flight.
    pub(super) fn finish_in_flight(&mut self) -> Result<(), End> {
        while self.in_flight.count > 0 {
            self.flush()?;
            self.wait_for_plugin(For::Plugin)?;
        }
        Ok(())
    }

    /// Replies to what is in flight while it waits for the `length` bytes of a header. Returns with
    /// fewer bytes if nothing is in flight any more.
    pub(super) fn reply_until_header(&mut self, length: usize) -> Result<(), End> {
        let plain = self.session.connection.socket.is_plain();
        while self.in_flight.count > 0 && self.input.available().len() < length {
            self.flush()?;
            // Bytes that have been decrypted do not show in the socket.
            if !plain && self.input.take_more(length).during("read request")? {
                continue;
            }
            if self.wait_for_plugin(For::PluginOrClient)?.client
                && !self.input.take_more(length).during("read request")?
            {
                // The end of input, which stays readable; a part of a TLS record; a pipe.
                self.finish_in_flight()?;
            }
        }
        Ok(())
    }

    /// Sends what is queued, waits, and takes the results of what is done. Room: with nothing
    /// queued any more.
    fn wait_for_plugin(&mut self, wait: For) -> Result<Ready, End> {
        let session = self.session;
        let backend = session.target.backend;
        backend.send_queued();
        let Some(mut awaited) = backend.awaited() else {
            self.give_up();
            return Ok(Ready { plugin: false, room: false, client: false });
        };
        let is_queued = awaited.writable;
        awaited.writable |= wait == For::Room;
        let plain = session.connection.socket.is_plain();
        let socket = (wait == For::PluginOrClient).then_some(&session.connection.socket);
        let ready = wait_either(&awaited, socket).during("wait")?;
        let Self { replies, in_flight, .. } = self;
        let mut sent = Ok(());
        let is_over = !ready.plugin && !ready.room && !ready.client;
        if ready.plugin || is_over {
            backend.collect(|ticket, result| {
                let Some(request) = in_flight.end(ticket) else { return };
                let features = session.features();
                let is_read = request.command == Command::READ;
                match result {
                    Ok(data) if is_read && data.len() >= SENT_APART && plain => {
                        replies.data_header(&request, features, request.offset, data.len());
                        let result = session.sender.send_with(replies, |socket, head| {
                            socket.write_before_more(head)?;
                            socket.write_all(data, None)
                        });
                        sent = std::mem::replace(&mut sent, Ok(())).and(result);
                    }
                    Ok(data) if is_read => {
                        let range = (request.offset, data.len());
                        replies.data::<()>(&request, features, true, range, |buf| {
                            buf.copy_from_slice(data);
                            Some(Ok(()))
                        });
                    }
                    Ok(_) => replies.success(&request, features),
                    Err(error) => {
                        session.target.totals.failed(&request);
                        replies.error(&request, features, &error);
                    }
                }
            });
        }
        sent.during("write reply")?;
        if is_over && client::check_present(Some(&session.connection.client)).is_err() {
            self.give_up();
        }
        Ok(Ready { room: ready.room && !is_queued, ..ready })
    }

    /// Replies to what is in flight that the connection is closing.
    fn give_up(&mut self) {
        self.in_flight.given_up = true;
        for request in std::mem::take(&mut self.in_flight.requests).into_iter().flatten() {
            let error = Error::silent(Errno::ESHUTDOWN);
            self.session.target.totals.failed(&request);
            self.replies.error(&request, self.session.features(), &error);
        }
        (self.in_flight.count, self.in_flight.bytes) = (0, 0);
    }
}
