//! What may be called, by need: a file for each need, a reason on each line. Data only;
//! [`super::filter`] composes the lists by name and compiles them. What every program of the
//! project denies is in [`nbdkit_sandbox::lists`].
//!
//! Adding a line is a decision about every worker of that need: its comment names the caller, or
//! the attack. Arguments are tested where a call does more than its caller wants: new processes by
//! clone, code by mmap, signals to others by fcntl, sockets by family.

#![forbid(unsafe_code)]

mod client;
mod compat;
mod disk;
mod files;
mod in_file;
mod network;
mod programs;
mod runtime;
mod shared;
mod template;
mod threads;
mod tree;

use nbdkit_sandbox::seccomp::Line;

pub(super) use compat::{FAMILIES, STARTING};
pub(super) use files::{BROKERED, FILE, OPENING};
pub(super) use in_file::IN_FILE;
pub(super) use network::{FAST_OPEN, INET, OTHER_TRANSPORTS, UNIX};
pub(super) use programs::PROGRAMS;
pub(super) use runtime::ABSENT;
pub(super) use shared::SHARED_MEMORY;
pub(super) use template::{CHILDREN, GIVEN_UP, KILLING, PASSING, TEMPLATE};
pub(super) use threads::THREADS;
pub(super) use tree::TREE;

/// Every stack: it serves a client from what is open, and shares state with other workers.
pub(super) const EVERY_STACK: [&[Line]; 4] =
    [client::CLIENT, disk::DISK, shared::SHARED, runtime::RUNTIME];

/// The bit of clone(2) that makes a thread and not a process.
const THREAD: u64 = libc::CLONE_THREAD as u64;
/// The bit of mmap(2) and mprotect(2) that makes memory executable.
const EXEC: u64 = libc::PROT_EXEC as u64;
