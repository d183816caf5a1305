//! Quotas of log lines for each peer and for all clients, beside that of each connection: a client
//! that reconnects, or a peer with many connections, must not fill the disk.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Instant;

use super::quota::{Quota, Verdict};
use crate::peer_key::PeerKey;

/// Lines that the clients of one peer may cause: at once, and each second.
const OF_PEER: (u32, u32) = (400, 40);
/// Lines that all clients may cause: at once, and each second.
const OF_ALL: (u32, u32) = (2000, 200);
/// Bytes that count as a line. A longer line counts as several.
const LINE: usize = 512;
/// Most peers with a quota of their own. Others share one.
const MOST_PEERS: usize = 1024;

/// The quotas of peers and of all clients.
#[derive(Debug)]
pub(super) struct Quotas {
    /// The quota of all clients, which counts the dropped lines.
    all: Quota,
    peers: BTreeMap<PeerKey, Quota>,
    others: Quota,
}

impl Quotas {
    pub(super) fn new(now: Instant) -> Quotas {
        let quota = |(burst, per_second)| Quota::new(burst, per_second, now);
        Quotas { all: quota(OF_ALL), peers: BTreeMap::new(), others: quota(OF_PEER) }
    }

    /// Asks for a line of this length, bytes. `own`: the connection's quota.
    pub(super) fn take(
        &mut self,
        peer: PeerKey,
        own: Option<&mut Quota>,
        length: usize,
        now: Instant,
    ) -> Verdict {
        let lines = u32::try_from(1 + length / LINE).unwrap_or(u32::MAX);
        if own.is_some_and(|own| own.take_many(lines, now) == Verdict::Drop)
            || self.of_peer(peer, now).take_many(lines, now) == Verdict::Drop
        {
            self.all.count_dropped();
            return Verdict::Drop;
        }
        self.all.take_many(lines, now)
    }

    fn of_peer(&mut self, peer: PeerKey, now: Instant) -> &mut Quota {
        if self.peers.len() >= MOST_PEERS && !self.peers.contains_key(&peer) {
            self.peers.retain(|_, quota| !quota.is_full(now));
            if self.peers.len() >= MOST_PEERS {
                return &mut self.others;
            }
        }
        self.peers.entry(peer).or_insert_with(|| Quota::new(OF_PEER.0, OF_PEER.1, now))
    }

    /// Lines dropped since that was last reported.
    pub(super) fn rest(&mut self) -> u64 {
        self.all.rest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Lines of so many connections of a peer, each with a quota of its own.
    fn written(
        quotas: &mut Quotas,
        peer: PeerKey,
        connections: u32,
        length: usize,
        now: Instant,
    ) -> u32 {
        let mut written = 0;
        for _ in 0..connections {
            let mut own = Quota::new(200, 20, now);
            for _ in 0..10 {
                let verdict = quotas.take(peer, Some(&mut own), length, now);
                written += u32::from(verdict != Verdict::Drop);
            }
        }
        written
    }

    #[test]
    fn connecting_again_gives_no_more_lines_and_what_is_dropped_is_counted() {
        let now = Instant::now();
        let mut quotas = Quotas::new(now);
        assert_eq!(written(&mut quotas, PeerKey::V4(1), 100, 10, now), OF_PEER.0);
        let dropped = 1000 - u64::from(OF_PEER.0);
        // The next line that is written reports them, whatever its peer.
        let next = quotas.take(PeerKey::V4(2), None, 10, now);
        assert_eq!(next, Verdict::Write { dropped });
        assert_eq!(quotas.rest(), 0);
    }

    #[test]
    fn many_peers_have_a_limit_together_and_long_lines_count_as_several() {
        let now = Instant::now();
        let mut quotas = Quotas::new(now);
        let all: u32 =
            (0..300).map(|peer| written(&mut quotas, PeerKey::V4(peer), 1, 10, now)).sum();
        assert_eq!(all, OF_ALL.0);
        let later = now + Duration::from_secs(60);
        assert!(written(&mut quotas, PeerKey::V4(1), 100, 16 * 1024, later) < 14);
    }

    #[test]
    fn the_number_of_quotas_is_bounded() {
        let now = Instant::now();
        let mut quotas = Quotas::new(now);
        for peer in 0..5000 {
            let _ = quotas.take(PeerKey::V4(peer), None, 1, now);
        }
        assert!(quotas.peers.len() <= MOST_PEERS);
        let later = now + Duration::from_secs(60);
        let _ = quotas.take(PeerKey::V4(9999), None, 1, later);
        assert_eq!(quotas.peers.len(), 1);
    }
}
