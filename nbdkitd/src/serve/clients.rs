//! A client's way from accept(2) to its worker: accepted, queued, admitted, sent to the template.
//! And how clients are disconnected for whom there is no room or no template.
//! [`Acceptor`](super::acceptor::Acceptor) has the queue, [`crate::admission`] decides.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::time::Instant;

use nbdkit_ipc::ToTemplate;
use nbdkit_ipc::messages::Peer;
use nix::errno::Errno;

use super::Server;
use super::acceptor::{Accepted, ServerState};
use crate::admission::Decision;
use crate::captive::Streams;
use crate::connections::client_name;
use crate::sockets;

/// How many clients are accepted before the other sources get their turn. This costs little, if
/// many come at once: most wait.
const CLIENTS_AT_ONCE: usize = 64;

/// How many clients are sent to the template before the other sources get their turn.
const ADMITTED_AT_ONCE: usize = 16;

impl Server {
    /// What decides, outside of the acceptor, whether clients are accepted.
    pub(super) fn state(&self) -> ServerState<'_> {
        ServerState { stage: self.shutdown.stage(), slot: &self.slot, workers: &self.workers }
    }

    /// Accepts some clients, from each socket in turn, and sends the next ones to the template.
    pub(super) fn accept_clients(&mut self, now: Instant) {
        if !self.acceptor.backoff_is_over(now) {
            return;
        }
        self.send_pending(now);
        self.resume_parked(now);
        self.admit_waiting(now);
        self.acceptor.report_full(&self.workers, now, &self.context);
        for _ in 0..CLIENTS_AT_ONCE {
            if !self.acceptor.can_accept(self.state(), now) {
                return;
            }
            match self.acceptor.accept(now, &self.context) {
                Accepted::Client(client) => self.accepted(client, now),
                Accepted::Retry => {}
                Accepted::Nothing => return,
                Accepted::Exhausted(errno) => self.back_off("accept", errno, now),
                Accepted::Broken(errno) => {
                    return self.fail(&format!("accept: {}", crate::strerror(errno)));
                }
            }
        }
    }

    /// Descriptors or memory have run out. A client that waits is disconnected, or else an overdue
    /// handshake is evicted.
    pub(super) fn back_off(&mut self, call: &str, errno: Errno, now: Instant) {
        if !self.acceptor.back_off(call, errno, now, &self.context)
            && let Some(number) = self.acceptor.overdue(&self.workers, now)
        {
            self.evict(number);
        }
    }

    fn accepted(&mut self, client: OwnedFd, now: Instant) {
        self.context.log().debug(|| "accepted connection".to_owned());
        let peer = sockets::peer(&client);
        if self.state().refuses_clients(now) {
            return self.refuse_unserved(&peer, now);
        }
        self.slot.follow_groups(now, &self.context);
        if self.acceptor.is_over_limit(&self.workers, &peer) {
            let who = client_name(&peer);
            let line = format!(
                "{who} has too many connections, disconnected (--max-connections-per-peer)"
            );
            return self.acceptor.report_refused(&peer, &line, now, &self.context);
        }
        sockets::tune(&client, &peer);
        self.acceptor.queue(client, peer, now, &self.context);
        self.admit_waiting(now);
    }

    /// Sends the client of `-s` to the template.
    pub(super) fn send_streams(&mut self, streams: Streams) {
        let fds = streams.into_client();
        let peer = sockets::peer(&fds[0]);
        self.acceptor.set_pending(peer, fds);
        self.send_pending(Instant::now());
    }

    fn send_pending(&mut self, now: Instant) {
        let sent =
            self.acceptor.send_pending(&mut self.slot, &mut self.workers, now, &self.context);
        if let Err((call, errno)) = sent {
            self.back_off(call, errno, now);
        }
    }

    /// Admits clients that wait, as far as there is room; unfinished handshakes may have to be
    /// evicted for them.
    pub(super) fn admit_waiting(&mut self, now: Instant) {
        self.acceptor.set_next_admission(None);
        for _ in 0..ADMITTED_AT_ONCE {
            if !self.acceptor.can_send(self.state()) {
                return;
            }
            let Some((key, decision)) = self.acceptor.next_decision(&self.workers, now) else {
                return;
            };
            match decision {
                Decision::Admit => {}
                Decision::Evict(number) => {
                    // The end of the handshake may have been reported and not yet been read.
                    if self.slot.is_shared() {
                        self.slot.set_ready();
                        self.read_template();
                    } else {
                        self.read_worker_of(number);
                    }
                    let victim = self.workers.connections().get(number);
                    if victim.is_none_or(|it| !it.is_in_handshake()) {
                        continue;
                    }
                    self.evict(number);
                }
                Decision::Wait(at) => return self.acceptor.set_next_admission(at),
            }
            let Some((client, peer)) = self.acceptor.dequeue(key) else { return };
            self.acceptor.set_pending(peer, vec![client]);
            self.send_pending(now);
        }
        self.acceptor.set_next_admission(Some(now));
    }

    /// Evicts a connection whose handshake is not over. The template reports its end in the usual
    /// way.
    fn evict(&mut self, number: u64) {
        if !self.workers.set_evicted(number) {
            return;
        }
        if self.slot.is_shared() {
            return self.slot.send(ToTemplate::Disconnect { connection: number });
        }
        self.kill_worker(number);
        self.workers.close_link(number, &self.context);
    }

    /// Disconnects the clients that have waited for a template for too long, and lets no worker
    /// wait for its broker.
    pub(super) fn disconnect_unserved(&mut self, now: Instant) {
        if !self.state().refuses_clients(now) {
            return;
        }
        self.serve_broker_waiters();
        self.end_parked(false);
        for peer in self.acceptor.take_clients() {
            self.refuse_unserved(&peer, now);
        }
    }

    /// Logs that a client is disconnected since there is no template.
    fn refuse_unserved(&mut self, peer: &Peer, now: Instant) {
        self.slot.client_refused();
        let line =
            format!("{} is disconnected: there is no template to serve it", client_name(peer));
        self.acceptor.report_refused(peer, &line, now, &self.context);
    }
}
