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
        queue.bytes.extend_from_slice(payload);
        Some(index)
    }

    /// Sends what is queued, as far as there is room in the socket.
    pub(in super::super) fn send_queued(&self) {
        let mut queue = self.unsent.lock();
        while queue.sent < queue.bytes.len() {
            match self.socket.send_now(&queue.bytes[queue.sent..]) {
                Ok(Some(count)) => queue.sent += count,
                Ok(None) => return,
                Err(why) => {
                    self.kill(&mut self.lock(), &why);
                    break;
                }
            }
        }
        queue.bytes.clear();
        queue.sent = 0;
    }

    /// Receives what has come, and calls `done` for each queued request that is done.
    pub(in super::super) fn collect(&self, done: &mut dyn FnMut(Ticket, Result<&[u8]>)) {
        let mut state = self.lock();
        let alive = state.dead.is_none();
        if let Some(mut decoder) = state.decoder.take_if(|_| alive) {
            // Less than there was room for is all that there was.
            let mut more = true;
            let end = loop {
                match decoder.step(&mut state.table, NOBODY, &mut []) {
                    Ok(Step::Read) if more => {}
                    Ok(_) => break Ok(()),
                    Err(why) => break Err(why),
                }
                let space = decoder.space();
                let room = space.len();
                match self.socket.receive_now(space) {
                    Ok(Received::Bytes(count)) => {
                        decoder.filled(count);
                        more = count == room;
                    }
                    Ok(Received::Nothing) => break Ok(()),
                    Ok(Received::End) => break Err(disconnected()),
                    Err(why) => break Err(why),
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
                None => done(index, Ok(&slot.data)),
                Some(why) => done(index, Err(why)),
            }
            state.table.release(index);
        }
        unlock_and_wake(state);
    }

    /// What to wait for before [`collect`](Self::collect) may find something.
    pub(in super::super) fn awaited(&self) -> Awaited<'_> {
        let queue = self.unsent.lock();
        Awaited { fd: self.socket.fd(), writable: queue.sent < queue.bytes.len() }
    }
}
