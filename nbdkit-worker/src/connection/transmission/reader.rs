//! The thread that reads requests: decodes them, replies to what does not wait, dispatches the
//! rest. NBD protocol, "Transmission phase".

#![forbid(unsafe_code)]

mod in_flight;
mod short_reads;

use std::io;
use std::thread::Scope;

use nbd_protocol::constants::Command;
use nbd_protocol::transmission::Request;
use nbdkit_api::{Blocking, Error, Flags, debug};

use super::super::busy_poll::BusyPoll;
use super::super::inline_calls::InlineCalls;
use super::super::inline_writes::{InlineWrites, Verdict};
use super::super::input::{Input, Waited};
use super::super::pin::{self, Pin};
use super::super::poll_backoff::PollBackoff;
use super::super::pool::{Job, Pool};
use super::super::read_attempts::read_attempts;
use super::super::receive::Receive;
use super::super::reply::Replies;
use super::super::request_poll::RequestPoll;
use super::super::splice::Pipe;
use super::super::validate::payload_length;
use super::super::{During, End};
use super::route::{
    Attempt, Executor, Plan, PoolState, Route, Spliced, State, Timed, is_large_write, route,
};
use super::{Session, header_length};
use in_flight::InFlight;

/// Replies are sent when this many bytes or requests are pending, even if more requests are in the
/// input buffer.
const FLUSH_AT: usize = 64 * 1024;
const MAX_BATCH: usize = 64;
/// Replies are also sent once this many bytes of requests and replies were processed and no more
/// than that are left in the input buffer: the client works on the first half while the server
/// works on the second, in place of each waiting for the other.
const FLUSH_HALF_AT: usize = 32 * 1024;
/// Largest buffer for payloads that the reader keeps between requests, bytes.
const KEEP_PAYLOAD: usize = 256 * 1024;
/// The size of a request, in bytes, from which on malloc may keep its buffers instead of giving
/// them back to the kernel. mallopt(3), M_MMAP_THRESHOLD.
const HEAVY: u64 = 128 * 1024;

/// The pool and the scope in which its threads live; `None` if the reader carries out everything.
pub(super) type Threads<'scope, 's> = Option<(&'s Pool, &'scope Scope<'scope, 's>)>;

/// The state of the thread that reads requests.
pub(super) struct Reader<'s> {
    session: &'s Session<'s>,
    blocking: Blocking,
    input: Input,
    /// Replies not yet sent.
    replies: Replies,
    /// Requests that the plugin will say are done.
    in_flight: InFlight,
    /// Whether the plugin can have requests in flight.
    pipelined: bool,
    /// Payload of a write that does not fit the input buffer.
    payload: Vec<u8>,
    /// For requests that the reader splices.
    pipe: Option<Pipe>,
    /// What is spliced.
    spliced: Spliced,
    /// Whether the reader carries out writes.
    writes: InlineWrites,
    /// Whether the reader tries to answer short reads.
    attempts: PollBackoff,
    /// Whether grouped jobs were queued that no thread was woken for.
    unannounced: bool,
    /// Whether the reader makes the calls of a plugin that may wait for anything.
    calls: InlineCalls<'s>,
    /// Whether to poll for more requests before replies are sent.
    request_poll: RequestPoll,
    /// Whether to poll before the reader sleeps.
    busy_poll: BusyPoll,
    /// Whether a request since the client was last idle was [`HEAVY`].
    heavy: bool,
    /// Requests since replies were last sent, and their bytes.
    batch: usize,
    taken: usize,
}

impl<'s> Reader<'s> {
    pub(super) fn new(session: &'s Session<'s>, input: Input) -> Reader<'s> {
        let settings = session.connection.settings;
        Reader {
            session,
            blocking: session.target.backend.blocking(),
            input,
            replies: session.prealloc.replies(),
            in_flight: InFlight::default(),
            pipelined: session.pool.is_some()
                && !session.prealloc.is_on()
                && !settings.is_serialized()
                && session.target.backend.is_pipelined(),
            payload: session.prealloc.payload(),
            pipe: session.new_pipe(),
            spliced: Spliced::new(session.connection.socket.is_plain(), Pin::of(pin::SPLICE)),
            writes: InlineWrites::default(),
            attempts: read_attempts(),
            unannounced: false,
            calls: InlineCalls::new(&settings.turns),
            request_poll: RequestPoll::default(),
            busy_poll: BusyPoll::new(settings.busy_poll, settings.one_processor),
            heavy: false,
            batch: 0,
            taken: 0,
        }
    }

    /// Reads and handles requests until the client disconnects.
    ///
    /// # Errors
    /// The client violated the protocol or the connection broke.
    pub(super) fn run<'scope>(&mut self, threads: Threads<'scope, 's>) -> Result<(), End> {
        let extended = self.session.features().extended;
        let client = &self.session.connection.client;
        self.session.connection.activity.begin();
        while let Some(request) = self.next_request(extended)? {
            if client.is_cut() {
                return Ok(());
            }
            if self.session.connection.activity.is_refused() {
                client.disconnect(false);
            }
            let payload = payload_length(&request, extended);
            match route(&request, payload, &self.state(&request, threads)) {
                Route::Disconnect => {
                    client.set_leaving();
                    debug!("client sent {}, closing connection", Command::DISC);
                    break;
                }
                Route::Violation => return Err(payload_too_long(&request, payload)),
                Route::Reject(error) => {
                    self.calls.waited();
                    self.reject(&request, payload, &error)?;
                }
                Route::Execute(plan) => {
                    // What follows may wait for the client.
                    if !plan.executor.is_call() {
                        self.calls.waited();
                    }
                    self.session.target.totals.requested(&request);
                    self.execute(&request, plan, payload as usize, threads)?;
                }
            }
            self.batch += 1;
            self.taken += header_length(extended) + payload as usize;
            if self.is_batch_full() {
                self.flush()?;
            }
        }
        self.finish_in_flight()?;
        self.flush()
    }

    /// The next request header; `None` if the client closed the connection instead.
    fn next_request(&mut self, extended: bool) -> Result<Option<Request>, End> {
        let length = header_length(extended);
        if self.input.available().len() < length {
            self.announce();
            self.poll_requests(length)?;
        }
        if self.input.available().len() < length {
            self.reply_until_header(length)?;
            self.flush()?;
            self.calls.waited();
            if self.input.available().len() < length && !self.poll_for_header(length)? {
                match self.wait_for_header(length)? {
                    Waited::Request => {}
                    Waited::Closed => return Ok(None),
                    Waited::Idle => return Err(End::Idle),
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
        let request =
            request.map_err(|malformed| End::Protocol(format!("invalid request: {malformed}")))?;
        self.heavy |= request.length >= HEAVY;
        Ok(Some(request))
    }

    /// Polls for `length` bytes for a short time, if that has been worth it of late; false if they
    /// have to be waited for.
    fn poll_for_header(&mut self, length: usize) -> Result<bool, End> {
        let Reader { busy_poll, input, session, .. } = self;
        if !busy_poll.is_due() || session.pool.as_ref().is_some_and(|pool| !pool.is_idle()) {
            return Ok(false);
        }
        let look = || Ok(input.take_more(length)? && input.available().len() >= length);
        busy_poll.poll(look, std::thread::yield_now).during("read request")
    }

    /// Waits for `length` bytes, and frees memory if the client is idle.
    fn wait_for_header(&mut self, length: usize) -> Result<Waited, End> {
        let in_flight = self.in_flight.count();
        let Reader { session, input, replies, payload, pipe, heavy, pipelined, busy_poll, .. } =
            self;
        // Not called where memory is kept.
        let idle = || {
            *replies = Replies::default();
            *payload = Vec::new();
            *pipe = None;
            if *pipelined {
                session.target.backend.shrink_pipeline();
            }
            nbdkit_ipc::release_packet();
            // Where the heap has nothing to give back, trimming it would only touch pages that are
            // shared with the template.
            if std::mem::take(heavy) {
                crate::process::release_heap();
            }
            crate::process::release_stack();
        };
        let may_be_parked = || in_flight == 0 && session.may_be_parked();
        let park = session.connection.parking.as_ref();
        let park = park.map(|it| (it.after, &may_be_parked as &dyn Fn() -> bool));
        let activity = &session.connection.activity;
        activity.wait_begins();
        let waited = busy_poll.sleep(|| input.fill_or_idle(length, idle, park));
        activity.wait_ends();
        waited.during("read request")
    }

    /// Polls for more requests, if there are replies that would have to be sent before the reader
    /// can wait.
    fn poll_requests(&mut self, length: usize) -> Result<(), End> {
        if self.replies.is_empty() || !self.request_poll.is_due() {
            return Ok(());
        }
        let one_processor = self.session.connection.settings.one_processor;
        let Reader { request_poll, input, batch, calls, .. } = self;
        calls.waited();
        request_poll.poll(*batch, one_processor, || input.take_more(length)).during("read request")
    }

    /// Whether the pending replies are sent before the next request is decoded.
    fn is_batch_full(&self) -> bool {
        let bytes = self.replies.bytes().len();
        bytes >= FLUSH_AT
            || self.batch >= MAX_BATCH
            || bytes + self.taken >= FLUSH_HALF_AT && self.input.available().len() <= self.taken
    }

    /// Sends the pending replies, and has the pool begin: the reader may wait.
    fn flush(&mut self) -> Result<(), End> {
        self.announce();
        self.send()
    }

    /// Sends the pending replies.
    fn send(&mut self) -> Result<(), End> {
        self.batch = 0;
        self.taken = 0;
        self.calls.waited();
        self.session.sender.send(&mut self.replies).during("write reply")
    }

    /// Waits until the pool has nothing to do.
    fn drain(&mut self) {
        self.session.drain(&mut self.replies);
        self.writes.resume();
    }

    /// What the route of `request` depends on.
    #[inline]
    fn state(&mut self, request: &Request, threads: Threads<'_, 's>) -> State<'s> {
        let session = self.session;
        State {
            rules: &session.rules,
            blocking: self.blocking,
            spliced: self.spliced,
            serialized: session.connection.settings.is_serialized(),
            shutting_down: session.connection.client.is_disconnecting(),
            available: self.input.available().len(),
            pool: match threads {
                None => PoolState::Absent,
                Some((pool, _)) if pool.is_idle() => PoolState::Idle,
                Some(_) => PoolState::Busy,
            },
            pipelined: self.pipelined,
            in_flight: self.in_flight.count(),
            quick: self.blocking == Blocking::Long && self.calls.are_due(&session.score),
            // Reads the clock while writes go to the pool, so not for other commands.
            writes: match request.command {
                Command::WRITE => self.writes.verdict(),
                _ => Verdict::Inline,
            },
        }
    }

    fn reject(&mut self, request: &Request, payload: u64, error: &Error) -> Result<(), End> {
        if !error.message().is_empty() {
            nbdkit_api::error!("{}", error.message());
        }
        self.announce();
        self.input.skip(payload).during(read_data(request))?;
        self.replies.error(request, self.session.features(), error);
        Ok(())
    }

    /// Carries out a valid request, here or in the pool.
    #[inline]
    fn execute<'scope>(
        &mut self,
        request: &Request,
        plan: Plan,
        payload: usize,
        threads: Threads<'scope, 's>,
    ) -> Result<(), End> {
        if !is_large_write(request) {
            self.input.set_narrow(false);
        }
        let done = match plan.attempt {
            Attempt::None => false,
            Attempt::WithoutWaiting => self.attempt_read(request, plan.splice_out)?,
            Attempt::SpliceIn { drain } => self.splice_in(request, payload, drain)?,
        };
        if done || plan.executor == Executor::Pipeline && self.queue(request, payload)? {
            return Ok(());
        }
        self.finish_in_flight()?;
        match (plan.executor, threads) {
            (Executor::Pool | Executor::Pipeline, Some((pool, scope))) => {
                self.dispatch(request, &plan, payload, pool, scope)
            }
            (Executor::Inline { drain, flush, timed }, _) => {
                if drain {
                    self.drain();
                }
                if flush {
                    self.flush()?;
                }
                self.execute_inline(request, &plan, payload, timed)
            }
            // Not a route without a pool.
            (Executor::Pool | Executor::Pipeline, None) => {
                self.execute_inline(request, &plan, payload, Timed::No)
            }
        }
    }

    /// Replies to a read if its data is in memory; false if the read may wait, and nothing was
    /// done.
    fn read_without_waiting(
        &mut self,
        request: &Request,
        splice_out: Option<usize>,
    ) -> Result<bool, End> {
        let session = self.session;
        let target = &session.target;
        let Some(range) = splice_out.and_then(|_| target.range(request)) else {
            return Ok(target.read_without_waiting(request, &mut self.replies));
        };
        if !target.is_cached(&range, request) {
            return Ok(false);
        }
        let Reader { replies, pipe, .. } = self;
        let spliced = session.splice_out(request, splice_out, || Some(range), replies, pipe);
        Ok(spliced.transpose().during("write reply")?.is_some())
    }

    /// Carries out a large write while its payload arrives; false if no file holds its range, and
    /// nothing was done.
    fn splice_in(&mut self, request: &Request, count: usize, drain: bool) -> Result<bool, End> {
        let session = self.session;
        if drain {
            self.drain();
        }
        let backend = session.target.backend;
        let Some(range) = backend.write_range(count as u32, request.offset) else {
            return Ok(false);
        };
        // Replies to earlier requests must not wait for this one.
        self.flush()?;
        let Reader { input, pipe, writes, replies, .. } = self;
        let receive = Receive::new(backend, range, request.offset, count);
        let received = receive.run(input, pipe, writes);
        session.target.unflushed.written(Flags::empty());
        match received.during(read_data(request))? {
            Ok(()) => replies.success(request, session.features()),
            Err(error) => {
                session.target.totals.failed(request);
                replies.error(request, session.features(), &error);
            }
        }
        // The next payload should stay in the socket, to be spliced too.
        input.set_narrow(true);
        Ok(true)
    }

    #[inline]
    fn execute_inline(
        &mut self,
        request: &Request,
        plan: &Plan,
        length: usize,
        timed: Timed,
    ) -> Result<(), End> {
        let session = self.session;
        let target = &session.target;
        let Reader { replies, pipe, .. } = self;
        let range = || target.file_range(request);
        if let Some(sent) = session.splice_out(request, plan.splice_out, range, replies, pipe) {
            return sent.during("write reply");
        }
        let fits = Input::fits(length);
        if !fits {
            self.input.read_payload(&mut self.payload, length).during(read_data(request))?;
        } else if length > 0 && !self.input.fill(length).during(read_data(request))? {
            return Err(io::ErrorKind::UnexpectedEof.into()).during(read_data(request));
        }
        let payload = if fits { &self.input.available()[..length] } else { &self.payload };
        let replies = &mut self.replies;
        let mut execute = || target.execute(request, plan.flags, payload, replies);
        match timed {
            Timed::No => execute(),
            Timed::Write => self.writes.time(length, execute),
            Timed::Call => self.calls.time(&session.score, execute),
        }
        if fits {
            self.input.consume(length);
        } else if self.payload.len() > KEEP_PAYLOAD {
            session.prealloc.empty(&mut self.payload);
        }
        Ok(())
    }

    /// Reads the payload and queues the request for a thread of the pool.
    fn dispatch<'scope>(
        &mut self,
        request: &Request,
        plan: &Plan,
        length: usize,
        pool: &'s Pool,
        scope: &'scope Scope<'scope, 's>,
    ) -> Result<(), End> {
        let grouped = self.is_grouped(request, plan.splice_out);
        if !grouped {
            self.announce();
        }
        self.send()?;
        self.unannounced |= grouped;
        let mut payload = pool.buffer(length);
        self.input.read_payload(&mut payload, length).during(read_data(request))?;
        let session = self.session;
        let Plan { flags, splice_out, .. } = *plan;
        let job = Job { request: *request, flags, splice_out, grouped, payload };
        let refused = pool.submit(scope, job, move || session.work(pool));
        if let Some(Job { payload, .. }) = refused {
            session.target.execute(request, flags, &payload, &mut self.replies);
        }
        Ok(())
    }
}

fn payload_too_long(request: &Request, payload: u64) -> End {
    End::Protocol(format!("invalid request: {}: payload of {payload} bytes", request.command))
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
