//! From the queue of accepted clients to the hand-over: who is admitted, whose handshake is evicted for that, and what is said
//! about those who are turned away. [`crate::admission`] decides.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use nbdkit_ipc::ToTemplate;
use nbdkit_ipc::messages::Peer;

use super::{Server, Stage};
use crate::admission::{Decision, MOST_WAITING, PeerKey, Waiting};
use crate::connections::client_name;
use crate::descriptors;
use crate::log::Verdict;

/// How many clients are handed over before the other sources get their turn.
const HAND_OVERS_AT_ONCE: usize = 16;

impl Server {
    /// Lets an accepted client wait until there is room for its handshake. That may be one too many of a peer.
    pub(super) fn wait_for_room(&mut self, client: OwnedFd, peer: Peer, now: Instant) {
        if let Some((_, peer)) = self.waiting.push(PeerKey::from(&peer), (client, peer)) {
            self.report_refused(&peer, now);
        }
    }

    /// Says that a client was disconnected that has waited.
    pub(super) fn report_refused(&mut self, peer: &Peer, now: Instant) {
        let who = client_name(peer);
        let line = format!("{who} is refused: too many clients of that peer wait already");
        self.report_turned_away(0, &line, now);
    }

    /// Admits no more clients than there are descriptors for.
    pub(super) fn fit_descriptors(&mut self) {
        let room = descriptors::make_room();
        if let Some(asked) = self.admission.clamp(room.served) {
            self.log.notice(&format!(
                "the limit of {} descriptors is enough for {} clients at a time, not for {asked} (--max-connections)",
                room.limit, room.served
            ));
        }
        let room = room.for_clients(self.admission.total().unwrap_or(room.served));
        self.waiting = Waiting::new(room.waiting.min(MOST_WAITING));
    }

    /// Hands over clients that wait, as far as there is room; unfinished handshakes may have to end for them.
    pub(super) fn admit_waiting(&mut self, now: Instant) {
        self.next_admission = None;
        for _ in 0..HAND_OVERS_AT_ONCE {
            if !self.hands_over() {
                return;
            }
            let next = self.admission.next(&self.connections, &self.waiting, now);
            let Some((key, decision)) = next else { return };
            match decision {
                Decision::Admit => {}
                Decision::Instead(number) => {
                    // That the handshake is over may have been said and not yet been read.
                    if self.is_shared() {
                        self.template_unread = true;
                        self.read_template();
                    } else {
                        self.read_worker_of(number);
                    }
                    let over = self.connections.get(number).is_none_or(|it| !it.is_in_handshake());
                    if over {
                        continue;
                    }
                    self.give_way(number);
                }
                Decision::Later(at) => {
                    self.next_admission = at;
                    return;
                }
            }
            let Some((client, peer)) = self.waiting.pop(key) else { return };
            self.hand_over_next(peer, vec![client], now);
        }
        self.next_admission = Some(now);
    }

    /// When the next of those that wait may be admitted, unless something else, which will wake us, keeps it from that. It may
    /// have come already, and be only a moment later than what [`accept_clients`](Self::accept_clients) took for now.
    pub(super) fn next_admission(&self) -> Option<Instant> {
        let at = self.next_admission.filter(|_| self.hands_over() && !self.waiting.is_empty())?;
        Some(self.pause.until().map_or(at, |until| at.max(until)))
    }

    /// Says why a client is disconnected.
    pub(super) fn refuse(&mut self, peer: &Peer, now: Instant) {
        let who = client_name(peer);
        let line =
            format!("{who} has too many connections, disconnected (--max-connections-per-peer)");
        self.report_turned_away(0, &line, now);
    }

    /// Whether there has been no template for so long that clients are disconnected rather than kept waiting.
    pub(super) fn disconnects_unserved(&self, now: Instant) -> bool {
        let one = self.configured.as_ref().is_some_and(|configured| configured.one_client);
        self.stage == Stage::Serving
            && self.schedule.refuses_clients(now)
            // Otherwise they wait for another client's end, too.
            && (!one || self.connections.is_empty())
    }

    /// Disconnects the clients that have waited for a template for too long, and lets nobody wait for its broker.
    pub(super) fn disconnect_unserved(&mut self, now: Instant) {
        if !self.disconnects_unserved(now) {
            return;
        }
        self.serve_waiting();
        let pending = self.pending.take().map(|pending| pending.serve.peer);
        let waiting = self.waiting.take_all().map(|(_, peer)| peer);
        for peer in pending.into_iter().chain(waiting) {
            self.disconnect_one_unserved(&peer, now);
        }
    }

    /// Says that a client is disconnected since there is no template.
    pub(super) fn disconnect_one_unserved(&mut self, peer: &Peer, now: Instant) {
        self.schedule.client_refused();
        let line =
            format!("{} is disconnected: there is no template to serve it", client_name(peer));
        self.report_turned_away(0, &line, now);
    }

    /// Ends a connection whose handshake is not over. Its end is reported by the template in the usual way.
    pub(super) fn give_way(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(number) else { return };
        connection.gave_way = true;
        if self.is_shared() {
            if let Some(template) = &mut self.template {
                template.say(ToTemplate::Disconnect { connection: number });
            }
            return;
        }
        self.end_worker(number);
        if let Some(link) = self.links.remove(&number) {
            self.forget(&link.as_fd().as_raw_fd());
        }
    }

    /// Writes a line about a client that was turned away, unless there were many of late. `connection` is 0 if it never
    /// became one.
    pub(super) fn report_turned_away(&mut self, connection: u64, text: &str, now: Instant) {
        let line = match self.admission.quota.take(now) {
            Verdict::Drop => return,
            Verdict::Write { dropped: 0 } => text.to_owned(),
            Verdict::Write { dropped } => format!("{text} ({dropped} such lines were left out)"),
        };
        if connection == 0 {
            self.log.error(&line);
        } else {
            self.connection_error(connection, &line);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::*;
    use crate::admission::OWN_TIME;
    use crate::serve::fuzz::Listener;
    use nbdkit_ipc::FromTemplate;
    use nbdkit_ipc::messages::{Hello, PeerAddress};
    use nix::errno::Errno;

    #[test]
    fn a_client_that_waits_for_a_moment_is_taken_on_whenever_that_is_noticed() {
        // Two more than one peer may have in the handshake.
        let mut listener = Listener::new(130, true).unwrap();
        let server = &mut listener.server;
        let (_client, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let now = Instant::now();
        let peer = Peer { address: PeerAddress::Unix, credentials: None, security_context: None };
        // The harness's template does not take clients yet.
        for message in [
            FromTemplate::Hello(Hello::ours()),
            FromTemplate::Configured(server.configured.clone().unwrap()),
            FromTemplate::Ready,
        ] {
            listener.template.send(&message, &[]).unwrap();
        }
        server.template_unread = true;
        server.read_template();
        server.wait_for_room(theirs.into(), peer, now);
        server.admit_waiting(now);
        let at = server.next_admission.unwrap();
        assert!(server.timeout(now).unwrap() <= OWN_TIME);
        assert_eq!(server.timeout(at), Some(Duration::ZERO));
        assert_eq!(server.timeout(at + Duration::from_millis(1)), Some(Duration::ZERO));
        // While something else rests, that is waited for.
        server.pause.until = Some(at + Duration::from_secs(1));
        assert_eq!(server.timeout(at), Some(Duration::from_secs(1)));
        server.pause.until = None;
        server.accept_clients(at);
        assert!(server.waiting.is_empty());
        assert!(server.connections.get_mut(1).unwrap().gave_way);
        assert_eq!(server.timeout(at + Duration::from_secs(1)), None);
    }

    #[test]
    fn when_something_has_run_out_whoever_waits_and_then_an_overdue_handshake_makes_room() {
        let mut listener = Listener::new(1, true).unwrap();
        let server = &mut listener.server;
        let (mut client, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = Peer { address: PeerAddress::Unix, credentials: None, security_context: None };
        let now = Instant::now();
        server.wait_for_room(theirs.into(), peer, now);
        server.rest("accept", Errno::EMFILE, now);
        assert_eq!(io::Read::read(&mut client, &mut [0]).unwrap(), 0);
        let gave_way = |server: &Server| server.connections.get(1).unwrap().gave_way;
        server.rest("accept", Errno::EMFILE, now);
        assert!(!gave_way(server), "it has come only just now");
        server.rest("accept", Errno::EMFILE, now + Duration::from_secs(10));
        assert!(gave_way(server));
    }
}
