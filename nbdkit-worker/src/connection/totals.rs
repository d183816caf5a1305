//! What a client reads and writes, for `--log-connections`.
//!
//! The reader counts valid requests when it has decoded them; a request that fails, which is rare,
//! is subtracted by the thread that carries it out. So the data path has one addition for each
//! request, to memory that only its thread writes.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use nbd_protocol::constants::Command;
use nbd_protocol::transmission::Request;
use nbdkit_ipc::messages::Totals;

/// Bytes that requests were to read and to write, and of these, bytes of requests that failed.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    read: Counter,
    written: Counter,
}

#[derive(Debug, Default)]
struct Counter {
    /// Written by the reader alone.
    requested: AtomicU64,
    failed: AtomicU64,
}

impl Counters {
    /// Counts a valid request. Called by the one thread that reads requests.
    #[inline]
    pub(super) fn requested(&self, request: &Request) {
        if let Some(Counter { requested, .. }) = self.of(request.command) {
            let sum = requested.load(Ordering::Relaxed).wrapping_add(request.length);
            requested.store(sum, Ordering::Relaxed);
        }
    }

    /// A request that was counted has failed.
    #[cold]
    pub(super) fn failed(&self, request: &Request) {
        if let Some(Counter { failed, .. }) = self.of(request.command) {
            failed.fetch_add(request.length, Ordering::Relaxed);
        }
    }

    /// The sums, when no request is carried out any more.
    pub(crate) fn totals(&self) -> Totals {
        let done = |counter: &Counter| {
            let failed = counter.failed.load(Ordering::Relaxed);
            counter.requested.load(Ordering::Relaxed).saturating_sub(failed)
        };
        Totals { read: done(&self.read), written: done(&self.written) }
    }

    fn of(&self, command: Command) -> Option<&Counter> {
        match command {
            Command::READ => Some(&self.read),
            Command::WRITE => Some(&self.written),
            _ => None,
        }
    }
}
