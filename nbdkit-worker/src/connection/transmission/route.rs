//! How the reader treats one request: rejected, carried out inline, spliced, or dispatched to the
//! pool.
//!
//! [`route`] is pure: it looks at the request and at a snapshot of the connection and changes
//! nothing. Whether data is in the page cache, or a backend stores a range in a file, it cannot
//! know without asking, so such a route is an attempt with an executor to fall back to.

#![forbid(unsafe_code)]

use nbd_protocol::constants::{Command, MAX_REQUEST};
use nbd_protocol::transmission::Request;
use nbdkit_api::{Blocking, Errno, Error, Flags};

use super::super::inline_writes::Verdict;
use super::super::pin::Pin;
use super::super::receive;
use super::super::splice::{SPLICE_FROM, SPLICE_UP_TO};
use super::super::validate::Rules;
use super::header_length;

/// Longest request that a plugin has in flight without a thread, bytes.
const PIPELINED_UP_TO: u64 = 1 << 20;

/// Longest request that the reader makes a plugin's call for because that is quick, bytes: copying
/// more takes as long as a hand-over.
const QUICK_UP_TO: u64 = 64 << 10;

/// Longest write payload that is read and discarded, bytes. A longer one ends the connection.
const MAX_SKIPPED_WRITE: u64 = 2 * MAX_REQUEST as u64;

/// What the route depends on besides the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct State<'a> {
    /// The limits of the export.
    pub(super) rules: &'a Rules,
    /// How long the backend may keep a thread waiting.
    pub(super) blocking: Blocking,
    /// The lengths that go between file and socket without a copy, bytes: none with TLS.
    pub(super) spliced: Spliced,
    /// Whether one lock is held around every call into the stack.
    pub(super) serialized: bool,
    /// Whether new requests are refused because the connection shuts down.
    pub(super) shutting_down: bool,
    /// Bytes behind the request's header that are in the input buffer.
    pub(super) available: usize,
    /// The threads for requests that may wait.
    pub(super) pool: PoolState,
    /// Whether the plugin has many requests of this thread in flight.
    pub(super) pipelined: bool,
    /// How many it has.
    pub(super) in_flight: usize,
    /// Whether the reader makes the calls of a plugin that may wait for anything, since they are
    /// quick.
    pub(super) quick: bool,
    /// Where writes to a local device go. Read for `NBD_CMD_WRITE` only.
    pub(super) writes: Verdict,
}

/// The threads of a connection for requests that may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PoolState {
    /// There are none: the reader carries out everything.
    Absent,
    /// No request is queued or running.
    Idle,
    /// Requests are queued or running.
    Busy,
}

/// What to do with a request.
#[derive(Debug)]
pub(super) enum Route {
    /// `NBD_CMD_DISC`: send the pending replies, then end the connection.
    Disconnect,
    /// End the connection: the payload is too long even to be discarded.
    Violation,
    /// Discard the payload and reply with this error.
    Reject(Error),
    /// Carry the request out.
    Execute(Plan),
}

/// How a valid request is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// The request's flags, for the stack.
    pub(super) flags: Flags,
    /// What the reader tries first.
    pub(super) attempt: Attempt,
    /// Who carries the request out if there is no attempt, or it did not apply.
    pub(super) executor: Executor,
    /// The bytes of a large read that should be spliced out, if a file holds them.
    pub(super) splice_out: Option<usize>,
}

/// A cheaper way, which applies only if the backend supports it for the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    None,
    /// A read is answered by the reader if that does not wait: its data is in memory.
    WithoutWaiting,
    /// A write is spliced from the socket into the file that holds its range.
    SpliceIn {
        /// Wait first for the requests in the pool.
        drain: bool,
    },
}

/// Why the time of a request is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timed {
    /// It is not.
    No,
    /// To notice when a device no longer takes writes at once.
    Write,
    /// To notice when a plugin's calls are no longer quick.
    Call,
}

/// The thread that carries a request out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Executor {
    /// The reader.
    Inline {
        /// Wait first for the requests in the pool.
        drain: bool,
        /// Send the pending replies first, because this request may wait.
        flush: bool,
        timed: Timed,
    },
    /// A thread of the pool.
    Pool,
    /// Nobody: the reader queues it, and the plugin says when it is done. If the request cannot be
    /// queued, a thread of the pool carries it out.
    Pipeline,
}

impl Executor {
    /// Whether the reader makes the call of a plugin, and has all that it needs for that.
    pub(super) fn is_call(self) -> bool {
        matches!(self, Executor::Inline { timed: Timed::Call, flush: false, .. })
    }
}

/// Decides how to treat `request`, which has `payload` bytes of payload.
#[inline]
pub(super) fn route(request: &Request, payload: u64, state: &State<'_>) -> Route {
    if request.command == Command::DISC {
        return Route::Disconnect;
    }
    if payload > MAX_SKIPPED_WRITE {
        return Route::Violation;
    }
    if state.shutting_down {
        return Route::Reject(Error::silent(Errno::ESHUTDOWN));
    }
    match state.rules.check(request) {
        Err(error) => Route::Reject(error),
        Ok(flags) => Route::Execute(plan(request, flags, payload as usize, state)),
    }
}

#[inline]
fn plan(request: &Request, flags: Flags, payload: usize, state: &State<'_>) -> Plan {
    let write = request.command == Command::WRITE;
    let short = state.blocking == Blocking::Short;
    let pooled = state.pool != PoolState::Absent;
    let drain = state.writes == Verdict::InlineAfterDrain;
    // A page cache takes such a write at once, as far as is known: no hand-off.
    let timed = short && write && !flags.contains(Flags::FUA) && state.writes != Verdict::Pool;
    // A flush or a zero may keep a device much longer than a block does.
    let one_block =
        matches!(request.command, Command::READ | Command::WRITE | Command::BLOCK_STATUS);
    // With one request at a time there is nothing to do meanwhile. What is pipelined is not waited
    // for all the same: the next request may come while this one is far away.
    let alone = state.pool == PoolState::Idle
        && state.in_flight == 0
        && state.available < payload + header_length(state.rules.features.extended)
        && !is_pipelined(request, flags, state);
    let soon = short || state.blocking == Blocking::Peer;
    let quick = state.quick && pooled && one_block && request.length <= QUICK_UP_TO;
    let inline = !pooled || timed || quick || soon && one_block && alone;
    let executor = if inline {
        let waits = state.blocking != Blocking::Never && !timed && !quick;
        Executor::Inline {
            drain: timed && drain,
            flush: state.available < payload || waits,
            timed: match (timed, quick) {
                (true, _) => Timed::Write,
                (false, true) => Timed::Call,
                (false, false) => Timed::No,
            },
        }
    } else if is_pipelined(request, flags, state) {
        Executor::Pipeline
    } else {
        Executor::Pool
    };
    let attempt = if splices_in(request, flags, state) && (!pooled || state.writes != Verdict::Pool)
    {
        Attempt::SpliceIn { drain: pooled && drain }
    } else if pooled && request.command == Command::READ {
        Attempt::WithoutWaiting
    } else {
        Attempt::None
    };
    Plan { flags, attempt, executor, splice_out: state.spliced.out(request) }
}

/// Whether a request is one that a plugin may have in flight without a thread. Not beside requests
/// in the pool, which use the plugin too.
#[inline]
fn is_pipelined(request: &Request, flags: Flags, state: &State<'_>) -> bool {
    state.pipelined
        && state.pool == PoolState::Idle
        && flags.is_empty()
        && matches!(request.command, Command::READ | Command::WRITE)
        && request.length <= PIPELINED_UP_TO
}

/// Whether the payload of a request is received apart from the input buffer: one that may be
/// spliced.
#[inline]
pub(super) fn is_large_write(request: &Request) -> bool {
    request.command == Command::WRITE && request.length >= SPLICE_FROM as u64
}

/// Policy: the lengths of the reads and writes that are spliced, bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spliced {
    from: usize,
}

impl Spliced {
    /// Of a connection, on which bytes go as they are if it is `plain`.
    pub(super) fn new(plain: bool, pin: Option<Pin>) -> Spliced {
        let from = match (plain, pin) {
            (false, _) | (true, Some(Pin::Never)) => usize::MAX,
            (true, Some(Pin::Always)) => 1,
            (true, None) => SPLICE_FROM,
        };
        Spliced { from }
    }

    /// Whether a request is a write that should go from the socket into a file without a copy.
    #[inline]
    fn is_in(self, request: &Request) -> bool {
        request.command == Command::WRITE && request.length >= self.from as u64
    }

    /// The bytes of a read that should go from a file to the socket without a copy, if it is one.
    #[inline]
    fn out(self, request: &Request) -> Option<usize> {
        let count = usize::try_from(request.length).ok()?;
        let large = count >= self.from && count <= SPLICE_UP_TO;
        (large && request.command == Command::READ).then_some(count)
    }
}

/// Whether a write's payload may go from the socket into a file without a copy. A client that is
/// slow to send must not hold the lock of a serialized stack meanwhile.
#[inline]
fn splices_in(request: &Request, flags: Flags, state: &State<'_>) -> bool {
    state.spliced.is_in(request)
        && flags.is_empty()
        && !state.serialized
        && receive::has_room(state.available)
}

#[cfg(test)]
mod tests;
