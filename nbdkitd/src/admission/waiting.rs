//! Accepted clients that wait for room: a queue for each peer. Pure.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};

use super::PeerKey;

/// Most that wait. Each is a descriptor of the listener.
pub(crate) const MOST_WAITING: usize = 4096;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Waiting<T> {
    /// None of them is empty. Each entry has the number of its arrival.
    queues: BTreeMap<PeerKey, VecDeque<(u64, T)>>,
    length: usize,
    arrivals: u64,
    most: usize,
}

impl<T> Waiting<T> {
    /// With room for so many.
    pub(crate) fn new(most: usize) -> Waiting<T> {
        Waiting { queues: BTreeMap::new(), length: 0, arrivals: 0, most: most.max(1) }
    }

    /// Takes the client that has waited longest of the peer of which most wait.
    pub(crate) fn pop_surplus(&mut self) -> Option<T> {
        let longest = self.queues.iter().max_by_key(|(_, queue)| queue.len());
        longest.map(|(key, _)| *key).and_then(|key| self.pop(key))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many of a peer wait.
    pub(crate) fn count(&self, key: PeerKey) -> usize {
        self.queues.get(&key).map_or(0, VecDeque::len)
    }

    /// Lets one more wait. If that is one too many, the peer of which most wait loses the one that has waited longest, which is
    /// returned.
    pub(crate) fn push(&mut self, key: PeerKey, item: T) -> Option<T> {
        self.arrivals += 1;
        self.length += 1;
        self.queues.entry(key).or_default().push_back((self.arrivals, item));
        if self.length > self.most { self.pop_surplus() } else { None }
    }

    /// Takes the one of a peer that has waited longest.
    pub(crate) fn pop(&mut self, key: PeerKey) -> Option<T> {
        let queue = self.queues.get_mut(&key)?;
        let (_, item) = queue.pop_front()?;
        self.length -= 1;
        if queue.is_empty() {
            self.queues.remove(&key);
        }
        Some(item)
    }

    /// The peer with the smallest `weight` of those that have somebody waiting; of equal ones, whoever came first.
    pub(crate) fn first_by(&self, weight: impl Fn(PeerKey) -> usize) -> Option<PeerKey> {
        let arrival = |queue: &VecDeque<(u64, T)>| queue.front().map(|(arrival, _)| *arrival);
        let order =
            |(key, queue): &(&PeerKey, &VecDeque<(u64, T)>)| (weight(**key), arrival(queue));
        self.queues.iter().min_by_key(order).map(|(key, _)| *key)
    }

    /// Takes all, in no order that matters.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.length = 0;
        std::mem::take(&mut self.queues).into_values().flatten().map(|(_, item)| item)
    }

    /// Drops all.
    pub(crate) fn clear(&mut self) {
        self.queues.clear();
        self.length = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PeerKey = PeerKey::V4(1);
    const B: PeerKey = PeerKey::V4(2);

    #[test]
    fn each_peer_is_a_queue_and_the_lightest_peer_is_first() {
        let mut waiting = Waiting::new(10);
        for (key, item) in [(A, 1), (A, 2), (B, 3)] {
            assert_eq!(waiting.push(key, item), None);
        }
        assert_eq!(waiting.first_by(|_| 0), Some(A));
        assert_eq!(waiting.first_by(|key| usize::from(key == A)), Some(B));
        assert_eq!((waiting.pop(A), waiting.pop(B), waiting.pop(B)), (Some(1), Some(3), None));
        assert_eq!((waiting.count(A), waiting.count(B)), (1, 0));
        assert_eq!(waiting.first_by(|_| 0), Some(A));
        waiting.clear();
        assert!(waiting.is_empty() && waiting.first_by(|_| 0).is_none());
    }

    #[test]
    fn who_is_one_too_many_is_the_greediest_peers() {
        let mut waiting = Waiting::new(3);
        for item in 0..3 {
            assert_eq!(waiting.push(A, item), None);
        }
        assert_eq!(waiting.push(B, 3), Some(0));
        assert_eq!(waiting.push(A, 4), Some(1));
        assert_eq!((waiting.count(A), waiting.count(B)), (2, 1));
    }
}
