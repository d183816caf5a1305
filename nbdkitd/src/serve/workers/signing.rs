//! Signatures for TLS handshakes. An RSA signature takes a millisecond and more of the listener's
//! only thread. So requests wait in a queue for each peer, few signatures are made in a turn of the
//! loop, and the peer with the fewest signatures of late is next.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nbdkit_ipc::keys::KeyRequest;

use super::Workers;
use super::alarm::{Alarm, PERIOD};
use crate::admission::Waiting;
use crate::peer_key::PeerKey;
use crate::serve::context::Context;
use crate::tls::Checked;

/// How long the loop may sign before the other sources get their turn. One signature is always
/// made.
pub(in crate::serve) const TURN: Duration = Duration::from_millis(1);

/// For how long the signatures of a peer count.
const MEMORY: Duration = Duration::from_secs(1);

/// Most requests that wait. A connection has at most one.
const MOST: usize = 4096;

/// The queue of requests for signatures, fair between peers.
#[derive(Debug)]
pub(super) struct Signing {
    waiting: Waiting<(u64, Checked)>,
    /// Signatures of each peer since `since`.
    made: BTreeMap<PeerKey, usize>,
    since: Instant,
    alarm: Alarm,
}

impl Signing {
    pub(super) fn new(now: Instant) -> Signing {
        Signing {
            waiting: Waiting::new(MOST),
            made: BTreeMap::new(),
            since: now,
            alarm: Alarm::new(now),
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Queues a request. Returns the connection whose request had to leave the queue for it.
    fn push(&mut self, key: PeerKey, number: u64, request: Checked) -> Option<u64> {
        self.waiting.push(key, (number, request)).map(|(number, _)| number)
    }

    /// A connection of this peer, for which a signature was made, is in transmission.
    pub(super) fn led_to_transmission(&mut self, key: PeerKey) {
        self.alarm.used(key);
    }

    /// Takes the next request.
    fn next(&mut self, now: Instant) -> Option<(u64, Checked)> {
        if now.saturating_duration_since(self.since) >= MEMORY {
            self.made.clear();
            self.since = now;
        }
        let key = self.waiting.first_by(|key| self.made.get(&key).copied().unwrap_or_default())?;
        *self.made.entry(key).or_default() += 1;
        self.waiting.pop(key)
    }
}

impl Workers {
    /// Whether a connection waits for a signature.
    pub(in crate::serve) fn has_signatures_to_make(&self) -> bool {
        !self.signing.is_empty()
    }

    /// Checks a connection's request and queues it. Returns the connection whose request had to
    /// leave the queue for it, which is to be denied.
    ///
    /// # Errors
    /// What no honest worker would ask; which, for the log.
    pub(in crate::serve) fn queue_signature(
        &mut self,
        number: u64,
        request: KeyRequest,
        context: &Context,
    ) -> Result<Option<u64>, &'static str> {
        let keys = &context.plan().tls.as_ref().ok_or("a key where there is no TLS")?.keys;
        // Before it is queued: the worker may have ended when its turn comes.
        let checked = keys.check(request)?;
        let Some(connection) = self.connections.get(number) else { return Ok(None) };
        Ok(self.signing.push(connection.key, number, checked))
    }

    /// The next request whose client is still there.
    pub(in crate::serve) fn next_signature(&mut self) -> Option<(u64, Checked)> {
        loop {
            let (number, request) = self.signing.next(Instant::now())?;
            if let Some(connection) = self.connections.get_mut(number) {
                connection.signed_for = true;
                return Some((number, request));
            }
        }
    }

    /// Counts a signature, and warns about a peer that causes many.
    pub(in crate::serve) fn count_signature(&mut self, number: u64, context: &Context) {
        let Some(connection) = self.connections.get(number) else { return };
        if let Some(tally) = self.signing.alarm.signed(connection.key, Instant::now()) {
            context.log().error(&format!(
                "warning: TLS: many signatures or keys for the peer of {connection}: {} within {} s, {} of them for clients \
                 that were served; a worker that was taken over could have others' handshakes signed",
                tally.signed,
                PERIOD.as_secs(),
                tally.used
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdkit_ipc::keys::KeyAnswer;

    #[test]
    fn a_peer_with_few_requests_does_not_wait_behind_one_with_many() {
        let now = Instant::now();
        let mut signing = Signing::new(now);
        let (many, few) = (PeerKey::V4(1), PeerKey::V4(2));
        let request = || Checked::Known(KeyAnswer::Denied);
        for number in 0..300 {
            assert_eq!(signing.push(many, number, request()), None);
        }
        for number in 0..10 {
            assert_eq!(signing.next(now).map(|(number, _)| number), Some(number));
        }
        assert_eq!(signing.push(few, 1000, request()), None);
        assert_eq!(signing.next(now).map(|(number, _)| number), Some(1000));
        assert_eq!(signing.push(few, 1001, request()), None);
        assert_eq!(signing.next(now).map(|(number, _)| number), Some(1001));
        assert_eq!(signing.next(now).map(|(number, _)| number), Some(10));
        // What was long ago does not count.
        assert_eq!(signing.push(few, 1002, request()), None);
        signing.next(now + MEMORY);
        assert_eq!(signing.made.values().sum::<usize>(), 1);
    }

    #[test]
    fn no_more_wait_than_fit() {
        let mut signing = Signing::new(Instant::now());
        let request = || Checked::Known(KeyAnswer::Denied);
        let most = MOST as u64;
        assert!((0..most).all(|number| signing.push(PeerKey::V4(1), number, request()).is_none()));
        assert_eq!(signing.push(PeerKey::V4(2), most, request()), Some(0));
    }
}
