//! Which clients are admitted: how many at a time, how many of one peer, and whose unfinished
//! handshake is evicted when there are too many of those. Pure.
//!
//! Clients that connect and send nothing must not keep others out. A handshake takes milliseconds,
//! so of too many unfinished ones the oldest is the least likely to be honest, and it is evicted.
//! Accepted clients wait without a process, in a queue for each peer ([`Waiting`]), until there is
//! room for their handshake; the client whose peer has the fewest handshakes under way is admitted
//! next. A newcomer waits for one handshake to be [`HANDSHAKE_TIME`] old at most, however many
//! clients of others wait.

#![forbid(unsafe_code)]

mod waiting;

pub(crate) use waiting::{MOST_WAITING, Waiting};

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::connections::Connections;
use crate::log::Quota;
use crate::peer_key::PeerKey;

/// `--max-connections` if it is not given. Each connection is a process, and one descriptor of the
/// listener.
pub(crate) const MAX_CONNECTIONS: u32 = 1024;

/// Unfinished handshakes at a time, if the number of connections has no limit.
const HANDSHAKES: usize = 256;
/// Unfinished handshakes that are always permitted, whatever the limits.
const MIN_HANDSHAKES: usize = 64;

/// The age from which a handshake may be evicted for one of a peer with fewer handshakes: many
/// times what an honest one needs.
pub(crate) const HANDSHAKE_TIME: Duration = Duration::from_millis(100);

/// The same for a handshake of a peer with as many, or of the same peer: no peer is kept out, and
/// each eviction costs a process.
pub(crate) const OWN_TIME: Duration = Duration::from_millis(250);

/// How many clients may have been sent to the template for which it has reported no worker. It
/// forks one after the other; later clients wait here, where a client of another peer can overtake
/// them.
const MOST_UNFORKED: usize = 16;

/// Fewest connection slots of which one peer gets no more than half if `--max-connections-per-peer`
/// is not given: an operator who sets fewer has counted the clients.
const SLOTS_TO_DIVIDE: usize = 128;

/// The age from which a handshake may be evicted when all connection slots are taken.
const EVICTION_AGE: Duration = Duration::from_secs(1);

/// Lines about clients that were refused or evicted: at once, and each second.
const LINES: (u32, u32) = (20, 1);

/// Shortest interval between two lines that all connection slots are taken.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What to do with a client that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The client is admitted.
    Admit,
    /// The client is admitted once this connection, whose handshake is not over, was evicted.
    Evict(u64),
    /// The client waits, until this time; `None`: until a connection changes.
    Wait(Option<Instant>),
}

/// The limits of admission.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Connections at a time; `None` is no limit.
    total: Option<usize>,
    /// Connections of one peer at a time, if the command line gives them; `Some(None)` is no limit.
    per_peer: Option<Option<usize>>,
    /// The limit for one peer if the command line gives none: half of all, so that there is room
    /// for another peer.
    half: Option<usize>,
    /// Unfinished handshakes at a time.
    handshakes: usize,
    /// Unfinished handshakes of one peer at a time.
    share: usize,
    /// The quota of lines about clients that were refused or evicted.
    pub(crate) quota: Quota,
    reported: Option<Instant>,
}

impl Admission {
    /// Limits from the command line. 0 is no limit.
    pub(crate) fn new(total: Option<u32>, per_peer: Option<u32>, now: Instant) -> Admission {
        let limit = |value: u32| (value > 0).then_some(value as usize);
        let total = limit(total.unwrap_or(MAX_CONNECTIONS));
        let handshakes = total.map_or(HANDSHAKES, handshakes);
        Admission {
            total,
            per_peer: per_peer.map(limit),
            half: total.filter(|total| *total >= SLOTS_TO_DIVIDE).map(|total| total / 2),
            handshakes,
            share: handshakes / 2,
            quota: Quota::new(LINES.0, LINES.1, now),
            reported: None,
        }
    }

    /// Lowers the limit to the clients that there are descriptors for. Returns the limit before, if
    /// it was higher.
    pub(crate) fn clamp(&mut self, most: usize) -> Option<usize> {
        let asked = self.total;
        if asked.is_some_and(|total| total <= most) {
            return None;
        }
        self.total = Some(most);
        self.half = self.half.map(|half| half.min(most.div_ceil(2)));
        self.handshakes = self.handshakes.min(handshakes(most));
        self.share = self.handshakes / 2;
        asked
    }

    /// Connections at a time; `None` is no limit.
    pub(crate) fn total(&self) -> Option<usize> {
        self.total
    }

    /// Whether all connection slots are taken, so that clients wait in the kernel's queue.
    pub(crate) fn is_full(&self, connections: &Connections, now: Instant) -> bool {
        self.all_slots_taken(connections) && overdue(connections).is_none_or(|(at, _)| at > now)
    }

    /// When a handshake may be evicted for a slot, if all slots are taken.
    pub(crate) fn next_slot(&self, connections: &Connections) -> Option<Instant> {
        // Asked in every turn of the loop, and mostly not true: then nothing is searched for.
        if !self.all_slots_taken(connections) {
            return None;
        }
        overdue(connections).map(|(at, _)| at)
    }

    fn all_slots_taken(&self, connections: &Connections) -> bool {
        // An evicted connection has its slot until it is gone, but not for long.
        let staying = |total| connections.iter().filter(|(_, it)| !it.evicted).count() >= total;
        self.total.is_some_and(|total| connections.len() >= total && staying(total))
    }

    /// A line for the log that all slots are taken, if it is time for one.
    pub(crate) fn report_full(&mut self, now: Instant) -> Option<String> {
        let silent = |at| now.saturating_duration_since(at) < LOG_INTERVAL;
        if self.reported.is_some_and(silent) {
            return None;
        }
        self.reported = Some(now);
        let total = self.total.unwrap_or_default();
        Some(format!(
            "{total} clients are connected. New clients have to wait (--max-connections)."
        ))
    }

    /// A handshake that has taken long enough to be evicted if descriptors or memory run out.
    pub(crate) fn overdue(&self, connections: &Connections, now: Instant) -> Option<u64> {
        overdue(connections).filter(|(at, _)| *at <= now).map(|(_, number)| number)
    }

    /// Whether a peer has all the connections that it may have. Clients that wait count.
    pub(crate) fn is_over_limit<T>(
        &self,
        connections: &Connections,
        waiting: &Waiting<T>,
        key: PeerKey,
    ) -> bool {
        let most = match key {
            // One user may be the one that all clients of this machine come as.
            PeerKey::User(_) | PeerKey::Unknown => self.per_peer.flatten(),
            PeerKey::V4(_) | PeerKey::V6Network(_) | PeerKey::VirtualMachine(_) => {
                self.per_peer.unwrap_or(self.half)
            }
        };
        let served = || connections.iter().filter(|(_, it)| !it.evicted && it.key == key).count();
        most.is_some_and(|most| waiting.count(key) + served() >= most)
    }

    /// Decides about the next client that waits; `None` if none does. The client whose peer has the
    /// fewest unfinished handshakes is next: it does not wait behind the many of another peer.
    pub(crate) fn next<T>(
        &self,
        connections: &Connections,
        waiting: &Waiting<T>,
        now: Instant,
    ) -> Option<(PeerKey, Decision)> {
        if waiting.is_empty() {
            return None;
        }
        let handshakes = Handshakes::of(connections);
        let key = waiting.first_by(|key| handshakes.count(key))?;
        Some((key, self.decide(connections, &handshakes, key, now)))
    }

    fn decide(
        &self,
        connections: &Connections,
        handshakes: &Handshakes,
        key: PeerKey,
        now: Instant,
    ) -> Decision {
        if self.all_slots_taken(connections) {
            return match overdue(connections) {
                Some((at, number)) if at <= now => Decision::Evict(number),
                Some((at, _)) => Decision::Wait(Some(at)),
                None => Decision::Wait(None),
            };
        }
        if handshakes.unforked >= MOST_UNFORKED {
            return Decision::Wait(None);
        }
        let own = handshakes.count(key);
        if let Some(it) = handshakes.of_peer.get(&key)
            && own >= self.share
        {
            return at_its_time(it.since + OWN_TIME, it.oldest, now);
        }
        if handshakes.all < self.handshakes {
            return Decision::Admit;
        }
        // Of all that are old enough, one of the peer with the most: a handshake that is too young
        // delays no other peer.
        let due = |it: &OfPeer| it.since + if it.count > own { HANDSHAKE_TIME } else { OWN_TIME };
        let old_enough = handshakes.of_peer.values().filter(|it| due(it) <= now);
        let victim = old_enough.max_by_key(|it| (it.count, std::cmp::Reverse(it.oldest)));
        match victim {
            Some(it) => Decision::Evict(it.oldest),
            None => Decision::Wait(handshakes.of_peer.values().map(due).min()),
        }
    }
}

/// How many unfinished handshakes are permitted with so many connection slots.
fn handshakes(total: usize) -> usize {
    (total / 4).max(MIN_HANDSHAKES)
}

fn at_its_time(at: Instant, number: u64, now: Instant) -> Decision {
    if at <= now { Decision::Evict(number) } else { Decision::Wait(Some(at)) }
}

/// The unfinished handshakes of a peer. There is at least one.
struct OfPeer {
    count: usize,
    /// The oldest connection, which has the lowest number.
    oldest: u64,
    since: Instant,
}

/// The unfinished handshakes of all.
struct Handshakes {
    of_peer: BTreeMap<PeerKey, OfPeer>,
    all: usize,
    /// Those whose worker the template has yet to report: it has more clients than it has forked
    /// workers for.
    unforked: usize,
}

impl Handshakes {
    fn of(connections: &Connections) -> Handshakes {
        let mut found = Handshakes { of_peer: BTreeMap::new(), all: 0, unforked: 0 };
        for (number, it) in connections.iter() {
            found.unforked += usize::from(it.awaits_fork());
            if !it.evicted && it.is_in_handshake() {
                let new = OfPeer { count: 0, oldest: number, since: it.since };
                found.of_peer.entry(it.key).or_insert(new).count += 1;
                found.all += 1;
            }
        }
        found
    }

    fn count(&self, key: PeerKey) -> usize {
        self.of_peer.get(&key).map_or(0, |it| it.count)
    }
}

/// The oldest unfinished handshake, and from when on it may be evicted for its slot.
fn overdue(connections: &Connections) -> Option<(Instant, u64)> {
    connections
        .iter()
        .find(|(_, it)| !it.evicted && it.is_in_handshake())
        .map(|(number, it)| (it.since + EVICTION_AGE, number))
}

#[cfg(test)]
mod tests;
