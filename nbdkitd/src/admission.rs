//! Which clients are taken on: how many at a time, how many of one peer, and whose unfinished handshake gives way when
//! there are too many of those. Pure.
//!
//! Somebody who opens sockets and says nothing must not keep others out. A handshake takes milliseconds, so when a peer
//! has more than its share of unfinished ones the oldest is the least likely to be honest, and it is the one that ends:
//! a newcomer is never turned away because of clients that say nothing.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use nbdkit_ipc::messages::{Peer, PeerAddress};

use crate::connections::Connections;
use crate::log::Quota;

/// `--max-connections` if it is not given. Each connection is a process, and one descriptor of the listener.
const MAX_CONNECTIONS: u32 = 1024;

/// Unfinished handshakes at a time, if the number of connections has no limit.
const HANDSHAKES: usize = 256;
/// Whatever the limits are, so many handshakes may be under way.
const FEWEST_HANDSHAKES: usize = 64;

/// When all places are taken, a handshake that has taken so long gives its place up.
const PATIENCE: Duration = Duration::from_secs(1);

/// Lines about clients that were turned away: at once, and each second.
const LINES: (u32, u32) = (20, 1);

/// How often it is worth a line that all places are taken.
const REPORTS: Duration = Duration::from_secs(60);

/// What a peer is when its connections are counted. An IPv6 host owns the whole of a /64, so that is one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PeerKey {
    V4(u32),
    V6Network(u64),
    User(u32),
    VirtualMachine(u32),
    Unknown,
}

impl From<&Peer> for PeerKey {
    fn from(peer: &Peer) -> PeerKey {
        match (&peer.address, peer.credentials) {
            (PeerAddress::Inet(address), _) => match address.ip().to_canonical() {
                IpAddr::V4(ip) => PeerKey::V4(ip.to_bits()),
                IpAddr::V6(ip) => PeerKey::V6Network((Ipv6Addr::to_bits(ip) >> 64) as u64),
            },
            (PeerAddress::Unix, Some((_, uid, _))) => PeerKey::User(uid),
            (PeerAddress::Vsock { cid, .. }, _) => PeerKey::VirtualMachine(*cid),
            (PeerAddress::Unix | PeerAddress::Unknown, _) => PeerKey::Unknown,
        }
    }
}

/// What to do with a client that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is served.
    Admit,
    /// It is served, and this connection, whose handshake is not over, ends.
    Instead(u64),
    /// Its peer has all the connections that it may have.
    Refuse,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Connections at a time; `None` is no limit.
    total: Option<usize>,
    /// Connections of one peer at a time; `None` is no limit.
    per_peer: Option<usize>,
    /// Unfinished handshakes at a time.
    handshakes: usize,
    /// Unfinished handshakes of one peer at a time.
    share: usize,
    /// How many lines about clients turned away may be written.
    pub(crate) quota: Quota,
    reported: Option<Instant>,
}

impl Admission {
    /// Limits as the command line gives them: 0 is none.
    pub(crate) fn new(total: Option<u32>, per_peer: Option<u32>, now: Instant) -> Admission {
        let limit = |value: u32| (value > 0).then_some(value as usize);
        let total = limit(total.unwrap_or(MAX_CONNECTIONS));
        let handshakes = total.map_or(HANDSHAKES, |total| (total / 4).max(FEWEST_HANDSHAKES));
        Admission {
            total,
            per_peer: limit(per_peer.unwrap_or(0)),
            handshakes,
            share: handshakes / 2,
            quota: Quota::new(LINES.0, LINES.1, now),
            reported: None,
        }
    }

    /// Whether all places are taken, so that clients wait in the kernel's queue.
    pub(crate) fn is_full(&self, connections: &Connections, now: Instant) -> bool {
        self.all_taken(connections) && overdue(connections).is_none_or(|(at, _)| at > now)
    }

    /// When a place comes free that is taken by a handshake under way, if all are taken.
    pub(crate) fn next_place(&self, connections: &Connections) -> Option<Instant> {
        overdue(connections).filter(|_| self.all_taken(connections)).map(|(at, _)| at)
    }

    fn all_taken(&self, connections: &Connections) -> bool {
        // Those who gave way have a place until they are gone, but not for long.
        let staying = |total| connections.iter().filter(|(_, it)| !it.gave_way).count() >= total;
        self.total.is_some_and(|total| connections.len() >= total && staying(total))
    }

    /// Whether it is time for a line that says so.
    pub(crate) fn report_full(&mut self, now: Instant) -> Option<String> {
        let silent = |at| now.saturating_duration_since(at) < REPORTS;
        if self.reported.is_some_and(silent) {
            return None;
        }
        self.reported = Some(now);
        let total = self.total.unwrap_or_default();
        Some(format!(
            "{total} clients are connected. New clients have to wait (--max-connections)."
        ))
    }

    /// Decides about a client.
    pub(crate) fn decide(&self, connections: &Connections, peer: &Peer, now: Instant) -> Decision {
        let key = PeerKey::from(peer);
        let mut of_peer = 0;
        // For each peer: how many unfinished handshakes, and the oldest, which has the lowest number.
        let mut unfinished: BTreeMap<PeerKey, (usize, u64)> = BTreeMap::new();
        let mut all_unfinished = 0;
        for (number, connection) in connections.iter().filter(|(_, it)| !it.gave_way) {
            let other = PeerKey::from(&connection.peer);
            of_peer += usize::from(other == key);
            if connection.is_in_handshake() {
                all_unfinished += 1;
                unfinished.entry(other).or_insert((0, number)).0 += 1;
            }
        }
        if self.per_peer.is_some_and(|most| of_peer >= most) {
            return Decision::Refuse;
        }
        if let Some((count, oldest)) = unfinished.get(&key)
            && *count >= self.share
        {
            return Decision::Instead(*oldest);
        }
        if all_unfinished >= self.handshakes
            && let Some((_, oldest)) = unfinished.values().max_by_key(|(count, _)| *count)
        {
            return Decision::Instead(*oldest);
        }
        if self.all_taken(connections)
            && let Some((at, number)) = overdue(connections)
            && at <= now
        {
            return Decision::Instead(number);
        }
        Decision::Admit
    }
}

/// The oldest unfinished handshake, and when it has taken too long to keep its place.
fn overdue(connections: &Connections) -> Option<(Instant, u64)> {
    connections
        .iter()
        .find(|(_, it)| !it.gave_way && it.is_in_handshake())
        .map(|(number, it)| (it.since + PATIENCE, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Peer {
        let address = PeerAddress::Inet(address.parse().unwrap());
        Peer { address, credentials: None, security_context: None }
    }

    fn table(peers: &[(&str, usize)]) -> Connections {
        let mut table = Connections::default();
        let all = peers.iter().flat_map(|(address, count)| std::iter::repeat_n(*address, *count));
        for (number, address) in (1..).zip(all) {
            table.add(number, peer(address), None, Instant::now());
        }
        table
    }

    fn admission(total: u32, per_peer: u32) -> Admission {
        Admission::new(Some(total), Some(per_peer), Instant::now())
    }

    const A: &str = "10.0.0.1:1000";
    const B: &str = "10.0.0.2:1000";

    #[test]
    fn a_peer_with_its_share_of_handshakes_loses_its_own_oldest() {
        let admission = admission(256, 0);
        let table = table(&[(B, 1), (A, 32)]);
        assert_eq!(admission.decide(&table, &peer(A), Instant::now()), Decision::Instead(2));
        assert_eq!(admission.decide(&table, &peer(B), Instant::now()), Decision::Admit);
    }

    #[test]
    fn when_many_peers_say_nothing_the_greediest_loses_its_oldest() {
        let admission = admission(256, 0);
        let table = table(&[(A, 16), ("10.0.0.3:1", 24), ("10.0.0.4:1", 12), ("10.0.0.5:1", 12)]);
        assert_eq!(admission.decide(&table, &peer(B), Instant::now()), Decision::Instead(17));
    }

    #[test]
    fn those_who_finished_or_gave_way_do_not_count_as_handshakes() {
        let admission = admission(256, 0);
        let mut table = table(&[(A, 32)]);
        table.get_mut(1).unwrap().serving(String::new()).unwrap();
        assert_eq!(admission.decide(&table, &peer(A), Instant::now()), Decision::Admit);
        table.add(33, peer(A), None, Instant::now());
        assert_eq!(admission.decide(&table, &peer(A), Instant::now()), Decision::Instead(2));
        table.get_mut(2).unwrap().gave_way = true;
        assert_eq!(admission.decide(&table, &peer(A), Instant::now()), Decision::Admit);
    }

    #[test]
    fn a_peer_is_an_address_a_network_a_user_or_a_machine() {
        let table = table(&[("[2001:db8::1]:1", 1), ("[::ffff:10.0.0.1]:1", 1)]);
        let refused = |address| {
            admission(0, 1).decide(&table, &peer(address), Instant::now()) == Decision::Refuse
        };
        assert!(refused("[2001:db8::ffff]:2") && refused(A));
        assert!(!refused("[2001:db8:0:1::1]:1") && !refused(B));
        let user = |uid| Peer {
            address: PeerAddress::Unix,
            credentials: Some((7, uid, 0)),
            security_context: None,
        };
        assert_ne!(PeerKey::from(&user(1)), PeerKey::from(&user(2)));
        let machine = |cid| Peer {
            address: PeerAddress::Vsock { cid, port: 1 },
            credentials: None,
            security_context: None,
        };
        assert_ne!(PeerKey::from(&machine(3)), PeerKey::from(&machine(4)));
    }

    #[test]
    fn zero_is_no_limit_and_the_default_is_one() {
        let full = table(&[(A, 1024)]);
        assert!(!admission(0, 0).is_full(&full, Instant::now()));
        assert!(Admission::new(None, None, Instant::now()).is_full(&full, Instant::now()));
        assert!(!admission(1025, 0).is_full(&full, Instant::now()));
    }

    #[test]
    fn a_handshake_that_takes_long_gives_up_the_last_place() {
        let admission = admission(2, 0);
        let mut table = table(&[(A, 2)]);
        table.get_mut(1).unwrap().serving(String::new()).unwrap();
        let since = table.get_mut(2).unwrap().since;
        let late = since + PATIENCE;
        assert!(admission.is_full(&table, since) && !admission.is_full(&table, late));
        assert_eq!(admission.next_place(&table), Some(late));
        assert_eq!(admission.decide(&table, &peer(B), late), Decision::Instead(2));
        table.get_mut(2).unwrap().serving(String::new()).unwrap();
        assert!(admission.is_full(&table, late));
        assert_eq!(admission.next_place(&table), None);
    }

    #[test]
    fn a_full_house_is_reported_once_a_minute() {
        let now = Instant::now();
        let mut admission = admission(5, 0);
        assert!(admission.report_full(now).unwrap().starts_with("5 clients"));
        assert_eq!(admission.report_full(now + Duration::from_secs(59)), None);
        assert!(admission.report_full(now + REPORTS).is_some());
    }
}
