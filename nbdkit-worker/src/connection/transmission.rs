//! The transmission phase: requests in, replies out. NBD protocol, "Transmission phase".
//!
//! One thread reads. It takes all requests that a recv brought, answers those that do not wait on the spot, and
//! sends what has gathered when it runs out of requests, in one write. Requests that may wait go to the pool's threads
//! unless nothing else is outstanding: with one request at a time there is no hand-off.

#![forbid(unsafe_code)]

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Scope;

use nbd_protocol::constants::{Command, MAX_REQUEST};
use nbd_protocol::transmission::Request;
use nbdkit_api::{Blocking, Errno, Error, FileRange, Flags, debug, log};

use super::execute::Target;
use super::export::{Export, Features};
use super::input::Input;
use super::pace::{Looking, Writes};
use super::pool::{Job, Pool};
use super::prealloc::{self, Prealloc};
use super::receive::{self, Receive};
use super::reply::Replies;
use super::splice::{Pipe, SPLICE_FROM, SPLICE_UP_TO};
use super::validate::{Rules, payload_length};
use super::{Connection, During, End, Socket};

/// Replies are sent when so many bytes or requests have gathered, even if there are more requests at hand.
const FLUSH_AT: usize = 64 * 1024;
/// And when so many bytes of requests and replies have been dealt with, if no more is left than that was: the client works
/// on the first half while we work on the second, rather than that each waits for the other.
const FLUSH_HALF_AT: usize = 32 * 1024;
const MAX_BATCH: usize = 64;
/// A write this long is read and refused; a longer one ends the connection.
const MAX_SKIPPED_WRITE: u64 = 2 * MAX_REQUEST as u64;
/// Longest payload of NBD_CMD_BLOCK_STATUS, bytes.
const MAX_FILTER: u64 = 4096;
/// Largest buffer for payloads that the reading thread keeps between requests, bytes.
const KEEP_PAYLOAD: usize = 256 * 1024;
/// The size of a request, in bytes, from which on malloc may keep its buffers instead of giving them back to the kernel.
/// mallopt(3), M_MMAP_THRESHOLD.
const HEAVY: u64 = 128 * 1024;

/// Serves an open export until the client leaves, then closes it.
///
/// # Errors
/// How the client misbehaved or broke off.
pub(super) fn serve(
    connection: &Connection<'_>,
    export: Export,
    mut input: Input,
) -> Result<(), End> {
    let pooled = connection.settings.threads > 1 && export.backend.blocking() != Blocking::Never;
    let prealloc = Prealloc::new(connection.settings.swap);
    if prealloc.is_on() {
        prealloc.reserve(if pooled { connection.settings.threads } else { 0 })?;
        input.keep();
    }
    let mut session = Session {
        connection,
        rules: Rules::from(&export),
        target: Target {
            backend: &export.backend,
            settings: connection.settings,
            features: export.features,
            size: export.size,
        },
        output: Mutex::new(()),
        broken: OnceLock::new(),
        pool: pooled.then(|| prealloc.pool(connection.settings.threads)),
        prealloc,
    };
    let shared = &session;
    let mut reader = Reader {
        session: shared,
        input,
        replies: prealloc.replies(),
        payload: prealloc.payload(),
        pipe: shared.new_pipe(),
        writes: Writes::default(),
        looking: Looking::default(),
        heavy: false,
        batch: 0,
        taken: 0,
    };
    let end = match &shared.pool {
        None => reader.run(None),
        Some(pool) => std::thread::scope(|scope| {
            // Also when a panic ends it, or the scope would wait for threads that wait for work.
            let _close = CloseOnDrop(pool);
            if prealloc.is_on() {
                let started = pool.start(scope, || move || shared.work(pool));
                started.map_err(|error| {
                    prealloc::refused("threads (raise RLIMIT_MEMLOCK, see ulimit -l)", &error)
                })?;
            }
            reader.run(Some((pool, scope)))
        }),
    };
    let end = match session.broken.take() {
        // Whatever the reader saw then was of its making.
        Some(error) => Err(error).during("write reply"),
        None => end,
    };
    let closed = export.close(connection);
    end.and(closed.map_err(|_| End::Refused))
}

/// What all threads of a connection share.
struct Session<'a> {
    connection: &'a Connection<'a>,
    rules: Rules,
    target: Target<'a>,
    /// Held while replies are sent, so that they do not mix.
    output: Mutex<()>,
    /// Why a reply could not be sent, once one could not: nobody is listening any more.
    broken: OnceLock<io::Error>,
    pool: Option<Pool>,
    /// Whether memory is kept.
    prealloc: Prealloc,
}

impl Session<'_> {
    /// A thread of the pool.
    fn work(&self, pool: &Pool) {
        let _speaker = log::enter(log::Speaker {
            layer: Some(self.connection.plugin_name()),
            connection: self.connection.client.number(),
        });
        let _cut = CutOnPanic(self);
        let (mut replies, mut pipe) = (self.prealloc.replies(), self.new_pipe());
        pool.work(|job| self.run(job, &mut replies, &mut pipe));
    }

    /// The pipe that a thread begins with: the one that it needs for large reads and writes, if it keeps its memory.
    fn new_pipe(&self) -> Option<Pipe> {
        let used = self.prealloc.is_on() && self.connection.socket.is_plain();
        used.then(|| Pipe::new().ok()).flatten()
    }

    fn features(&self) -> Features {
        self.target.features
    }

    /// Sends a batch and empties it.
    fn send(&self, replies: &mut Replies) -> io::Result<()> {
        if replies.is_empty() {
            return Ok(());
        }
        self.send_by(replies, |socket, bytes| socket.write_all(bytes, None))
    }

    /// Has `send` send a batch, with no other thread's replies in between, and empties it.
    fn send_by(
        &self,
        replies: &mut Replies,
        send: impl FnOnce(&Socket, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let result = {
            let _turn = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            if self.connection.client.is_cut() || self.broken.get().is_some() {
                Err(io::ErrorKind::BrokenPipe.into())
            } else {
                send(&self.connection.socket, replies.bytes())
            }
        };
        replies.clear();
        result.map_err(|error| {
            // Those that come after the first get the same answer.
            let again = io::Error::from(error.kind());
            if self.broken.set(error).is_ok() {
                // The reader may be waiting for requests that nobody wants an answer to.
                self.connection.socket.stop_reading();
            }
            again
        })
    }

    /// Waits until no other thread is at work.
    fn settle(&self, replies: &mut Replies) {
        if let Some(pool) = &self.pool {
            // What was answered must not wait for what is drained. A failure shows at the next sending.
            let _ = self.send(replies);
            pool.drain();
        }
    }

    /// Carries out a job on a thread of the pool.
    fn run(&self, job: &Job, replies: &mut Replies, pipe: &mut Option<Pipe>) {
        let spliced = self.splice(&job.request, replies, pipe);
        let sent = spliced.unwrap_or_else(|| {
            self.target.execute(&job.request, job.flags, &job.payload, replies);
            self.send(replies)
        });
        if let Err(error) = sent {
            debug!("reply not sent: {error}");
        }
    }

    /// The bytes of a read so large that they should leave without being copied, where they can.
    fn worth_splicing(&self, request: &Request) -> Option<usize> {
        let count = usize::try_from(request.length).ok()?;
        let large = (SPLICE_FROM..=SPLICE_UP_TO).contains(&count);
        let read = request.command == Command::READ;
        (large && read && self.connection.socket.is_plain()).then_some(count)
    }

    /// Answers a large read without copying it, behind what has gathered in `replies`; `None` if it must be done
    /// the ordinary way, and nothing was done.
    fn splice(
        &self,
        request: &Request,
        replies: &mut Replies,
        pipe: &mut Option<Pipe>,
    ) -> Option<io::Result<()>> {
        let count = self.worth_splicing(request)?;
        self.splice_from(|| self.target.file_range(request), count, request, replies, pipe)
    }

    /// As [`splice`](Self::splice), of a read whose `count` bytes stand where `range` says.
    fn splice_from<'r>(
        &self,
        range: impl FnOnce() -> Option<FileRange<'r>>,
        count: usize,
        request: &Request,
        replies: &mut Replies,
        pipe: &mut Option<Pipe>,
    ) -> Option<io::Result<()>> {
        let target = &self.target;
        let filled = target.settings.serialized(|| {
            let range = range()?;
            // A pipe that could not take everything is not empty: it is not used again.
            let mut fresh = pipe.take().or_else(|| Pipe::new().ok())?;
            fresh.fill(range, count).then_some(fresh)
        })?;
        target.backend.trace_read(request.length as u32, request.offset);
        let pipe = pipe.insert(filled);
        replies.data_header(request, self.features(), request.offset, count);
        Some(self.send_by(replies, |socket, bytes| {
            socket.write_before_more(bytes)?;
            pipe.send(socket.output(), count)
        }))
    }
}

/// Tells the pool's threads that there is no more to do.
struct CloseOnDrop<'s>(&'s Pool);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Ends the connection if the thread panics: the request that it was about would never be answered, and the
/// thread that reads would wait for more.
struct CutOnPanic<'s>(&'s Session<'s>);

impl Drop for CutOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.connection.socket.cut();
        }
    }
}

/// The pool and the scope in which its threads live.
type Threads<'scope, 's> = Option<(&'s Pool, &'scope Scope<'scope, 's>)>;

/// The thread that reads requests.
struct Reader<'s> {
    session: &'s Session<'s>,
    input: Input,
    /// What has been answered on the spot and not yet sent.
    replies: Replies,
    /// Data of a write that does not fit the input buffer.
    payload: Vec<u8>,
    /// For large reads that are done here.
    pipe: Option<Pipe>,
    /// Whether writes are done here.
    writes: Writes,
    /// Whether to look for more requests before replies are sent.
    looking: Looking,
    /// Whether there was a request since the client was idle that malloc remembers.
    heavy: bool,
    /// Requests since replies were sent, and their bytes.
    batch: usize,
    taken: usize,
}

impl<'s> Reader<'s> {
    /// Reads requests until there are no more.
    fn run<'scope>(&mut self, threads: Threads<'scope, 's>) -> Result<(), End> {
        let extended = self.session.features().extended;
        let client = &self.session.connection.client;
        loop {
            let Some(request) = self.next_request(extended)? else {
                self.flush()?;
                return Ok(());
            };
            if client.is_cut() {
                return Ok(());
            }
            if crate::process::is_quiescing() {
                client.disconnect(false);
            }
            if request.command == Command::DISC {
                client.set_leaving();
                debug!("client sent {}, closing connection", Command::DISC);
                self.flush()?;
                return Ok(());
            }
            self.answer(&request, extended, threads)?;
            self.batch += 1;
            self.taken += header_length(extended) + payload_length(&request, extended) as usize;
            if self.is_batch_full() {
                self.flush()?;
            }
        }
    }

    /// The next request header; `None` if the client hung up instead.
    fn next_request(&mut self, extended: bool) -> Result<Option<Request>, End> {
        let length = header_length(extended);
        if self.input.available().len() < length {
            self.look(length)?;
            if self.input.available().len() < length {
                self.flush()?;
                let Reader { input, replies, payload, pipe, heavy, .. } = self;
                // Not called where memory is kept.
                let idle = || {
                    *replies = Replies::default();
                    *payload = Vec::new();
                    *pipe = None;
                    nbdkit_ipc::release_packet();
                    // Where there is nothing to be had it only touches pages that are shared with the template.
                    if std::mem::take(heavy) {
                        crate::process::release_heap();
                    }
                    crate::process::release_stack();
                };
                if !input.fill_patiently(length, idle).during("read request")? {
                    return Ok(None);
                }
            }
        }
        let header = self.input.available();
        let request = match (extended, header.first_chunk(), header.first_chunk()) {
            (false, Some(header), _) => Request::decode(header),
            (true, _, Some(header)) => Request::decode_extended(header),
            _ => return Ok(None),
        };
        self.input.consume(length);
        if let Ok(request) = &request {
            self.heavy |= request.length >= HEAVY;
        }
        request
            .map(Some)
            .map_err(|malformed| End::Protocol(format!("invalid request: {malformed}")))
    }

    /// Whether what has gathered is sent before the next request is looked at.
    fn is_batch_full(&self) -> bool {
        let bytes = self.replies.bytes().len();
        bytes >= FLUSH_AT
            || self.batch >= MAX_BATCH
            || bytes + self.taken >= FLUSH_HALF_AT && self.input.available().len() <= self.taken
    }

    /// Takes what the client has sent by now, if there are replies that would have to be sent before we can wait.
    fn look(&mut self, length: usize) -> Result<(), End> {
        if self.replies.is_empty() || !self.looking.is_worth_it() {
            return Ok(());
        }
        let alone = self.session.connection.settings.one_processor;
        let Reader { looking, input, batch, .. } = self;
        looking.look(*batch, alone, || input.take_more(length)).during("read request")
    }

    fn flush(&mut self) -> Result<(), End> {
        self.batch = 0;
        self.taken = 0;
        self.session.send(&mut self.replies).during("write reply")
    }

    /// Answers one request, here or on another thread.
    fn answer<'scope>(
        &mut self,
        request: &Request,
        extended: bool,
        threads: Threads<'scope, 's>,
    ) -> Result<(), End> {
        let payload = payload_length(request, extended);
        if payload > MAX_SKIPPED_WRITE {
            return Err(End::Protocol(format!(
                "invalid request: {}: payload of {payload} bytes",
                request.command
            )));
        }
        let checked = if self.session.connection.client.is_disconnecting() {
            Err(Error::silent(Errno::ESHUTDOWN))
        } else {
            self.session
                .rules
                .check(request)
                .and_then(|flags| fits_memory(request, payload).map(|()| flags))
        };
        match checked {
            Ok(flags) => {
                let payload = payload as usize;
                match threads {
                    _ if self.receive(request, flags, payload, threads.is_some())? => Ok(()),
                    None => self.answer_here(request, flags, payload),
                    Some(_) if payload == 0 && self.try_read(request)? => Ok(()),
                    Some((pool, _)) if self.is_done_here(request, flags, pool, payload) => {
                        self.answer_here(request, flags, payload)
                    }
                    Some((pool, scope)) => self.hand_over(request, flags, payload, pool, scope),
                }
            }
            Err(error) => {
                if !error.message().is_empty() {
                    nbdkit_api::error!("{}", error.message());
                }
                self.input.skip(payload).during(read_data(request))?;
                self.replies.error(request, self.session.features(), &error);
                Ok(())
            }
        }
    }

    /// Answers a read at once if it cannot wait.
    fn try_read(&mut self, request: &Request) -> Result<bool, End> {
        let session = self.session;
        if request.command != Command::READ {
            return Ok(false);
        }
        if let Some(count) = session.worth_splicing(request)
            && let Some(range) = session.target.range(request)
        {
            if !session.target.is_at_hand(&range, request) {
                return Ok(false);
            }
            let Reader { replies, pipe, .. } = self;
            let spliced = session.splice_from(|| Some(range), count, request, replies, pipe);
            return Ok(spliced.transpose().during("write reply")?.is_some());
        }
        Ok(session.target.try_read(request, &mut self.replies))
    }

    /// Carries out a large write while it comes, if it goes into a file and nothing keeps this thread from writing it:
    /// `false` if it must be done the ordinary way, and nothing was done.
    fn receive(
        &mut self,
        request: &Request,
        flags: Flags,
        count: usize,
        pooled: bool,
    ) -> Result<bool, End> {
        let session = self.session;
        let (socket, target) = (&session.connection.socket, session.target);
        let large = request.command == Command::WRITE && count >= SPLICE_FROM;
        let fit =
            large && flags.is_empty() && socket.is_plain() && !target.settings.is_serialized();
        if !fit || !receive::has_room(self.input.available().len()) {
            self.input.set_narrow(false);
            return Ok(false);
        }
        let Reader { replies, writes, .. } = self;
        if pooled && !writes.are_quick(|| session.settle(replies)) {
            return Ok(false);
        }
        let Some(range) = target.backend.write_range(count as u32, request.offset) else {
            return Ok(false);
        };
        // What was answered before must not wait for this one.
        self.flush()?;
        let Reader { input, pipe, writes, replies, .. } = self;
        let receive = Receive::new(target.backend, range, request.offset, count);
        match receive.run(input, pipe, writes).during(read_data(request))? {
            Ok(()) => replies.success(request, session.features()),
            Err(error) => replies.error(request, session.features(), &error),
        }
        input.set_narrow(true);
        Ok(true)
    }

    /// Whether a request that may wait is carried out by this thread all the same: it takes only a local device, and
    /// it is a write that a page cache takes, or there is nothing else to do meanwhile.
    fn is_done_here(
        &mut self,
        request: &Request,
        flags: Flags,
        pool: &Pool,
        payload: usize,
    ) -> bool {
        if self.session.target.backend.blocking() != Blocking::Short {
            return false;
        }
        let write = request.command == Command::WRITE;
        let Reader { session, replies, writes, .. } = self;
        if write && !flags.contains(Flags::FUA) && writes.are_quick(|| session.settle(replies)) {
            return true;
        }
        // A flush or a zero may take a device much longer than a block.
        let quick = write || matches!(request.command, Command::READ | Command::BLOCK_STATUS);
        let rest = payload + header_length(self.session.features().extended);
        quick && self.input.available().len() < rest && pool.is_idle()
    }

    fn answer_here(&mut self, request: &Request, flags: Flags, length: usize) -> Result<(), End> {
        let target = self.session.target;
        let blocking = target.backend.blocking();
        let timed = blocking == Blocking::Short
            && request.command == Command::WRITE
            && !flags.contains(Flags::FUA)
            && self.writes.are_quick(|| ());
        if self.input.available().len() < length || blocking != Blocking::Never && !timed {
            // What was answered before must not wait for this one.
            self.flush()?;
        }
        if let Some(sent) = self.session.splice(request, &mut self.replies, &mut self.pipe) {
            return sent.during("write reply");
        }
        let here = Input::fits(length);
        if !here {
            self.input.read_payload(&mut self.payload, length).during(read_data(request))?;
        } else if length > 0 && !self.input.fill(length).during(read_data(request))? {
            return Err(io::ErrorKind::UnexpectedEof.into()).during(read_data(request));
        }
        let payload = if here { &self.input.available()[..length] } else { &self.payload };
        let replies = &mut self.replies;
        if timed {
            self.writes.time(length, || target.execute(request, flags, payload, replies));
        } else {
            target.execute(request, flags, payload, replies);
        }
        if here {
            self.input.consume(length);
        } else if self.payload.len() > KEEP_PAYLOAD {
            self.session.prealloc.empty(&mut self.payload);
        }
        Ok(())
    }

    fn hand_over<'scope>(
        &mut self,
        request: &Request,
        flags: Flags,
        length: usize,
        pool: &'s Pool,
        scope: &'scope Scope<'scope, 's>,
    ) -> Result<(), End> {
        self.flush()?;
        let mut payload = pool.buffer(length);
        self.input.read_payload(&mut payload, length).during(read_data(request))?;
        let session = self.session;
        let job = Job { request: *request, flags, payload };
        let refused = pool.submit(scope, job, move || session.work(pool));
        if let Some(job) = refused {
            session.target.execute(&job.request, job.flags, &job.payload, &mut self.replies);
        }
        Ok(())
    }
}

/// What is being done while the payload of a request is read, for the log.
fn read_data(request: &Request) -> impl std::fmt::Display + use<> {
    struct ReadData(Command);
    impl std::fmt::Display for ReadData {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "read data: {}", self.0)
        }
    }
    ReadData(request.command)
}

fn header_length(extended: bool) -> usize {
    if extended { Request::EXTENDED_LENGTH } else { Request::LENGTH }
}

/// A payload other than a write's is a list of a few ids.
fn fits_memory(request: &Request, payload: u64) -> nbdkit_api::Result<()> {
    if request.command != Command::WRITE && payload > MAX_FILTER {
        return Err(Error::new(
            Errno::EINVAL,
            format!("invalid request: {}: payload too large", request.command),
        ));
    }
    Ok(())
}
