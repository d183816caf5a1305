//! The requests that have been sent to an upstream server and not been answered in full.
//!
//! Data in memory, without locks and sockets: [`Link`](super::link::Link) puts it behind a lock,
//! [`Decoder`](super::decode::Decoder) fills it in from bytes of the server, which are hostile.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;

use nbdkit_api::{Error, Result};

use super::coverage::Coverage;
use super::haggle::violation;

/// Up to this many bytes, the reply to a read is kept for its thread by whichever thread receives
/// it. A longer one is received by its own thread, straight into the buffer that it is for.
pub(super) const KEPT: u32 = 32 * 1024;

/// Bytes of memory that a slot keeps at most between requests of a pipeline.
const REUSED: usize = 256 * 1024;

/// Which request, and what its reply brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A result, no data.
    Plain,
    /// Bytes of the export.
    Read { offset: u64, length: u32 },
    /// Extents of one context.
    Status { context: u32 },
}

fn is_long(kind: Kind) -> bool {
    matches!(kind, Kind::Read { length, .. } if length > KEPT)
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// The reply is outstanding, or a part of it.
    Pending,
    /// The same, and nobody wants it.
    Abandoned,
    Done,
}

/// One request.
#[derive(Debug)]
pub(super) struct Slot {
    /// Of the cookie: a late reply does not count for the next request in the slot.
    generation: u32,
    state: State,
    pub(super) kind: Kind,
    /// The first error.
    pub(super) error: Option<Error>,
    /// Which bytes of a read have come.
    pub(super) coverage: Coverage,
    /// The bytes of a read that another thread has received.
    pub(super) data: Vec<u8>,
    /// Bytes and flags of extents.
    pub(super) extents: Vec<(u64, u32)>,
    /// Whether data is received by the request's own thread alone.
    pub(super) own_thread: bool,
    /// The request's thread, while it sleeps.
    pub(super) sleeper: Option<Sleeper>,
    /// No thread waits for it: it is one of a pipeline's.
    pub(super) queued: bool,
}

/// A thread that sleeps until it is unparked, and where it finds its reply then. It need not lock
/// the table for that, which all threads do.
#[derive(Debug)]
pub(super) struct Sleeper {
    pub(super) thread: Thread,
    pub(super) mailbox: Arc<Mailbox>,
}

/// Where the reply to one request is put.
#[derive(Debug, Default)]
pub(super) struct Mailbox(Mutex<Option<Result<Reply>>>);

impl Mailbox {
    fn put(&self, reply: Result<Reply>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reply);
    }

    /// The reply, if it is there.
    pub(super) fn take(&self) -> Option<Result<Reply>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Slot {
    /// Where bytes of a read are put that are not received by the request's own thread.
    pub(super) fn kept(&mut self) -> &mut [u8] {
        if let Kind::Read { length, .. } = self.kind {
            self.data.resize(length as usize, 0);
        }
        &mut self.data
    }
}

/// What a reply has brought.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// The bytes of a read, unless they went to the request's buffer at once.
    pub(super) data: Vec<u8>,
    /// Bytes and flags of extents, from the request's offset on.
    pub(super) extents: Vec<(u64, u32)>,
}

/// All requests of a connection.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Threads to be unparked once the table is unlocked.
    pub(super) to_wake: Vec<Thread>,
    /// Reads of more than [`KEPT`] bytes that are outstanding.
    long: usize,
    /// Requests of a pipeline that are done and have not been collected.
    collectable: VecDeque<u32>,
}

impl Table {
    /// Enters a request; the number of its slot, and the cookie.
    pub(super) fn begin(&mut self, kind: Kind) -> (u32, u64) {
        self.enter(kind, false)
    }

    /// Enters a request that no thread waits for.
    pub(super) fn begin_queued(&mut self, kind: Kind) -> (u32, u64) {
        self.enter(kind, true)
    }

    fn enter(&mut self, kind: Kind, queued: bool) -> (u32, u64) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                state: State::Free,
                kind: Kind::Plain,
                error: None,
                coverage: Coverage::default(),
                data: Vec::new(),
                extents: Vec::new(),
                own_thread: false,
                sleeper: None,
                queued: false,
            });
            // As many as there are threads, or the pipeline has requests.
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.state = State::Pending;
        slot.kind = kind;
        slot.own_thread = is_long(kind) && !queued;
        slot.queued = queued;
        self.long += usize::from(is_long(kind));
        (index, u64::from(slot.generation) << 32 | u64::from(index))
    }

    /// Whether a reply may come whose data is better received past the decoder's buffer.
    pub(super) fn expects_long(&self) -> bool {
        self.long > 0
    }

    /// A request of a pipeline that is done, with its bytes in [`Slot::data`] and its error in
    /// [`Slot::error`]; to be released.
    pub(super) fn collect(&mut self) -> Option<u32> {
        self.collectable.pop_front()
    }

    /// Ends the requests of a pipeline with an error.
    pub(super) fn fail_queued(&mut self, why: &Error) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.queued && slot.state == State::Pending {
                slot.state = State::Done;
                slot.error.get_or_insert_with(|| why.clone());
                self.collectable.push_back(index as u32);
            }
        }
    }

    /// The slot of a request that is outstanding.
    ///
    /// # Errors
    /// There is none with this cookie.
    pub(super) fn find(&self, cookie: u64) -> Result<u32> {
        let (generation, index) = ((cookie >> 32) as u32, cookie as u32);
        match self.slots.get(index as usize) {
            Some(slot)
                if slot.generation == generation
                    && matches!(slot.state, State::Pending | State::Abandoned) =>
            {
                Ok(index)
            }
            _ => Err(violation(format_args!("reply to no request (cookie {cookie:#x})"))),
        }
    }

    /// The slot with a number that `begin` or `find` returned.
    pub(super) fn slot(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }

    /// Whether nobody wants the reply.
    pub(super) fn is_abandoned(&self, index: u32) -> bool {
        self.slots[index as usize].state == State::Abandoned
    }

    /// Whether the reply is complete.
    pub(super) fn is_done(&self, index: u32) -> bool {
        self.slots[index as usize].state == State::Done
    }

    /// The reply is complete: a thread that sleeps gets it, and the slot is free.
    ///
    /// # Errors
    /// It lacks what the request asked for.
    pub(super) fn finish(&mut self, index: u32) -> Result<()> {
        let slot = &mut self.slots[index as usize];
        if slot.state == State::Abandoned {
            self.release(index);
            return Ok(());
        }
        if slot.error.is_none() {
            match slot.kind {
                Kind::Read { length, .. } if slot.coverage.total() != u64::from(length) => {
                    return Err(violation("reply to a read lacks data"));
                }
                Kind::Status { .. } if slot.extents.is_empty() => {
                    return Err(violation("reply to a block status request lacks extents"));
                }
                Kind::Read { .. } | Kind::Status { .. } | Kind::Plain => {}
            }
        }
        slot.state = State::Done;
        if slot.queued {
            self.collectable.push_back(index);
        }
        if let Some(Sleeper { thread, mailbox }) = slot.sleeper.take() {
            mailbox.put(self.take(index));
            self.to_wake.push(thread);
        }
        Ok(())
    }

    /// Takes the result of a request that is done, and frees its slot.
    pub(super) fn take(&mut self, index: u32) -> Result<Reply> {
        let slot = &mut self.slots[index as usize];
        let reply = Reply {
            data: std::mem::take(&mut slot.data),
            extents: std::mem::take(&mut slot.extents),
        };
        let error = slot.error.take();
        self.release(index);
        error.map_or(Ok(reply), Err)
    }

    /// The thread of a request waits no longer. The slot is free once the reply has come.
    pub(super) fn abandon(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        match slot.state {
            State::Pending => {
                slot.state = State::Abandoned;
                (slot.data, slot.extents) = Default::default();
            }
            State::Done => self.release(index),
            State::Free | State::Abandoned => {}
        }
    }

    /// Frees a slot, after the end of the connection too.
    pub(super) fn release(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.state != State::Free {
            slot.state = State::Free;
            slot.error = None;
            slot.sleeper = None;
            slot.coverage.clear();
            self.long -= usize::from(is_long(slot.kind));
            // Of a pipeline's request, the memory is kept for the next one.
            if !slot.queued || slot.data.capacity() > REUSED {
                slot.data = Vec::new();
            }
            slot.queued = false;
            slot.extents = Vec::new();
            self.free.push(index);
        }
    }

    /// Frees the memory that is kept for a pipeline's next requests.
    pub(super) fn shrink(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| slot.state == State::Free) {
            slot.data = Vec::new();
        }
    }

    /// Notes an error of a request; the first one counts.
    pub(super) fn fail(&mut self, index: u32, error: Error) {
        self.slots[index as usize].error.get_or_insert(error);
    }

    /// A request whose thread sleeps.
    pub(super) fn sleeper(&self) -> Option<u32> {
        // As many as there are threads.
        self.slots.iter().position(|slot| slot.sleeper.is_some()).map(|index| index as u32)
    }

    /// Wakes the thread of a request, if it sleeps, once the table is unlocked.
    pub(super) fn wake(&mut self, index: u32) {
        let sleeper = self.slots[index as usize].sleeper.take();
        self.to_wake.extend(sleeper.map(|sleeper| sleeper.thread));
    }

    /// Wakes all threads, once the table is unlocked.
    pub(super) fn wake_all(&mut self) {
        let asleep = self.slots.iter_mut().filter_map(|slot| slot.sleeper.take());
        self.to_wake.extend(asleep.map(|sleeper| sleeper.thread));
    }
}
