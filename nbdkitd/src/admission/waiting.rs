//! A queue for each peer: of accepted clients that wait for admission, and of requests for
//! signatures. Pure.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};

use crate::peer_key::PeerKey;

/// Most clients that wait. Each is a descriptor of the listener.
pub(crate) const MOST_WAITING: usize = 4096;

/// Items that wait, in a queue for each peer.
#[derive(Debug)]
pub(crate) struct Waiting<T> {
    /// No queue is empty. Each item has the number of its arrival.
    queues: BTreeMap<PeerKey, VecDeque<(u64, T)>>,
    length: usize,
    arrivals: u64,
    most: usize,
}

impl<T> Waiting<T> {
    /// Empty queues, with room for so many items.
    pub(crate) fn new(most: usize) -> Waiting<T> {
        Waiting { queues: BTreeMap::new(), length: 0, arrivals: 0, most: most.max(1) }
    }

    /// Takes the oldest item of the peer with the most.
    pub(crate) fn pop_surplus(&mut self) -> Option<T> {
        let longest = self.queues.iter().max_by_key(|(_, queue)| queue.len());
        longest.map(|(key, _)| *key).and_then(|key| self.pop(key))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many items a peer has.
    pub(crate) fn count(&self, key: PeerKey) -> usize {
        self.queues.get(&key).map_or(0, VecDeque::len)
    }

    /// Adds an item. If that is one too many, the oldest item of the peer with the most is removed
    /// and returned.
    pub(crate) fn push(&mut self, key: PeerKey, item: T) -> Option<T> {
        self.arrivals += 1;
        self.length += 1;
        self.queues.entry(key).or_default().push_back((self.arrivals, item));
        if self.length > self.most { self.pop_surplus() } else { None }
    }

    /// Takes a peer's oldest item.
    pub(crate) fn pop(&mut self, key: PeerKey) -> Option<T> {
        let queue = self.queues.get_mut(&key)?;
        let (_, item) = queue.pop_front()?;
        self.length -= 1;
        if queue.is_empty() {
            self.queues.remove(&key);
        }
        Some(item)
    }

    /// The peer with the smallest `weight` of those that have items; of equal ones, the one with
    /// the oldest item.
    pub(crate) fn first_by(&self, weight: impl Fn(PeerKey) -> usize) -> Option<PeerKey> {
        let arrival = |queue: &VecDeque<(u64, T)>| queue.front().map(|(arrival, _)| *arrival);
        let order =
            |(key, queue): &(&PeerKey, &VecDeque<(u64, T)>)| (weight(**key), arrival(queue));
        self.queues.iter().min_by_key(order).map(|(key, _)| *key)
    }

    /// Takes all items, in no particular order.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.length = 0;
        std::mem::take(&mut self.queues).into_values().flatten().map(|(_, item)| item)
    }

    /// Drops all items.
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
    fn the_surplus_item_is_the_oldest_of_the_peer_with_the_most() {
        let mut waiting = Waiting::new(3);
        for item in 0..3 {
            assert_eq!(waiting.push(A, item), None);
        }
        assert_eq!(waiting.push(B, 3), Some(0));
        assert_eq!(waiting.push(A, 4), Some(1));
        assert_eq!((waiting.count(A), waiting.count(B)), (2, 1));
    }
}
