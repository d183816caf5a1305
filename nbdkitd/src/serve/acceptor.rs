//! From the listening socket to the template: the sockets, the queue of accepted clients,
//! admission, and the client that is being sent. A client's socket is closed here as soon as a
//! worker has it; nothing is read from it.
//!
//! While the template does not accept clients, none are accepted here: they wait in the kernel's
//! queue, unless there is no template for too long. If a template exits before forking a worker for
//! a client, the client is requeued for the next template.
//!
//! - `backoff`: when accept(2) fails
//! - `pending`: the client that is being sent
//!
//! [`crate::admission`] decides who is next.

#![forbid(unsafe_code)]

mod backoff;
mod pending;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::{Interest, Token};
use nbdkit_ipc::messages::Peer;
use nix::errno::Errno;

use super::FIRST_LISTENER;
use super::context::Context;
use super::shutdown::Stage;
use super::slot::TemplateSlot;
use super::workers::Workers;
use crate::admission::{Admission, Decision, MAX_CONNECTIONS, MOST_WAITING, Waiting};
use crate::cli::command_line::Options;
use crate::connections::client_name;
use crate::descriptors;
use crate::log::{Level, Speaker, Subject, Verdict};
use crate::peer_key::PeerKey;
use crate::sockets::PrivateDirectory;
use crate::sys::socket::accept;
use backoff::{AcceptBackoff, Failure, failure};
use pending::Pending;

/// A listening socket.
struct ListeningSocket {
    socket: OwnedFd,
    /// Whether there may be a client: the poll instance reports it once, until there are none.
    ready: bool,
}

/// What accept(2) has returned.
pub(super) enum Accepted {
    /// A client.
    Client(OwnedFd),
    /// None this time; there may be another.
    Retry,
    /// No socket is ready.
    Nothing,
    /// The system, or this process, is out of descriptors or memory.
    Exhausted(Errno),
    /// The listening socket cannot be used.
    Broken(Errno),
}

/// The state outside of the acceptor that decides whether clients are accepted.
#[derive(Clone, Copy)]
pub(super) struct ServerState<'a> {
    pub(super) stage: Stage,
    pub(super) slot: &'a TemplateSlot,
    pub(super) workers: &'a Workers,
}

impl ServerState<'_> {
    /// Whether a stack that serves one client at a time has one.
    fn is_occupied(self) -> bool {
        self.slot.one_client() && !self.workers.is_empty()
    }

    /// Whether there has been no template for so long that clients are disconnected rather than
    /// kept waiting.
    pub(super) fn refuses_clients(self, now: Instant) -> bool {
        self.stage == Stage::Serving && self.slot.refuses_clients(self.workers, now)
    }
}

/// Listening sockets, accepted clients, and limits.
pub(super) struct Acceptor {
    sockets: Vec<ListeningSocket>,
    /// Where the search for the next client begins, so that each socket gets its turn.
    next_socket: usize,
    /// The directory of `-U -`.
    private: Option<PrivateDirectory>,
    pending: Option<Pending>,
    /// Accepted clients that wait for admission, and those that an ended template has forked no
    /// worker for.
    waiting: Waiting<(OwnedFd, Peer)>,
    /// Connections of clients that were parked and have come back.
    back: VecDeque<u64>,
    /// How long a client has to be idle to be parked; `None` if it never is.
    park_after: Option<Duration>,
    /// When the next client that waits may be admitted, if that is known.
    next_admission: Option<Instant>,
    backoff: AcceptBackoff,
    admission: Admission,
    last_connection: u64,
}

impl Acceptor {
    pub(super) fn new(options: &Options, now: Instant) -> Acceptor {
        let Options { max_connections, max_connections_per_peer, .. } = *options;
        Acceptor {
            sockets: Vec::new(),
            next_socket: 0,
            private: None,
            pending: None,
            waiting: Waiting::new(MOST_WAITING),
            back: VecDeque::new(),
            park_after: None,
            next_admission: None,
            backoff: AcceptBackoff::default(),
            admission: Admission::new(max_connections, max_connections_per_peer, now),
            last_connection: 0,
        }
    }

    /// Begins to poll a listening socket.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn add_socket(&mut self, socket: OwnedFd, context: &Context) -> io::Result<()> {
        let token = Token(FIRST_LISTENER + self.sockets.len());
        context.register(socket.as_raw_fd(), token, Interest::READABLE)?;
        self.sockets.push(ListeningSocket { socket, ready: false });
        Ok(())
    }

    /// A listening socket is readable.
    pub(super) fn set_ready(&mut self, index: usize) {
        if let Some(it) = self.sockets.get_mut(index) {
            it.ready = true;
        }
    }

    /// Closes the listening sockets.
    pub(super) fn close(&mut self, context: &Context) {
        for it in std::mem::take(&mut self.sockets) {
            context.deregister(it.socket.as_raw_fd());
        }
    }

    pub(super) fn set_private(&mut self, private: Option<PrivateDirectory>) {
        self.private = private;
    }

    /// The directory of `-U -`.
    pub(super) fn private(&self) -> Option<&PrivateDirectory> {
        self.private.as_ref()
    }

    pub(super) fn private_mut(&mut self) -> Option<&mut PrivateDirectory> {
        self.private.as_mut()
    }

    /// Disconnects the clients that no template has.
    pub(super) fn drop_clients(&mut self) {
        self.pending = None;
        self.waiting.clear();
    }

    /// Takes the clients that no template has.
    pub(super) fn take_clients(&mut self) -> impl Iterator<Item = Peer> + use<> {
        let pending = self.pending.take().map(|pending| pending.serve.peer);
        pending.into_iter().chain(self.waiting.take_all().map(|(_, peer)| peer))
    }

    /// Admits no more clients than there are descriptors for. Where they are scarce, no client is
    /// parked, for that takes one more for each. `can_park`: whether the stack permits it.
    pub(super) fn fit_descriptors(&mut self, can_park: bool, context: &Context) {
        let asked = self.admission.total().unwrap_or(MAX_CONNECTIONS as usize);
        self.park_after = context.park_idle().filter(|_| can_park);
        let mut room = descriptors::make_room(self.park_after.is_some());
        if self.park_after.is_some() && room.served < asked {
            self.park_after = None;
            room = descriptors::make_room(false);
        }
        if let Some(asked) = self.admission.clamp(room.served) {
            context.log().notice(&format!(
                "the limit of {} descriptors is enough for {} clients at a time, not for {asked} (--max-connections)",
                room.limit, room.served
            ));
        }
        let room = room.for_clients(self.admission.total().unwrap_or(room.served));
        self.waiting = Waiting::new(room.waiting.min(MOST_WAITING));
    }

    /// Whether there may be a client that may be accepted now.
    pub(super) fn can_accept(&self, state: ServerState<'_>, now: Instant) -> bool {
        self.accepts(state, now)
            && self.backoff.until().is_none_or(|until| now >= until)
            && self.has_ready_socket()
    }

    fn accepts(&self, state: ServerState<'_>, now: Instant) -> bool {
        (self.can_send(state) || state.refuses_clients(now))
            && (!state.slot.one_client() || self.waiting.is_empty())
            && !self.admission.is_full(state.workers.connections(), now)
    }

    fn has_ready_socket(&self) -> bool {
        self.sockets.iter().any(|it| it.ready)
    }

    /// A client that was parked has come back.
    pub(super) fn came_back(&mut self, number: u64) {
        self.back.push_back(number);
    }

    /// The first client that has come back, if the template may be sent one.
    pub(super) fn next_back(&self, state: ServerState<'_>) -> Option<u64> {
        self.back.front().copied().filter(|_| self.can_send(state))
    }

    /// The first client that has come back was sent to the template, or is gone.
    pub(super) fn was_resumed(&mut self) {
        self.back.pop_front();
        self.backoff.reset();
    }

    /// Whether there is a client that has come back and may be sent to the template now.
    pub(super) fn can_resume(&self, state: ServerState<'_>, now: Instant) -> bool {
        self.next_back(state).is_some()
            && !state.slot.waits_for_room()
            && self.backoff.until().is_none_or(|until| now >= until)
    }

    /// Whether a client may be sent to the template, as far as template and stage go.
    pub(super) fn can_send(&self, state: ServerState<'_>) -> bool {
        state.stage == Stage::Serving
            && self.pending.is_none()
            && state.slot.is_serving()
            && !state.is_occupied()
    }

    /// Accepts a client from the next socket that may have one.
    pub(super) fn accept(&mut self, now: Instant, context: &Context) -> Accepted {
        let count = self.sockets.len();
        let mut turns = (0..count).map(|turn| (self.next_socket + turn) % count);
        let Some(index) = turns.find(|index| self.sockets[*index].ready) else {
            return Accepted::Nothing;
        };
        self.next_socket = (index + 1) % count;
        let errno = match accept(&self.sockets[index].socket) {
            Ok(client) => return Accepted::Client(client),
            Err(errno) => errno,
        };
        match failure(errno) {
            Failure::Nothing => self.sockets[index].ready = false,
            Failure::Client => {
                context.log().debug(|| format!("accept: {} (ignored)", crate::strerror(errno)));
            }
            Failure::Forbidden => {
                if self.backoff.begin(now) {
                    let why = crate::strerror(errno);
                    context.log().error(&format!("accept: {why}. Is it a security module?"));
                }
            }
            Failure::Exhausted => return Accepted::Exhausted(errno),
            Failure::Socket => return Accepted::Broken(errno),
        }
        Accepted::Retry
    }

    /// Whether clients are accepted and admitted again after a failure.
    pub(super) fn backoff_is_over(&mut self, now: Instant) -> bool {
        self.backoff.is_over(now)
    }

    /// When the backoff ends.
    pub(super) fn backoff_until(&self) -> Option<Instant> {
        self.backoff.until()
    }

    /// Backs off after this call has failed for lack of descriptors or memory, and disconnects a
    /// client that waits, if one does. False if none does.
    pub(super) fn back_off(
        &mut self,
        call: &str,
        errno: Errno,
        now: Instant,
        context: &Context,
    ) -> bool {
        if self.backoff.begin(now) {
            let why = crate::strerror(errno);
            context.log().error(&format!("{call}: {why}. New clients have to wait."));
        }
        let surplus = self.waiting.pop_surplus();
        surplus.map(|(_, peer)| self.report_surplus(&peer, now, context)).is_some()
    }

    /// A handshake that has taken long enough to be evicted when descriptors or memory have run
    /// out.
    pub(super) fn overdue(&self, workers: &Workers, now: Instant) -> Option<u64> {
        self.admission.overdue(workers.connections(), now)
    }

    /// Whether a peer has all the connections that it may have.
    pub(super) fn is_over_limit(&self, workers: &Workers, peer: &Peer) -> bool {
        self.admission.is_over_limit(workers.connections(), &self.waiting, PeerKey::from(peer))
    }

    /// Queues an accepted client until there is room for its handshake. That may be one too many of
    /// a peer.
    pub(super) fn queue(&mut self, client: OwnedFd, peer: Peer, now: Instant, context: &Context) {
        if let Some((_, peer)) = self.waiting.push(PeerKey::from(&peer), (client, peer)) {
            self.report_surplus(&peer, now, context);
        }
    }

    fn report_surplus(&mut self, peer: &Peer, now: Instant, context: &Context) {
        let who = client_name(peer);
        let line = format!("{who} is refused: too many clients of that peer wait already");
        self.report_refused(peer, &line, now, context);
    }

    /// Logs that a client was disconnected, unless that was logged often of late. The text names
    /// the client.
    pub(super) fn report_refused(
        &mut self,
        peer: &Peer,
        text: &str,
        now: Instant,
        context: &Context,
    ) {
        if let Some(line) = self.limited(text, now) {
            let (export, tls_dn) = (None, None);
            let client = Subject { peer, export, tls_dn, reason: None, is_named: true };
            let speaker = Speaker { client: Some(client), ..Speaker::default() };
            context.log().write(speaker, Level::Error, &line);
        }
    }

    /// The line, if the quota of lines about refused and evicted clients permits it.
    pub(super) fn limited(&mut self, text: &str, now: Instant) -> Option<String> {
        match self.admission.quota.take(now) {
            Verdict::Drop => None,
            Verdict::Write { dropped: 0 } => Some(text.to_owned()),
            Verdict::Write { dropped } => {
                Some(format!("{text} ({dropped} such lines were left out)"))
            }
        }
    }

    /// Logs that all connection slots are taken while clients wait.
    pub(super) fn report_full(&mut self, workers: &Workers, now: Instant, context: &Context) {
        if self.admission.is_full(workers.connections(), now)
            && (self.has_ready_socket() || !self.waiting.is_empty())
            && let Some(line) = self.admission.report_full(now)
        {
            context.log().error(&line);
        }
    }

    /// Decides about the next client that waits.
    pub(super) fn next_decision(
        &self,
        workers: &Workers,
        now: Instant,
    ) -> Option<(PeerKey, Decision)> {
        self.admission.next(workers.connections(), &self.waiting, now)
    }

    /// Takes the first client of a peer from the queue.
    pub(super) fn dequeue(&mut self, key: PeerKey) -> Option<(OwnedFd, Peer)> {
        self.waiting.pop(key)
    }

    /// Notes when the next client that waits may be admitted.
    pub(super) fn set_next_admission(&mut self, at: Option<Instant>) {
        self.next_admission = at;
    }

    /// When the next client that waits may be admitted, unless something else, whose end is an
    /// event, prevents it. That time may have come already, and be only a moment later than the
    /// time that the loop took for now.
    pub(super) fn next_admission(&self, state: ServerState<'_>) -> Option<Instant> {
        let at =
            self.next_admission.filter(|_| self.can_send(state) && !self.waiting.is_empty())?;
        Some(self.backoff.until().map_or(at, |until| at.max(until)))
    }

    /// When a client that waits may be accepted because a handshake takes too long.
    pub(super) fn next_slot(&self, state: ServerState<'_>) -> Option<Instant> {
        let next = self.admission.next_slot(state.workers.connections());
        // None are accepted while a client is being sent, or while the server stops.
        next.filter(|_| {
            self.has_ready_socket() && self.pending.is_none() && state.stage == Stage::Serving
        })
    }

    /// Counts a connection and returns its number, from 1.
    pub(super) fn next_connection(&mut self) -> u64 {
        self.last_connection += 1;
        self.last_connection
    }

    /// The number of the latest connection.
    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn last_connection(&self) -> u64 {
        self.last_connection
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::OWN_TIME;
    use crate::serve::fuzz::Listener;
    use nbdkit_ipc::messages::PeerAddress;

    #[test]
    fn a_client_that_waits_for_a_moment_is_admitted_whenever_the_loop_wakes() {
        // Two more than one peer may have in the handshake.
        let mut listener = Listener::new(130, true).unwrap();
        // The harness's template does not accept clients yet.
        listener.template_serves();
        let server = &mut listener.server;
        let (_client, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let now = Instant::now();
        let peer = Peer { address: PeerAddress::Unix, credentials: None, security_context: None };
        server.acceptor.queue(theirs.into(), peer, now, &server.context);
        server.admit_waiting(now);
        let at = server.acceptor.next_admission.unwrap();
        assert!(server.timeout(now).unwrap() <= OWN_TIME);
        assert_eq!(server.timeout(at), Some(Duration::ZERO));
        assert_eq!(server.timeout(at + Duration::from_millis(1)), Some(Duration::ZERO));
        // A backoff comes first.
        server.acceptor.backoff.begin(at);
        let wait = server.acceptor.backoff.until().unwrap() - at;
        assert_eq!(server.timeout(at), Some(wait));
        server.acceptor.backoff = AcceptBackoff::default();
        server.accept_clients(at);
        assert!(server.acceptor.waiting.is_empty());
        assert!(server.workers.connections().get(1).unwrap().evicted);
        assert_eq!(server.timeout(at + Duration::from_secs(1)), None);
    }

    #[test]
    fn when_descriptors_have_run_out_a_waiting_client_and_then_an_overdue_handshake_go() {
        let mut listener = Listener::new(1, true).unwrap();
        let server = &mut listener.server;
        let (mut client, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = Peer { address: PeerAddress::Unix, credentials: None, security_context: None };
        let now = Instant::now();
        server.acceptor.queue(theirs.into(), peer, now, &server.context);
        server.back_off("accept", Errno::EMFILE, now);
        assert_eq!(io::Read::read(&mut client, &mut [0]).unwrap(), 0);
        let evicted =
            |server: &crate::serve::Server| server.workers.connections().get(1).unwrap().evicted;
        server.back_off("accept", Errno::EMFILE, now);
        assert!(!evicted(server), "it has come only just now");
        server.back_off("accept", Errno::EMFILE, now + Duration::from_secs(10));
        assert!(evicted(server));
    }
}
