//! Rates that all processes of a server keep together, one for each key: an address, an export.
//!
//! Nobody knows the keys before clients come, and there may be any number of them, one after the
//! other. But a bucket that is full is as good as none: its place may be given to another key at
//! any time, without asking whether its clients are still there. So nothing is registered and
//! nothing freed, and a worker that is killed leaves nothing.

#![forbid(unsafe_code)]

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::error::Result;
use crate::shared::bucket::{self, Rate};
use crate::shared::{SharedWords, access};

/// Places of a table: more than clients that are busy at a time.
const PLACES: usize = 1 << 14;

/// How many places a key may have. If all of them are of busy keys, it shares the last one.
const TRIES: usize = 16;

/// Buckets of tokens, one for each key, all full at first. Made before the first fork.
#[derive(Debug)]
pub struct TokenBuckets {
    /// For each place the hash of its key, 0 for none, and what a bucket has.
    words: SharedWords,
    /// With a secret, so that no client finds a name that shares the place of another one.
    hasher: RandomState,
}

impl TokenBuckets {
    /// # Errors
    /// ENOMEM.
    pub fn new() -> Result<TokenBuckets> {
        Ok(TokenBuckets { words: SharedWords::new(2 * PLACES)?, hasher: RandomState::new() })
    }

    /// Takes `tokens` from the bucket of `key`, as
    /// [`TokenBucket::take`](crate::shared::TokenBucket::take) does.
    ///
    /// # Errors
    /// That of clock_gettime(2), EINVAL, which a kernel that has the clock does not return.
    pub fn take(&self, key: &impl Hash, tokens: u64, rate: Rate) -> Result<Duration> {
        let now = bucket::now()?;
        Ok(bucket::take_at(self.place(key, now, rate), now, tokens, rate))
    }

    /// Takes `tokens` from the bucket of `key` if they can be used at once; false if not.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn try_take(&self, key: &impl Hash, tokens: u64, rate: Rate) -> Result<bool> {
        let now = bucket::now()?;
        Ok(bucket::try_take_at(self.place(key, now, rate), now, tokens, rate))
    }

    /// Returns `tokens` that were taken and not used.
    pub fn give_back(&self, key: &impl Hash, tokens: u64, rate: Rate) {
        // If the place has another key by now, the bucket was full.
        if let Some((_, word)) =
            self.places(self.hash(key)).find(|(owner, _)| access::load(owner) == self.hash(key))
        {
            bucket::give_back(word, tokens, rate);
        }
    }

    fn hash(&self, key: &impl Hash) -> u64 {
        self.hasher.hash_one(key).max(1)
    }

    /// The places that a key may have: owner and bucket.
    fn places(&self, hash: u64) -> impl Iterator<Item = (&AtomicU64, &AtomicU64)> {
        let first = hash as usize % PLACES;
        (first..first + TRIES).map(|place| {
            let at = 2 * (place % PLACES);
            (&self.words[at], &self.words[at + 1])
        })
    }

    /// The bucket of a key. A place that two keys take at the same moment has the bucket of one of
    /// them, and the other counts there once.
    fn place(&self, key: &impl Hash, now: u64, rate: Rate) -> &AtomicU64 {
        let hash = self.hash(key);
        if let Some((_, word)) = self.places(hash).find(|(owner, _)| access::load(owner) == hash) {
            return word;
        }
        let mut last = None;
        for (owner, word) in self.places(hash) {
            let seen = access::load(owner);
            if (seen == 0 || bucket::is_full(word, now, rate))
                && access::exchange(owner, seen, hash).is_ok()
            {
                return word;
            }
            last = Some(word);
        }
        last.unwrap_or(&self.words[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::deaths::Child;
    use std::num::NonZeroU64;

    const RATE: Rate =
        Rate { per_second: NonZeroU64::new(1000).unwrap(), capacity: 500, owed: 1_000_000 };

    #[test]
    fn each_key_has_a_bucket_of_its_own_in_all_processes() {
        let buckets = TokenBuckets::new().unwrap();
        let child = Child::new(|| {
            buckets.take(&"one", 50_500, RATE).unwrap();
        });
        child.join();
        let waits = buckets.take(&"one", 1000, RATE).unwrap();
        assert!(waits > Duration::from_secs(40), "{waits:?}");
        assert_eq!(buckets.take(&"two", 500, RATE).unwrap(), Duration::ZERO);
        assert!(buckets.take(&"two", 500, RATE).unwrap() > Duration::ZERO);
        buckets.give_back(&"one", 51_000, RATE);
        assert!(buckets.take(&"one", 1, RATE).unwrap() < Duration::from_secs(10));
        assert!(!buckets.try_take(&"two", 1, RATE).unwrap());
        assert!(buckets.try_take(&"three", 500, RATE).unwrap());
        buckets.give_back(&"nobody", 1, RATE);
    }

    #[test]
    fn a_full_bucket_gives_its_place_to_another_key_and_a_busy_one_does_not() {
        let buckets = TokenBuckets::new().unwrap();
        // More keys than places, each of which has taken nothing to speak of.
        for key in 0..4 * PLACES {
            buckets.take(&key, 0, RATE).unwrap();
        }
        buckets.take(&"busy", 100_000, RATE).unwrap();
        for key in 0..4 * PLACES {
            assert_eq!(buckets.take(&(key, "more"), 0, RATE).unwrap().as_secs() / 90, 0);
        }
        assert!(buckets.take(&"busy", 0, RATE).unwrap() > Duration::from_secs(60));
    }

    #[test]
    fn more_busy_keys_than_places_share_and_do_not_escape() {
        let buckets = TokenBuckets::new().unwrap();
        for key in 0..2 * PLACES {
            assert!(buckets.take(&key, 100_000, RATE).unwrap() > Duration::from_secs(90), "{key}");
        }
    }

    /// Whatever a hostile worker has written.
    #[test]
    fn any_words_are_endured() {
        let buckets = TokenBuckets::new().unwrap();
        buckets.words.iter().for_each(|word| access::store(word, u64::MAX));
        let most = Duration::from_secs(1_000_000 / 1000 + 2);
        assert!(buckets.take(&"one", 1000, RATE).unwrap() <= most);
        buckets.give_back(&"one", u64::MAX, RATE);
    }
}
