//! From the socket to the template. A client's socket is closed here as soon as a worker has it; nothing is read from
//! it. While the template does not take clients, none are accepted: they wait in the kernel's queue, unless there is no
//! template for too long. Those that it took and
//! made no worker for before it ended are handed to the next.

#![forbid(unsafe_code)]

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Token};
use nbdkit_ipc::WorkerExit;
use nbdkit_ipc::messages::{Isolation, Peer, Serve};
use nbdkit_ipc::phase::Phase;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use super::{FIRST_WORKER, Server, Stage, WorkerLink};
use crate::admission::PeerKey;
use crate::captive::Streams;
use crate::connections::Connection;
use crate::sockets;
use crate::sys::socket::accept;

/// How many clients are accepted before the other sources get their turn. Cheap ones, if many come at once: most wait.
const CLIENTS_AT_ONCE: usize = 64;

/// A listening socket.
pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    /// Whether it may have a client: the kernel says so once, until there are none.
    pub(super) ready: bool,
}

/// A client that the template has not taken yet.
pub(super) struct Pending {
    pub(super) serve: Serve,
    /// What the template gets: the worker's end of its control channel, as soon as it was made; the client.
    fds: Vec<OwnedFd>,
    /// Our end.
    link: Option<WorkerLink>,
}

/// What a failure of accept(2) means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// There are no more clients.
    Nothing,
    /// This client is gone, or its network has a problem; the next may be well.
    Client,
    /// Somebody forbids it, a security module perhaps: the client may be in the queue still.
    Forbidden,
    /// The system, or this process, has no more of something.
    Exhausted,
    /// The socket is no good.
    Socket,
}

/// accept(2), "Error handling".
fn failure(errno: Errno) -> Failure {
    match errno {
        Errno::EAGAIN => Failure::Nothing,
        Errno::EPERM | Errno::EACCES => Failure::Forbidden,
        Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM | Errno::ETOOMANYREFS => {
            Failure::Exhausted
        }
        Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP | Errno::EFAULT => {
            Failure::Socket
        }
        _ => Failure::Client,
    }
}

/// A rest after running out of something. Clients wait in the kernel's queue, so nobody is turned away.
#[derive(Debug, Default)]
pub(super) struct Pause {
    pub(super) until: Option<Instant>,
    length: Duration,
    reported: Option<Instant>,
}

impl Pause {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(1);
    /// How often it is worth a line.
    const REPORTS: Duration = Duration::from_secs(60);

    /// The end of the rest.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Begins a rest; longer each time. True if that is worth a line.
    fn begin(&mut self, now: Instant) -> bool {
        self.length = (self.length * 2).clamp(Self::FIRST, Self::LONGEST);
        self.until = Some(now + self.length);
        let silent =
            self.reported.is_some_and(|at| now.saturating_duration_since(at) < Self::REPORTS);
        if !silent {
            self.reported = Some(now);
        }
        !silent
    }

    fn over(&mut self, now: Instant) -> bool {
        if self.until.is_some_and(|until| now >= until) {
            self.until = None;
        }
        self.until.is_none()
    }

    fn success(&mut self) {
        self.length = Duration::ZERO;
    }
}

impl Server {
    /// Whether there may be a client that may be accepted now.
    pub(super) fn can_accept(&self, now: Instant) -> bool {
        self.accepts(now)
            && self.pause.until.is_none_or(|until| now >= until)
            && self.anybody_waits()
    }

    /// Whether there may be a client that waits.
    fn anybody_waits(&self) -> bool {
        self.listeners.iter().any(|listener| listener.ready)
    }

    /// Clients that nobody serves yet will not be served.
    pub(super) fn forget_clients(&mut self) {
        self.pending = None;
        self.waiting.clear();
    }

    /// Whether the client of a connection that has ended can be handed to the next template: no worker has had it.
    pub(super) fn may_return(&self, connection: &Connection, exit: Option<WorkerExit>) -> bool {
        exit.is_none() && !connection.gave_way && self.stage == Stage::Serving && !self.retiring
    }

    /// Whether a client may be handed to the template, as far as that and the server go.
    pub(super) fn hands_over(&self) -> bool {
        let one = self.configured.as_ref().is_some_and(|configured| configured.one_client);
        self.stage == Stage::Serving
            && self.pending.is_none()
            && self.template.as_ref().is_some_and(|template| template.phase() == Phase::Serving)
            && (!one || self.connections.is_empty())
    }

    fn accepts(&self, now: Instant) -> bool {
        let one = self.configured.as_ref().is_some_and(|configured| configured.one_client);
        (self.hands_over() || self.disconnects_unserved(now))
            && (!one || self.waiting.is_empty())
            && !self.admission.is_full(&self.connections, now)
    }

    /// Accepts some clients, from each socket in turn, and hands over whoever is next.
    pub(super) fn accept_clients(&mut self, now: Instant) {
        if !self.pause.over(now) {
            return;
        }
        self.hand_over(now);
        self.admit_waiting(now);
        if self.admission.is_full(&self.connections, now)
            && (self.anybody_waits() || !self.waiting.is_empty())
            && let Some(line) = self.admission.report_full(now)
        {
            self.log.error(&line);
        }
        for _ in 0..CLIENTS_AT_ONCE {
            if !self.can_accept(now) {
                return;
            }
            let count = self.listeners.len();
            let Some(index) = (0..count)
                .map(|turn| (self.next_listener + turn) % count)
                .find(|index| self.listeners[*index].ready)
            else {
                return;
            };
            self.next_listener = (index + 1) % count;
            match accept(&self.listeners[index].socket) {
                Ok(client) => self.accepted(client, now),
                Err(errno) => match failure(errno) {
                    Failure::Nothing => self.listeners[index].ready = false,
                    Failure::Client => {
                        self.log.debug(|| format!("accept: {} (ignored)", crate::words(errno)));
                    }
                    Failure::Exhausted => self.rest("accept", errno, now),
                    Failure::Forbidden => {
                        if self.pause.begin(now) {
                            let why = crate::words(errno);
                            self.log.error(&format!("accept: {why}. Is it a security module?"));
                        }
                    }
                    Failure::Socket => {
                        return self.fail(&format!("accept: {}", crate::words(errno)));
                    }
                },
            }
        }
    }

    /// Something has run out. A client that waits, or else a handshake that has taken long enough, makes room.
    pub(super) fn rest(&mut self, call: &str, errno: Errno, now: Instant) {
        if self.pause.begin(now) {
            self.log.error(&format!("{call}: {}. New clients have to wait.", crate::words(errno)));
        }
        if let Some((_, peer)) = self.waiting.pop_surplus() {
            self.report_refused(&peer, now);
        } else if let Some(number) = self.admission.overdue(&self.connections, now) {
            self.give_way(number);
        }
    }

    fn accepted(&mut self, client: OwnedFd, now: Instant) {
        self.log.debug(|| "accepted connection".to_owned());
        let peer = sockets::peer(&client);
        if self.disconnects_unserved(now) {
            return self.disconnect_one_unserved(&peer, now);
        }
        self.follow_groups(now);
        if self.admission.is_over_limit(&self.connections, &self.waiting, PeerKey::from(&peer)) {
            return self.refuse(&peer, now);
        }
        if sockets::is_tcp(&peer) {
            // It does not matter enough to turn the client away.
            let _ = setsockopt(&client, sockopt::TcpNoDelay, &true);
        }
        self.wait_for_room(client, peer, now);
        self.admit_waiting(now);
    }

    /// When somebody who waits may be accepted because a handshake takes too long.
    pub(super) fn next_place(&self) -> Option<Instant> {
        let waiting = self.anybody_waits();
        let next = self.admission.next_place(&self.connections);
        // Nobody is accepted while a client is being handed over, or on the way out.
        next.filter(|_| waiting && self.pending.is_none() && self.stage == Stage::Serving)
    }

    /// The client of `-s`.
    pub(super) fn hand_over_streams(&mut self, streams: Streams) {
        let fds = streams.into_client();
        let peer = sockets::peer(&fds[0]);
        self.hand_over_next(peer, fds, Instant::now());
    }

    /// Makes a client the next connection, and hands it over as soon as the template takes it.
    pub(super) fn hand_over_next(&mut self, peer: Peer, fds: Vec<OwnedFd>, now: Instant) {
        self.last_connection += 1;
        let serve = Serve { connection: self.last_connection, peer, broker: false };
        self.pending = Some(Pending { serve, fds, link: None });
        self.hand_over(now);
    }

    /// Hands the waiting client over, if the template takes it.
    fn hand_over(&mut self, now: Instant) {
        let Some(template) = &mut self.template else { return };
        if template.phase() != Phase::Serving {
            return;
        }
        let Some(mut pending) = self.pending.take() else { return };
        let isolation = self.configured.as_ref().map(|configured| configured.isolation);
        if isolation == Some(Isolation::Connection) && pending.link.is_none() {
            match WorkerLink::pair() {
                Ok((ours, theirs)) => {
                    pending.fds.insert(0, theirs.into_fd());
                    pending.link = Some(ours);
                }
                Err(error) => {
                    self.pending = Some(pending);
                    return self.rest("socketpair", error_number(&error), now);
                }
            }
        }
        if pending.link.is_some()
            && !pending.serve.broker
            && pending.fds.len() < nbdkit_ipc::MAX_FDS
            && let Some(channel) = self.brokers.channel_for(pending.serve.connection)
        {
            pending.serve.broker = true;
            pending.fds.insert(1, channel);
        }
        match template.serve(&pending.serve, &pending.fds) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.pending = Some(pending);
                return;
            }
            // It has ended; the next one takes the client.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.pending = Some(pending);
                return;
            }
            Err(error) => {
                self.pending = Some(pending);
                return self.rest("sendmsg", error_number(&error), now);
            }
        }
        self.pause.success();
        let Pending { serve: Serve { connection, peer, broker }, mut fds, link } = pending;
        // Behind the worker's end of its channels. The two of `-s` are of no use to another template.
        let client = fds.pop().filter(|_| link.is_some() && fds.len() == 1 + usize::from(broker));
        // The worker's end: its last holder's end is to close the channel.
        drop(fds);
        self.connections.add(connection, peer, client, now);
        if let Some(connection) = self.connections.get_mut(connection) {
            connection.has_worker = link.is_some();
        }
        if let Some(link) = link {
            let watched = self.poll.registry().register(
                &mut SourceFd(&link.as_fd().as_raw_fd()),
                Token(FIRST_WORKER + connection as usize),
                Interest::READABLE,
            );
            match watched {
                Ok(()) => drop(self.links.insert(connection, link)),
                // Closing the channel ends the worker.
                Err(error) => self.connection_error(
                    connection,
                    &format!("epoll_ctl: {}", crate::errno_text(&error)),
                ),
            }
        }
    }
}

fn error_number(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_accept_are_told_apart() {
        for (errno, expected) in [
            (Errno::EAGAIN, Failure::Nothing),
            (Errno::ECONNABORTED, Failure::Client),
            (Errno::ENETDOWN, Failure::Client),
            (Errno::EINTR, Failure::Client),
            (Errno::EMFILE, Failure::Exhausted),
            (Errno::EPERM, Failure::Forbidden),
            (Errno::EACCES, Failure::Forbidden),
            (Errno::ENOMEM, Failure::Exhausted),
            (Errno::EBADF, Failure::Socket),
        ] {
            assert_eq!(failure(errno), expected, "{errno}");
        }
    }

    #[test]
    fn a_pause_is_reported_once_a_minute_and_grows_to_a_second() {
        let now = Instant::now();
        let mut pause = Pause::default();
        assert!(pause.over(now));
        assert!(pause.begin(now));
        assert!(!pause.over(now + Duration::from_millis(99)));
        assert!(pause.over(now + Duration::from_millis(100)));
        for _ in 0..10 {
            assert!(!pause.begin(now));
        }
        assert_eq!(pause.until(), Some(now + Duration::from_secs(1)));
        pause.success();
        let later = now + Pause::REPORTS;
        assert!(pause.begin(later));
        assert_eq!(pause.until(), Some(later + Pause::FIRST));
    }
}
