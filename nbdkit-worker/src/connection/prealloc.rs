//! `--swap`: a connection allocates its memory and starts its threads before the first request, and
//! keeps them. A request must not wait for memory while the kernel waits for this disk to write out
//! a page.
//!
//! Allocated here is what requests of up to [`PREALLOCATED`] bytes need: buffers of the reading
//! thread and of the pool, the pool's threads with their stacks, pipes, and a reserve of the heap
//! for small allocations (extents, error texts, TLS records). A longer request allocates when it
//! comes.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use super::pool::{PREALLOCATED, Pool};
use super::reply::Replies;
use super::{Activity, End};
use crate::process;

/// Room for a batch of replies in front of one of [`PREALLOCATED`] bytes, bytes: see
/// `reader::FLUSH_AT`.
const BATCH: usize = 128 * 1024;
/// Heap reserve for small allocations, bytes: several times what a load of all kinds of requests
/// used, with TLS.
const RESERVE: usize = 4 << 20;
/// A thread's buffer in the file plugin, which passes the page cache by, bytes.
const DIRECT: usize = 136 * 1024;

/// Whether a connection preallocates.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prealloc(bool);

impl Prealloc {
    pub(super) fn new(on: bool) -> Prealloc {
        Prealloc(on)
    }

    pub(super) fn is_on(self) -> bool {
        self.0
    }

    /// Grows the heap for the buffers of a connection with `threads` threads in its pool, and for
    /// the reserve.
    ///
    /// # Errors
    /// Not enough memory, or it cannot be locked; already logged.
    pub(super) fn reserve(self, threads: usize) -> Result<(), End> {
        // The kernel's page of clock data is not part of what mlockall(2) populates: it is mapped
        // by the first read. vdso(7)
        std::hint::black_box(Instant::now());
        let thread = (PREALLOCATED + BATCH) + PREALLOCATED + DIRECT;
        process::reserve_heap(thread * (threads + 1) + RESERVE)
            .map_err(|error| refused("memory", &error))
    }

    /// A thread's buffer of replies.
    pub(super) fn replies(self) -> Replies {
        if self.0 { Replies::with_room(PREALLOCATED + BATCH) } else { Replies::default() }
    }

    /// The reading thread's buffer for payloads longer than its input buffer.
    pub(super) fn payload(self) -> Vec<u8> {
        if self.0 { Vec::with_capacity(PREALLOCATED) } else { Vec::new() }
    }

    /// Shrinks the buffer of [`payload`](Self::payload) after a long request.
    pub(super) fn empty(self, payload: &mut Vec<u8>) {
        if self.0 {
            payload.truncate(PREALLOCATED);
            payload.shrink_to(PREALLOCATED);
        } else {
            *payload = Vec::new();
        }
    }

    /// A pool of `threads` threads.
    pub(super) fn pool(self, threads: usize, activity: Arc<Activity>) -> Pool {
        if self.0 { Pool::preallocated(threads, activity) } else { Pool::new(threads, activity) }
    }
}

/// Logs what could not be allocated, and ends the connection.
pub(super) fn refused(what: &str, error: &dyn std::fmt::Display) -> End {
    nbdkit_api::error!("--swap: client refused: {what}: {error}");
    End::Refused
}
