//! Signatures for TLS handshakes. One with RSA takes a millisecond and more of this process, which has to do all else too: they
//! wait in a queue for each peer, few are made in a turn of the loop, and the peer that had the fewest of late is next.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nbdkit_ipc::keys::{KeyAnswer, KeyRequest};
use nbdkit_ipc::{ToTemplate, ToWorker};

use super::Server;
use super::alarm::{Alarm, PERIOD};
use crate::admission::{PeerKey, Waiting};
use crate::tls::Checked;

/// How long the loop may sign before the other sources get their turn. One signature is always made.
const TURN: Duration = Duration::from_millis(1);

/// How long it is remembered who had how many.
const MEMORY: Duration = Duration::from_secs(1);

/// Most that wait; each is a connection's only one.
const MOST: usize = 4096;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Signing {
    waiting: Waiting<(u64, Checked)>,
    /// Signatures of each peer since then.
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

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A connection asks. Returns another's request, which is one too many.
    fn push(&mut self, key: PeerKey, number: u64, request: Checked) -> Option<u64> {
        self.waiting.push(key, (number, request)).map(|(number, _)| number)
    }

    /// A connection of this peer that was answered is in transmission.
    pub(super) fn led_to_transmission(&mut self, key: PeerKey) {
        self.alarm.used(key);
    }

    /// Who is next, and what it asks.
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

impl Server {
    /// Checks a connection's request, and has it answered in its turn.
    ///
    /// # Errors
    /// What it asks no honest worker would; which, for the log.
    pub(super) fn queue_signature(
        &mut self,
        number: u64,
        request: KeyRequest,
    ) -> Result<(), &'static str> {
        let keys = &self.plan.tls.as_ref().ok_or("a key where there is no TLS")?.keys;
        // At once: a worker may be gone when its turn comes.
        let checked = keys.check(request)?;
        if let Some(connection) = self.connections.get(number)
            && let Some(surplus) = self.signing.push(connection.key, number, checked)
        {
            self.answer_key(surplus, KeyAnswer::Denied);
        }
        Ok(())
    }

    /// Makes some of the signatures that were asked for.
    pub(super) fn sign_some(&mut self) {
        let end = Instant::now() + TURN;
        while let Some((number, request)) = self.signing.next(Instant::now()) {
            // The client may have left.
            if let Some(connection) = self.connections.get_mut(number) {
                connection.signed_for = true;
                let key = connection.key;
                self.answer_key(number, request.answer());
                self.count_signature(number, key);
            }
            if Instant::now() >= end {
                return;
            }
        }
    }

    /// Reports a peer that causes many.
    fn count_signature(&mut self, number: u64, key: PeerKey) {
        if let Some(tally) = self.signing.alarm.signed(key, Instant::now())
            && let Some(connection) = self.connections.get(number)
        {
            self.log.error(&format!(
                "warning: TLS: many signatures or keys for the peer of {connection}: {} within {} s, {} of them for clients \
                 that were served; a worker that was taken over could have others' handshakes signed",
                tally.signed,
                PERIOD.as_secs(),
                tally.used
            ));
        }
    }

    fn answer_key(&mut self, number: u64, answer: KeyAnswer) {
        if self.is_shared() {
            if let Some(template) = &mut self.template {
                template.say(ToTemplate::Key { connection: number, answer });
            }
        } else if let Some(link) = self.links.get(&number) {
            // It waits for nothing else, so its queue has room; or it is gone.
            let _ = link.try_send(&ToWorker::Key(answer), &[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
