//! Requests on their way out: those that come while one is being sent leave together.

#![forbid(unsafe_code)]

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use nbdkit_api::{Error, Result};

/// A request that is longer, with its payload, is sent by its own thread without being copied.
const COPIED: usize = 16 * 1024;

/// What is to be sent.
#[derive(Default)]
pub(super) struct Outgoing {
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Default)]
struct State {
    /// Requests that the thread which sends has to send on.
    queued: Vec<u8>,
    /// A thread sends.
    sending: bool,
    /// Threads that wait until none does.
    waiting: usize,
    /// Why sending has failed, for good.
    failed: Option<Error>,
}

impl Outgoing {
    /// Sends `head` and `payload` with `send`, or has the thread that is sending send them.
    ///
    /// # Errors
    /// Those of `send`, also of other threads.
    pub(super) fn send(
        &self,
        head: &[u8],
        payload: &[u8],
        send: impl Fn(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let copied = head.len() + payload.len() <= COPIED;
        let mut state = self.lock();
        while state.sending && !copied {
            state.waiting += 1;
            state = self.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        if let Some(why) = &state.failed {
            return Err(why.clone());
        }
        if state.sending {
            state.queued.extend_from_slice(head);
            state.queued.extend_from_slice(payload);
            return Ok(());
        }
        state.sending = true;
        drop(state);
        let mut result = send(head, payload);
        let mut buffer = Vec::new();
        loop {
            state = self.lock();
            if result.is_err() || state.queued.is_empty() {
                break;
            }
            buffer.clear();
            std::mem::swap(&mut buffer, &mut state.queued);
            drop(state);
            result = send(&buffer, &[]);
        }
        state.sending = false;
        state.failed = result.as_ref().err().cloned();
        let waiting = state.waiting;
        drop(state);
        if waiting > 0 {
            self.idle.notify_all();
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
