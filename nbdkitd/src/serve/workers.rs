//! The workers and their clients: the table of connections, the control channel to each worker, and
//! signatures for their TLS handshakes.
//!
//! What a worker sends is checked here for form, descriptors and phase;
//! [`dispatch`](super::dispatch) decides what follows from it.
//!
//! - `kill`: ending a worker, and checking that it has ended
//! - `signing`: the queue of signatures; `alarm`: a warning about peers that cause many

#![forbid(unsafe_code)]

mod alarm;
pub(super) mod kill;
pub(super) mod signing;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use mio::{Interest, Token};
use nbdkit_ipc::keys::{KeyAnswer, KeyRequest};
use nbdkit_ipc::messages::{Isolation, LogRecord, Peer, Totals};
use nbdkit_ipc::phase::{check_worker_ids, worker_message};
use nbdkit_ipc::process::Process;
use nbdkit_ipc::{Channel, FromWorker, RecvError, ToWorker};
use nix::errno::Errno;

use super::FIRST_WORKER;
use super::context::Context;
use crate::connections::{Connection, Connections, Violation};
use crate::log::Level;
use crate::parking::{Parking, Patience};
use crate::peer_key::PeerKey;
use kill::OwnProcesses;
use signing::Signing;

/// The listener's end of the channel to a worker.
pub(super) type WorkerLink = Channel<ToWorker, FromWorker>;

/// What came from a worker.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A message that is permitted in this phase.
    Message(FromWorker),
    /// Nothing now.
    Empty,
    /// Nothing any more: the channel is closed.
    Closed,
    /// A protocol violation; which.
    Violation(Cow<'static, str>),
}

/// Connections, channels and the queue of signatures.
pub(super) struct Workers {
    connections: Connections,
    links: BTreeMap<u64, WorkerLink>,
    signing: Signing,
    /// Connections whose worker was killed, or is to be, and when its end has to be known. In
    /// order.
    kills: VecDeque<(Instant, u64)>,
    /// Connections whose channel may have more to read.
    unread: BTreeSet<u64>,
}

impl Workers {
    pub(super) fn new(now: Instant) -> Workers {
        Workers {
            connections: Connections::default(),
            links: BTreeMap::new(),
            signing: Signing::new(now),
            kills: VecDeque::new(),
            unread: BTreeSet::new(),
        }
    }

    pub(super) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// How many clients there are.
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there are no clients.
    pub(super) fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    pub(super) fn connection_mut(&mut self, number: u64) -> Option<&mut Connection> {
        self.connections.get_mut(number)
    }

    /// Adds a client that the template was sent. `client` is its socket, if another template could
    /// serve it. Without a `link` it is served by the template itself. `patience`: how it may be
    /// parked.
    pub(super) fn add(
        &mut self,
        number: u64,
        peer: Peer,
        client: Option<OwnedFd>,
        link: Option<WorkerLink>,
        patience: Option<Patience>,
        now: Instant,
    ) {
        self.connections.add(number, peer, client, link.is_some(), now);
        if let Some(connection) = self.connections.get_mut(number) {
            connection.patience = patience;
        }
        if let Some(link) = link {
            self.links.insert(number, link);
        }
    }

    /// Adds the channel to the worker of a client that was parked, and begins to poll it.
    pub(super) fn add_link(&mut self, number: u64, link: WorkerLink, context: &Context) {
        self.links.insert(number, link);
        self.register(number, context);
    }

    /// Begins to poll a connection's channel.
    pub(super) fn register(&mut self, number: u64, context: &Context) {
        let Some(link) = self.links.get(&number) else { return };
        let token = Token(FIRST_WORKER + number as usize);
        let added = context.register(link.as_fd().as_raw_fd(), token, Interest::READABLE);
        if let Err(error) = added {
            // Closing the channel ends the worker.
            self.links.remove(&number);
            let client = self.connections.get(number).map(ToString::to_string).unwrap_or_default();
            let text = format!("epoll_ctl: {} ({client})", crate::errno_text(&error));
            self.error(number, &text, context);
        }
    }

    /// Logs an error that concerns a connection, and names its client.
    pub(super) fn error(&self, number: u64, text: &str, context: &Context) {
        let connection = self.connections.get(number);
        let key = connection.map_or(PeerKey::Unknown, |it| it.key);
        let speaker = context.speaker(None, number, connection.map(|it| it.subject(true)));
        context.log().about(key, None, speaker, Level::Error, text);
    }

    /// Logs what a worker has sent, within its quota. The number of the connection is the
    /// channel's, whatever the record says.
    pub(super) fn log(&mut self, number: u64, record: &LogRecord, context: &Context) {
        let Some(connection) = self.connections.get_mut(number) else { return };
        let key = connection.key;
        let (own, client) = connection.quota_and_subject();
        let speaker = context.speaker(record.layer.as_deref(), number, Some(client));
        context.log().about(key, Some(own), speaker, record.level, &record.text);
    }

    /// How log lines name a worker: `worker 7 (client 127.0.0.1:4000)`. `None` if there is no such
    /// connection.
    pub(super) fn name(&self, number: u64) -> Option<String> {
        let connection = self.connections.get(number)?;
        let pid = connection.pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
        Some(format!("worker {pid} ({connection})"))
    }

    /// A worker's channel is readable.
    pub(super) fn set_readable(&mut self, number: u64) {
        self.unread.insert(number);
    }

    /// All channels are readable.
    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn set_all_readable(&mut self) {
        self.unread = self.links.keys().copied().collect();
    }

    /// Whether a channel may have more to read.
    pub(super) fn has_readable(&self) -> bool {
        !self.unread.is_empty()
    }

    /// The connections whose channels may have more to read.
    pub(super) fn take_readable(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.unread)
    }

    /// Takes a message of a connection's worker, if there is one, and checks that it is permitted
    /// now.
    pub(super) fn receive(&mut self, number: u64) -> Incoming {
        let Some(link) = self.links.get(&number) else { return Incoming::Empty };
        let message = match link.try_recv() {
            Ok(received) if received.fds.is_empty() && !received.lost => received.message,
            Ok(_) => return Incoming::Violation("descriptors where none belong".into()),
            Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => return Incoming::Empty,
            Err(RecvError::Closed) => return Incoming::Closed,
            Err(error) => return Incoming::Violation(error.to_string().into()),
        };
        let Some(connection) = self.connections.get_mut(number) else { return Incoming::Closed };
        connection.taken();
        let phase = connection.phase;
        let Some(next) = phase.after(&message) else {
            let name = worker_message(&message);
            return Incoming::Violation(format!("unexpected {name} in phase {phase:?}").into());
        };
        if let Err(what) = check_worker_ids(&message) {
            return Incoming::Violation(what.into());
        }
        connection.phase = next;
        Incoming::Message(message)
    }

    /// Whether there is a channel to a connection's worker.
    pub(super) fn has_link(&self, number: u64) -> bool {
        self.links.contains_key(&number)
    }

    /// Which connections have a channel to their worker.
    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn links(&self) -> impl Iterator<Item = u64> {
        self.links.keys().copied()
    }

    /// Closes the channel to a connection's worker.
    pub(super) fn close_link(&mut self, number: u64, context: &Context) {
        if let Some(link) = self.links.remove(&number) {
            context.deregister(link.as_fd().as_raw_fd());
        }
        self.unread.remove(&number);
    }

    /// Sends an answer, for which a worker waits: so its queue has room, or it has ended.
    pub(super) fn send(&self, number: u64, message: &ToWorker, fds: &[BorrowedFd<'_>]) {
        if let Some(link) = self.links.get(&number) {
            let _ = link.try_send(message, fds);
        }
    }

    /// Has all workers finish. One that does not even take the message is killed at the deadline.
    pub(super) fn quiesce(&self) {
        self.links.keys().for_each(|number| self.send(*number, &ToWorker::Quiesce, &[]));
    }

    /// The template has named the worker of a connection. Process id and handle may be anything,
    /// even another program's: [`kill::signal_child`] checks them before they are used.
    ///
    /// # Errors
    /// The claim cannot be true.
    pub(super) fn forked(
        &mut self,
        number: u64,
        pid: i32,
        process: Option<Process>,
        isolation: Isolation,
    ) -> Result<(), Violation> {
        self.connections.forked(number, pid, isolation)?.process = process;
        Ok(())
    }

    /// A connection's handshake is over.
    ///
    /// # Errors
    /// There is no such connection, it was over before, or the export cannot be one.
    pub(super) fn serving(
        &mut self,
        number: u64,
        export: String,
        tls_dn: Option<String>,
    ) -> Result<(), Violation> {
        let connection = self.connections.get_mut(number).ok_or(Violation::UnknownConnection)?;
        connection.serving(export, tls_dn)?;
        if connection.signed_for {
            self.signing.led_to_transmission(connection.key);
        }
        Ok(())
    }

    /// A worker asks for a channel to the broker.
    ///
    /// # Errors
    /// More often than it can need one.
    pub(super) fn count_broker_request(&mut self, number: u64) -> Result<(), &'static str> {
        let Some(connection) = self.connections.get_mut(number) else { return Ok(()) };
        connection.brokers = connection
            .brokers
            .after_one_more()
            .ok_or("a channel to the broker more often than it can need one")?;
        Ok(())
    }

    /// Marks a connection as evicted. False if there is no such connection.
    pub(super) fn set_evicted(&mut self, number: u64) -> bool {
        self.connections.get_mut(number).map(|it| it.evicted = true).is_some()
    }

    /// Marks a connection as one whose worker has violated the protocol.
    pub(super) fn set_violated(&mut self, number: u64) {
        if let Some(connection) = self.connections.get_mut(number) {
            connection.has_violated = true;
        }
    }

    /// Removes a connection that has ended.
    ///
    /// # Errors
    /// There was no such connection.
    pub(super) fn remove(
        &mut self,
        number: u64,
        context: &Context,
    ) -> Result<Connection, Violation> {
        self.close_link(number, context);
        let connection = self.connections.remove(number)?;
        if let (Parking::Parked(..), Some(client)) = (&connection.parking, &connection.client) {
            context.deregister(client.as_raw_fd());
        }
        Ok(connection)
    }

    /// The template has ended to which all clients were sent. Returns the connections that are over
    /// with that: those it served itself, and those whose worker it had reaped without a message.
    /// The others are over when their worker is reaped here, or closes its channel without being
    /// known.
    pub(super) fn orphan_all(&mut self, is_shared: bool, own: &OwnProcesses) -> Vec<u64> {
        self.connections.orphan_all();
        let is_over =
            |number| is_shared || (!self.has_link(number) && !self.has_process(number, own));
        let served = self.connections.iter().filter(|(_, it)| !it.parking.has_no_worker());
        let numbers = served.map(|(number, _)| number);
        numbers.filter(|number| is_over(*number)).collect()
    }

    /// Whether a connection whose channel was closed is over: nobody else will report its end.
    pub(super) fn is_over_without_link(&self, number: u64, own: &OwnProcesses) -> bool {
        self.connections.get(number).is_some_and(|it| it.orphan) && !self.has_process(number, own)
    }

    /// A connection of the shared template asks for a key. The table of phases is that of workers.
    ///
    /// # Errors
    /// There is no such connection, or it has asked before.
    pub(super) fn count_shared_key(
        &mut self,
        number: u64,
        request: &KeyRequest,
    ) -> Result<(), &'static str> {
        let connection =
            self.connections.get_mut(number).ok_or("a key for a connection that does not exist")?;
        let next = connection.phase.after(&FromWorker::Key(request.clone()));
        connection.phase = next.ok_or("a second key for the same connection")?;
        Ok(())
    }

    /// A worker has reported what its client has read and written.
    pub(super) fn set_totals(&mut self, number: u64, totals: Totals) {
        if let Some(connection) = self.connections.get_mut(number) {
            connection.totals = Some(totals);
        }
    }

    /// The shared template reports it. The table of phases is that of workers.
    ///
    /// # Errors
    /// There is no such connection, or it was reported before.
    pub(super) fn set_shared_totals(
        &mut self,
        number: u64,
        totals: Totals,
    ) -> Result<(), &'static str> {
        let connection = self
            .connections
            .get_mut(number)
            .ok_or("the totals of a connection that does not exist")?;
        let next = connection.phase.after(&FromWorker::Totals(totals));
        connection.phase = next.ok_or("second totals of the same connection")?;
        connection.totals = Some(totals);
        Ok(())
    }

    /// Sends a worker the answer to its `Key`.
    pub(super) fn answer_key(&self, number: u64, answer: KeyAnswer) {
        self.send(number, &ToWorker::Key(answer), &[]);
    }
}
