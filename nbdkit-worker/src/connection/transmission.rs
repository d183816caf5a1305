//! The transmission phase: requests in, replies out. NBD protocol, "Transmission phase".
//!
//! One thread, the [`reader`], decodes all requests that a recv returned, replies to those that do
//! not wait, and sends the replies in one write when it runs out of requests. Requests that may
//! wait go to the pool's threads unless nothing else is outstanding: with one request at a time
//! there is no hand-off. Which request goes where is decided by [`route`]; all threads reply
//! through the [`sender`].

#![forbid(unsafe_code)]

mod group;
mod reader;
mod route;
mod sender;

use std::io;
use std::sync::Arc;

use nbd_protocol::transmission::Request;
use nbdkit_api::{Blocking, Direction, FileRange, Range, debug, log};

use reader::Reader;
use sender::Sender;

use super::execute::{KnownData, Target, Unflushed};
use super::export::Export;
use super::inline_calls::Score;
use super::input::Input;
use super::negotiated::{Features, Negotiated};
use super::pool::{Job, Pool};
use super::prealloc::{self, Prealloc};
use super::reply::Replies;
use super::splice::Pipe;
use super::validate::Rules;
use super::{Connection, During, End, Parking};

/// Serves an open export until the client disconnects, then closes it.
///
/// # Errors
/// The client violated the protocol or the connection broke.
pub(super) fn serve(
    connection: &Connection<'_>,
    negotiated: &Negotiated,
    export: Export,
    mut input: Input,
) -> Result<(), End> {
    let pooled = connection.settings.threads > 1 && export.backend.blocking() != Blocking::Never;
    let prealloc = Prealloc::new(connection.settings.swap);
    if prealloc.is_on() {
        prealloc.reserve(if pooled { connection.settings.threads } else { 0 })?;
        input.keep();
    }
    let (known_data, unflushed) = (KnownData::default(), Unflushed::default());
    let mut session = Session {
        connection,
        rules: Rules::from(negotiated),
        target: Target {
            backend: &export.backend,
            settings: connection.settings,
            features: negotiated.features,
            size: negotiated.size,
            known_data: &known_data,
            totals: connection.totals,
            unflushed: &unflushed,
        },
        sender: Sender::new(connection),
        pool: pooled
            .then(|| prealloc.pool(connection.settings.threads, Arc::clone(&connection.activity))),
        score: Score::default(),
        prealloc,
    };
    let end = session.run(input);
    let end = match session.sender.take_error() {
        // The reader's end follows from it: the sender shut the socket down for reading.
        Some(error) => Err(error).during("write reply"),
        None => end,
    };
    match (end, export.close(connection)) {
        (Ok(()) | Err(End::Idle), Err(_)) => Err(End::Refused),
        (end, _) => end,
    }
}

fn header_length(extended: bool) -> usize {
    if extended { Request::EXTENDED_LENGTH } else { Request::LENGTH }
}

/// What all threads of a connection share.
struct Session<'a> {
    connection: &'a Connection<'a>,
    rules: Rules,
    target: Target<'a>,
    sender: Sender<'a>,
    /// Threads for requests that may wait, where requests may overlap.
    pool: Option<Pool>,
    /// How long the pool's calls take.
    score: Score,
    /// Whether memory is kept.
    prealloc: Prealloc,
}

impl Session<'_> {
    /// Runs the reader on this thread, and around it the scope in which the pool's threads live.
    fn run(&self, input: Input) -> Result<(), End> {
        let mut reader = Reader::new(self, input);
        let Some(pool) = &self.pool else { return reader.run(None) };
        std::thread::scope(|scope| {
            // Also if the reader panics: the scope waits for the pool's threads, which wait for
            // work.
            let _close = CloseOnDrop(pool);
            if self.prealloc.is_on() {
                let started = pool.start(scope, || move || self.work(pool));
                started.map_err(|error| {
                    prealloc::refused("threads (raise RLIMIT_MEMLOCK, see ulimit -l)", &error)
                })?;
            }
            reader.run(Some((pool, scope)))
        })
    }

    /// Main loop of a thread of the pool.
    fn work(&self, pool: &Pool) {
        let _speaker = log::enter(log::Speaker {
            layer: Some(self.connection.plugin_name()),
            connection: self.connection.client.number(),
        });
        let _cut = CutOnPanic(self);
        let (mut replies, mut pipe) = (self.prealloc.replies(), self.new_pipe());
        pool.work(|jobs| {
            let sent = match jobs {
                [job] if !job.grouped => self.execute(job, &mut replies, &mut pipe),
                group => self.read_group(group, pool.groups(), &mut replies),
            };
            if let Err(error) = sent {
                debug!("reply not sent: {error}");
            }
        });
    }

    /// Carries out a job and sends its reply, on a thread of the pool.
    ///
    /// # Errors
    /// The reply could not be sent.
    fn execute(&self, job: &Job, replies: &mut Replies, pipe: &mut Option<Pipe>) -> io::Result<()> {
        let Job { request, flags, splice_out, payload, .. } = job;
        let range = || self.target.file_range(request);
        let spliced = self.splice_out(request, *splice_out, range, replies, pipe);
        spliced.unwrap_or_else(|| {
            let call = || self.target.execute(request, *flags, payload, replies);
            let ((), time) = self.connection.settings.turns.call(call);
            self.score.record(time);
            self.sender.send(replies)
        })
    }

    /// The pipe that a thread starts with: with `--swap` the one that large requests need.
    fn new_pipe(&self) -> Option<Pipe> {
        let used = self.prealloc.is_on() && self.connection.socket.is_plain();
        used.then(|| Pipe::new().ok()).flatten()
    }

    fn features(&self) -> Features {
        self.target.features
    }

    /// Whether the client, which is idle, may be parked: it waits for nothing, and closing its
    /// export loses nothing.
    fn may_be_parked(&self) -> bool {
        let connection = self.connection;
        connection.parking.as_ref().is_some_and(Parking::is_possible)
            && connection.socket.is_plain()
            && !connection.client.is_disconnecting()
            && !crate::process::is_quiescing()
            && self.pool.as_ref().is_none_or(Pool::is_idle)
            && !(self.target.unflushed.any() && self.target.backend.can_flush().unwrap_or(true))
    }

    /// Waits until no request is in the pool.
    fn drain(&self, replies: &mut Replies) {
        if let Some(pool) = &self.pool {
            // Pending replies must not wait for the pool. The next send reports a failure again.
            let _ = self.sender.send(replies);
            pool.drain();
        }
    }

    /// Replies to a read of `count` bytes, which `range` finds in a file, without copying them,
    /// behind the pending replies. `None` if the read must be carried out the ordinary way, and
    /// nothing was done.
    #[inline]
    fn splice_out<'r>(
        &self,
        request: &Request,
        count: Option<usize>,
        range: impl FnOnce() -> Option<FileRange<'r>>,
        replies: &mut Replies,
        pipe: &mut Option<Pipe>,
    ) -> Option<io::Result<()>> {
        let count = count?;
        let target = &self.target;
        let started = target.backend.watch();
        let filled = target.settings.serialized(|| {
            let range = range()?;
            // A pipe that could not be filled holds part of the data: it is not used again.
            let mut fresh = pipe.take().or_else(|| Pipe::new().ok())?;
            fresh.fill(range, count).then_some(fresh)
        })?;
        target.backend.trace_read(request.length as u32, request.offset);
        let range = Range { count: request.length, offset: request.offset };
        target.backend.passed(started, Direction::Read, range, true);
        let pipe = pipe.insert(filled);
        replies.data_header(request, self.features(), request.offset, count);
        Some(self.sender.send_with(replies, |socket, bytes| {
            socket.write_before_more(bytes)?;
            pipe.send(socket.output(), count)
        }))
    }
}

/// Tells the pool's threads to end when they run out of work.
struct CloseOnDrop<'s>(&'s Pool);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Cuts the connection if a thread of the pool panics: its request would never be replied to, while
/// the reader would wait for more.
struct CutOnPanic<'s>(&'s Session<'s>);

impl Drop for CutOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.connection.socket.cut();
        }
    }
}
