//! `--swap`: the memory of a connection is taken before the first request and kept, so that no request has to wait for the kernel to
//! find memory, which may be waiting for this very disk to take a page.
//!
//! What requests of up to [`KEPT`] bytes need is taken here: buffers of the reading thread and of the pool's, those threads
//! with their stacks, pipes, and a reserve of the heap for what is small and does not last (lists of extents, texts, records of TLS).
//! A longer request takes memory when it comes.

#![forbid(unsafe_code)]

use std::time::Instant;

use super::End;
use super::pool::{KEPT, Pool};
use super::reply::Replies;
use crate::process;

/// Replies that gather before they are sent, beyond one of [`KEPT`] bytes: see `transmission::FLUSH_AT`. Bytes.
const GATHERED: usize = 128 * 1024;
/// What is small and does not last, bytes: several times what a load of all kinds of requests has been seen to need, with TLS.
const REST: usize = 4 << 20;

/// Whether a connection keeps its memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept(bool);

impl Kept {
    pub(super) fn new(on: bool) -> Kept {
        Kept(on)
    }

    pub(super) fn is_on(self) -> bool {
        self.0
    }

    /// Has the kernel allocate what the buffers of a connection with so many threads beside the reading one take, and the rest.
    ///
    /// # Errors
    /// There is not so much, or it may not be locked into memory; already logged.
    pub(super) fn reserve(self, threads: usize) -> Result<(), End> {
        // The kernel's page with the time, which locking leaves out, is mapped when the clock is first read. vdso(7)
        std::hint::black_box(Instant::now());
        let (replies, payloads) = ((KEPT + GATHERED) * (threads + 1), KEPT * (threads + 1));
        process::reserve_heap(replies + payloads + REST).map_err(|error| refused("memory", &error))
    }

    /// Where a thread gathers replies.
    pub(super) fn replies(self) -> Replies {
        if self.0 { Replies::with_room(KEPT + GATHERED) } else { Replies::default() }
    }

    /// What the reading thread reads payloads into that are longer than its buffer.
    pub(super) fn payload(self) -> Vec<u8> {
        if self.0 { Vec::with_capacity(KEPT) } else { Vec::new() }
    }

    /// Empties that, after a long payload.
    pub(super) fn empty(self, payload: &mut Vec<u8>) {
        if self.0 {
            payload.truncate(KEPT);
            payload.shrink_to(KEPT);
        } else {
            *payload = Vec::new();
        }
    }

    /// A pool of so many threads.
    pub(super) fn pool(self, threads: usize) -> Pool {
        if self.0 { Pool::kept(threads) } else { Pool::new(threads) }
    }
}

/// Logs what could not be had, and ends the connection.
pub(super) fn refused(what: &str, error: &dyn std::fmt::Display) -> End {
    nbdkit_api::error!("--swap: client refused: {what}: {error}");
    End::Refused
}
