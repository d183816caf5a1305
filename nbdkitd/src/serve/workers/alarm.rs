//! A warning about peers that cause many TLS signatures. A worker that was taken over gets one
//! signature for each connection, and may use it for another server's handshake with a victim. An
//! attacker who does that often connects often, and these connections do not get to transmission,
//! unless the workers send a false `Serving`.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::peer_key::PeerKey;

/// The period in which signatures are counted.
pub(super) const PERIOD: Duration = Duration::from_secs(60);

/// Signatures that did not lead to transmission are reported from this number on. A client that
/// lists the exports, or does not accept the certificate, causes one each time.
const MOST_UNUSED: u32 = 100;

/// Signatures are reported from this number on, whatever they led to: workers report that, and may
/// lie.
const MOST: u32 = 1000;

/// Most peers that are counted separately. Others count as one.
const MOST_PEERS: usize = 1024;

/// What a peer has caused within the period.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Signatures.
    pub(super) signed: u32,
    /// Those of connections that got to transmission.
    pub(super) used: u32,
    reported: bool,
}

/// How many signatures each peer has caused in the period.
#[derive(Debug)]
pub(super) struct Alarm {
    since: Instant,
    peers: BTreeMap<PeerKey, Tally>,
}

impl Alarm {
    pub(super) fn new(now: Instant) -> Alarm {
        Alarm { since: now, peers: BTreeMap::new() }
    }

    /// A signature was made for a connection of this peer. Returns what is to be reported: once for
    /// each peer and period.
    pub(super) fn signed(&mut self, peer: PeerKey, now: Instant) -> Option<Tally> {
        if now.saturating_duration_since(self.since) >= PERIOD {
            self.peers.clear();
            self.since = now;
        }
        let peer = self.counted_as(peer);
        let tally = self.peers.entry(peer).or_default();
        tally.signed = tally.signed.saturating_add(1);
        let unused = tally.signed.saturating_sub(tally.used);
        if tally.reported || (unused < MOST_UNUSED && tally.signed < MOST) {
            return None;
        }
        tally.reported = true;
        Some(*tally)
    }

    /// A connection of this peer, for which a signature was made, is in transmission.
    pub(super) fn used(&mut self, peer: PeerKey) {
        let peer = self.counted_as(peer);
        // There is no tally of a connection that was signed for in an earlier period.
        if let Some(tally) = self.peers.get_mut(&peer) {
            tally.used = tally.used.saturating_add(1);
        }
    }

    fn counted_as(&self, peer: PeerKey) -> PeerKey {
        let is_full = self.peers.len() >= MOST_PEERS && !self.peers.contains_key(&peer);
        if is_full { PeerKey::Unknown } else { peer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerKey = PeerKey::V4(1);

    #[test]
    fn signatures_that_lead_nowhere_are_reported_once_in_a_period() {
        let now = Instant::now();
        let mut alarm = Alarm::new(now);
        for _ in 1..MOST_UNUSED {
            assert_eq!(alarm.signed(PEER, now), None);
        }
        assert_eq!(alarm.signed(PeerKey::V4(2), now), None, "another's are its own");
        let tally = alarm.signed(PEER, now).expect("reported");
        assert_eq!((tally.signed, tally.used), (MOST_UNUSED, 0));
        assert_eq!(alarm.signed(PEER, now), None, "once");
        for _ in 1..MOST_UNUSED {
            assert_eq!(alarm.signed(PEER, now + PERIOD), None);
        }
        assert!(alarm.signed(PEER, now + PERIOD).is_some());
    }

    #[test]
    fn clients_that_are_served_are_reported_if_there_are_very_many() {
        let now = Instant::now();
        let mut alarm = Alarm::new(now);
        for _ in 1..MOST {
            assert_eq!(alarm.signed(PEER, now), None);
            alarm.used(PEER);
        }
        let tally = alarm.signed(PEER, now).expect("reported");
        assert_eq!((tally.signed, tally.used), (MOST, MOST - 1));
    }

    #[test]
    fn memory_is_bounded_and_many_peers_count_as_one() {
        let now = Instant::now();
        let mut alarm = Alarm::new(now);
        let mut reported = 0;
        for peer in 0..10 * MOST_PEERS as u32 {
            reported += usize::from(alarm.signed(PeerKey::V4(peer), now).is_some());
        }
        assert!(alarm.peers.len() <= MOST_PEERS + 1);
        assert_eq!(reported, 1);
    }
}
