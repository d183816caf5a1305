//! Disks that another server carries out the requests of, so that one thread can have many of them
//! in flight.
//!
//! Where every request needs an answer from elsewhere, a thread for each of them costs more than
//! the request: two hand-overs between threads. The thread that reads a client's requests sends
//! these on itself, and replies when the answers come. It is the only one that uses the disk
//! meanwhile: before a request takes any other way, it waits until none is in flight.

use std::os::fd::BorrowedFd;

use crate::error::Result;

/// The number of a request in flight; small, and used again once the request is done.
pub type Ticket = u32;

/// What to wait for before [`Pipeline::collect`] may have something.
#[derive(Debug, Clone, Copy)]
pub struct Awaited<'a> {
    /// A socket: readable when an answer may have come.
    pub fd: BorrowedFd<'a>,
    /// Whether requests are left to be sent once it is writable.
    pub writable: bool,
}

/// A disk that has many requests of one thread in flight. No method waits.
pub trait Pipeline {
    /// Queues a read of `count` bytes from `offset` on; `None` if it has to be carried out by
    /// `pread`, and nothing was done.
    fn queue_read(&self, count: u32, offset: u64) -> Option<Ticket>;

    /// Queues a write, without flags, of `data`, or sends what there is room for; `None` if it has to be carried out by `pwrite`, and
    /// nothing was done.
    fn queue_write(&self, data: &[u8], offset: u64) -> Option<Ticket>;

    /// Sends what is queued, as far as there is room for it. An error shows as the result of each
    /// request.
    fn send(&self);

    /// Calls `done` for each request that is done, with the bytes if it was a read.
    fn collect(&self, done: &mut dyn FnMut(Ticket, Result<&[u8]>));

    /// What to wait for.
    fn awaited(&self) -> Awaited<'_>;

    /// Frees memory that is kept for the next requests: the client is idle.
    fn shrink(&self);
}
