//! Requests of one thread that does not wait for each of them: [`Pipeline`].
//!
//! Only for a connection that has one client and no TLS. The server sees to it that nobody is in
//! [`Link::call`] meanwhile; if somebody is, that thread receives for this one too.

#![forbid(unsafe_code)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use nbdkit_api::Result;
use nbdkit_api::pipeline::{Awaited, Ticket};

use super::super::decode::Step;
use super::super::socket::{Received, disconnected};
use super::super::table::{KEPT, Kind};
use super::{Asked, Link, unlock_and_wake};

/// No request's number: the thread that decodes has no request of its own.
const NOBODY: u32 = u32::MAX;

/// Requests that are on their way out.
#[derive(Default)]
pub(super) struct Unsent(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    sent: usize,
}

impl Unsent {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// Whether one thread may have many requests in flight.
    pub(in super::super) fn is_pipelined(&self) -> bool {
        !self.shared && self.socket.is_plain()
    }

    /// Queues a request; `None` if the connection is dead.
    pub(in super::super) fn queue(&self, asked: &Asked, payload: &[u8]) -> Option<Ticket> {
        let (index, cookie) = {
            let mut state = self.lock();
            if state.dead.is_some() {
                return None;
            }
            state.table.begin_queued(asked.kind)
        };
        let mut queue = self.unsent.lock();
        self.encode(asked, cookie, |head| queue.bytes.extend_from_slice(head));
        if payload.len() > KEPT as usize {
            // What is sent at once is not copied.
            self.send_as_much(&mut queue, payload);
        } else {
            queue.bytes.extend_from_slice(payload);
        }
        Some(index)
    }

    /// Sends what is queued, as far as there is room in the socket.
    pub(in super::super) fn send_queued(&self) {
        self.send_as_much(&mut self.unsent.lock(), &[]);
    }

    /// Sends what is queued and then `payload`, as far as there is room, and queues the rest.
    fn send_as_much(&self, queue: &mut Queue, mut payload: &[u8]) {
        let send = |bytes: &[u8], more| match self.socket.send_now(bytes, more) {
            Ok(count) => count,
            Err(why) => {
                self.kill(&mut self.lock(), &why);
                // Nothing will be sent any more.
                bytes.len()
            }
        };
        while queue.sent < queue.bytes.len() {
            match send(&queue.bytes[queue.sent..], !payload.is_empty()) {
                0 => return queue.bytes.extend_from_slice(payload),
                count => queue.sent += count,
            }
        }
        queue.bytes.clear();
        queue.sent = 0;
        while !payload.is_empty() {
            match send(payload, false) {
                0 => return queue.bytes.extend_from_slice(payload),
                count => payload = &payload[count..],
            }
        }
    }

    /// Receives what has come, and calls `done` for each queued request that is done.
    pub(in super::super) fn collect(&self, done: &mut dyn FnMut(Ticket, Result<&[u8]>)) {
        let mut state = self.lock();
        let alive = state.dead.is_none();
        if let Some(mut decoder) = state.decoder.take_if(|_| alive) {
            // Less than there was room for is all that there was.
            let mut more = true;
            let end = loop {
                let table = &mut state.table;
                let step = match decoder.step(table, NOBODY, &mut []) {
                    Ok(step) if more => step,
                    Ok(_) => break Ok(()),
                    Err(why) => break Err(why),
                };
                let space = match step {
                    Step::Read => decoder.space(table.expects_long()),
                    Step::Kept { index, at, left } => &mut table.slot(index).kept()[at..][..left],
                    // There is no request of a thread.
                    Step::Own(_) | Step::Direct { .. } => break Ok(()),
                };
                let room = space.len();
                let count = match self.socket.receive_now(space) {
                    Ok(Received::Bytes(count)) => count,
                    Ok(Received::Nothing) => break Ok(()),
                    Ok(Received::End) => break Err(disconnected()),
                    Err(why) => break Err(why),
                };
                more = count == room;
                if step == Step::Read {
                    decoder.filled(count);
                } else if let Err(why) = decoder.received(count, table) {
                    break Err(why);
                }
            };
            state.decoder = Some(decoder);
            if let Err(why) = end {
                self.kill(&mut state, &why);
            }
        }
        while let Some(index) = state.table.collect() {
            let slot = state.table.slot(index);
            match slot.error.take() {
                None => {
                    let is_read = matches!(slot.kind, Kind::Read { .. });
                    done(index, Ok(if is_read { &slot.data } else { &[] }));
                }
                Some(why) => done(index, Err(why)),
            }
            state.table.release(index);
        }
        unlock_and_wake(state);
    }

    /// Frees the memory that is kept for the next requests.
    pub(in super::super) fn shrink(&self) {
        self.lock().table.shrink();
        let mut queue = self.unsent.lock();
        if queue.bytes.is_empty() {
            queue.bytes = Vec::new();
        }
    }

    /// What to wait for before [`collect`](Self::collect) may find something.
    pub(in super::super) fn awaited(&self) -> Awaited<'_> {
        let queue = self.unsent.lock();
        Awaited { fd: self.socket.fd(), writable: queue.sent < queue.bytes.len() }
    }
}
