//! A connection to an upstream server in its transmission phase: requests of many threads at once.
//!
//! There is no thread of its own. Whoever waits for a reply receives, if nobody else does, for
//! itself and for the others, until its own reply is complete; then the next one does. With one
//! request at a time nothing is handed from one thread to another. Bytes of the server are hostile:
//! after a violation the connection is dead, and all who wait are told so.

#![forbid(unsafe_code)]

mod outgoing;
mod pipelined;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::Instant;

use nbd_protocol::constants::{Command, CommandFlags};
use nbd_protocol::transmission::Request;
use nbdkit_api::{Client, Errno, Error, Result, client};

use self::outgoing::Outgoing;
use self::pipelined::Unsent;
use super::decode::{Decoder, Step};
use super::haggle::{Facts, Form};
use super::socket::{LOOK, Received, Socket, disconnected};
use super::table::{Kind, Mailbox, Reply, Sleeper, Table};

/// A request, without its cookie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) command: Command,
    pub(super) flags: CommandFlags,
    pub(super) offset: u64,
    /// Bytes; fits the form of the connection's requests.
    pub(super) length: u64,
    pub(super) kind: Kind,
}

/// A connection that transmits.
pub(super) struct Link {
    socket: Socket,
    /// What is known of the export.
    pub(super) facts: Facts,
    /// Several clients use it.
    shared: bool,
    outgoing: Outgoing,
    unsent: Unsent,
    state: Mutex<State>,
    is_dead: AtomicBool,
}

struct State {
    table: Table,
    /// `None` while a thread receives.
    decoder: Option<Decoder>,
    /// The request whose thread has to receive next.
    next: Option<u32>,
    /// Why the connection is of no use any more.
    dead: Option<Error>,
}

impl State {
    /// Has a thread woken that receives next, if none does.
    fn wake_receiver(&mut self) {
        if self.decoder.is_some()
            && self.dead.is_none()
            && let Some(next) = self.next.or_else(|| self.table.sleeper())
        {
            self.table.wake(next);
        }
    }
}

impl Link {
    pub(super) fn new(socket: Socket, facts: Facts, shared: bool) -> Link {
        let state = State {
            table: Table::default(),
            decoder: Some(Decoder::new(facts.form)),
            next: None,
            dead: None,
        };
        Link {
            socket,
            facts,
            shared,
            outgoing: Outgoing::default(),
            unsent: Unsent::default(),
            state: Mutex::new(state),
            is_dead: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under the lock but by a mistake, which ends the connection's requests.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out a request: sends it with `payload`, and waits for the reply. The bytes of a read
    /// are in `buf` then, which has its length.
    ///
    /// # Errors
    /// The server's; ESHUTDOWN: `client` has gone; the connection is dead.
    pub(super) fn call(
        &self,
        client: Option<&Client>,
        asked: &Asked,
        payload: &[u8],
        buf: &mut [u8],
    ) -> Result<Vec<(u64, u32)>> {
        let (index, cookie) = {
            let mut state = self.lock();
            if let Some(why) = &state.dead {
                return Err(why.clone());
            }
            state.table.begin(asked.kind)
        };
        let result = self.encode(asked, cookie, |head| self.send(client, head, payload));
        if let Err(why) = result {
            // A part of the request may have been sent.
            self.kill(&mut self.lock(), &why);
        }
        let Reply { data, extents } = self.wait(client, index, buf)?;
        if let Some(buf) = buf.get_mut(..data.len()) {
            buf.copy_from_slice(&data);
        }
        Ok(extents)
    }

    /// Encodes a request in the form of this connection.
    fn encode<T>(&self, asked: &Asked, cookie: u64, use_head: impl FnOnce(&[u8]) -> T) -> T {
        let Asked { command, flags, offset, length, .. } = *asked;
        let request = Request { flags, command, cookie, offset, length };
        match self.facts.form {
            Form::Extended => use_head(&request.encode_extended()),
            Form::Simple | Form::Structured => use_head(&request.encode()),
        }
    }

    fn send(&self, client: Option<&Client>, head: &[u8], payload: &[u8]) -> Result<()> {
        // One client's end is no reason to leave a request half sent that others would send on.
        let client = client.filter(|_| !self.shared);
        self.outgoing.send(head, payload, |head, body| self.socket.send(client, head, body))
    }

    /// From now on every request fails. The first reason counts, and is logged by the first request
    /// that fails.
    fn kill(&self, state: &mut State, why: &Error) {
        if state.dead.is_none() {
            let mut why = why.clone();
            if why.take_for_log() {
                nbdkit_api::error!("{}", why.message());
            }
            state.table.fail_queued(&why);
            state.dead = Some(why);
            self.is_dead.store(true, Ordering::Relaxed);
        }
        state.table.wake_all();
    }

    /// Waits for the reply to a request.
    fn wait(&self, client: Option<&Client>, index: u32, buf: &mut [u8]) -> Result<Reply> {
        let mailbox = Arc::new(Mailbox::default());
        let mut state = self.lock();
        loop {
            if state.table.is_done(index) {
                let reply = state.table.take(index);
                unlock_and_wake(state);
                return reply;
            }
            if let Some(why) = state.dead.clone() {
                state.table.release(index);
                unlock_and_wake(state);
                return Err(why);
            }
            let mine = state.next.is_none_or(|next| next == index);
            if let Some(decoder) = state.decoder.take_if(|_| mine) {
                state.next = None;
                state = self.receive(client, index, buf, decoder, state);
                if !state.table.is_done(index) && state.dead.is_none() && state.next.is_none() {
                    // It has looked for its client, which has gone.
                    return Err(give_up(state, index));
                }
                if state.next.is_some() {
                    state.wake_receiver();
                    let to_wake = std::mem::take(&mut state.table.to_wake);
                    to_wake.iter().for_each(Thread::unpark);
                }
                continue;
            }
            let sleeper = Sleeper { thread: thread::current(), mailbox: Arc::clone(&mailbox) };
            state.table.slot(index).sleeper = Some(sleeper);
            drop(state);
            let end = Instant::now() + LOOK;
            thread::park_timeout(LOOK);
            if let Some(reply) = mailbox.take() {
                return reply;
            }
            state = self.lock();
            if let Some(reply) = mailbox.take() {
                return reply;
            }
            // It is for the thread to receive, or for nothing.
            state.table.slot(index).sleeper = None;
            if Instant::now() >= end && client::check_present(client).is_err() {
                return Err(give_up(state, index));
            }
        }
    }

    /// Receives replies until the one of request `index` is complete, or another thread has to go
    /// on, or the connection is dead, or the client has gone. Puts the decoder back.
    fn receive<'a>(
        &'a self,
        client: Option<&Client>,
        index: u32,
        buf: &mut [u8],
        mut decoder: Decoder,
        mut state: MutexGuard<'a, State>,
    ) -> MutexGuard<'a, State> {
        loop {
            let step = decoder.step(&mut state.table, index, buf);
            let step = match step {
                Err(why) => {
                    self.kill(&mut state, &why);
                    break;
                }
                Ok(_) if state.table.is_done(index) => break,
                Ok(Step::Own(other)) => {
                    state.next = Some(other);
                    break;
                }
                Ok(step) => step,
            };
            let expected = state.table.expects_long();
            unlock_and_wake(state);
            let received = match step {
                Step::Direct { at, left } => self.socket.receive(&mut buf[at..at + left]),
                Step::Read | Step::Own(_) | Step::Kept { .. } => {
                    self.socket.receive(decoder.space(expected))
                }
            };
            state = self.lock();
            let done = match (received, step) {
                (Ok(Received::Bytes(count)), Step::Direct { .. }) => {
                    decoder.received(count, &mut state.table)
                }
                (Ok(Received::Bytes(count)), _) => {
                    decoder.filled(count);
                    Ok(())
                }
                (Ok(Received::Nothing), _) if client::check_present(client).is_err() => break,
                (Ok(Received::Nothing), _) => Ok(()),
                (Ok(Received::End), _) => Err(disconnected()),
                (Err(why), _) => Err(why),
            };
            if let Err(why) = done {
                self.kill(&mut state, &why);
            }
            if state.dead.is_some() {
                break;
            }
        }
        state.decoder = Some(decoder);
        state
    }
}

/// Gives up a request whose client has gone. Its reply will be dropped.
fn give_up(mut state: MutexGuard<'_, State>, index: u32) -> Error {
    state.table.abandon(index);
    if state.next == Some(index) {
        state.next = None;
    }
    unlock_and_wake(state);
    Error::silent(Errno::ESHUTDOWN).context("aborting wait because the connection is closing")
}

/// Has somebody receive if nobody does, and wakes those whose requests are done.
fn unlock_and_wake(mut state: MutexGuard<'_, State>) {
    state.wake_receiver();
    let to_wake = std::mem::take(&mut state.table.to_wake);
    drop(state);
    to_wake.iter().for_each(Thread::unpark);
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.is_dead.load(Ordering::Relaxed) {
            return;
        }
        let request = Request {
            flags: CommandFlags::empty(),
            command: Command::DISC,
            cookie: 0,
            offset: 0,
            length: 0,
        };
        match self.facts.form {
            Form::Extended => self.socket.close(&request.encode_extended()),
            Form::Simple | Form::Structured => self.socket.close(&request.encode()),
        }
    }
}
