//! A rate that all processes of a server keep together.
//!
//! Shared memory has one word: the time at which all that was taken so far will have been earned.
//! So no process can leave it half changed, and the rate, which each caller brings along, may
//! change at any time. (The generic cell rate algorithm: a token bucket that need not be filled.)

#![forbid(unsafe_code)]

use std::num::NonZeroU64;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::error::{Result, ResultExt};
use crate::shared::{SharedWords, access};

/// How many tokens may be taken. A caller has it from its parameters, or from a file that it reads
/// again from time to time; it is not in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that are earned in a second.
    pub per_second: NonZeroU64,
    /// Tokens that may be taken at once after a pause.
    pub capacity: u64,
    /// Tokens that all others together may have taken before they were earned: what they have in
    /// flight. Whatever stands in shared memory, a caller waits for no more than these.
    pub owed: u64,
}

/// A bucket of tokens, full at first.
#[derive(Debug)]
pub struct TokenBucket(Memory);

/// Where the word is: a time of CLOCK_MONOTONIC, in nanoseconds.
#[derive(Debug)]
enum Memory {
    Shared(SharedWords),
    Own(AtomicU64),
}

const SECOND: u64 = 1_000_000_000;

impl TokenBucket {
    /// A bucket of all processes. Made before the first fork.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new() -> Result<TokenBucket> {
        Ok(TokenBucket(Memory::Shared(SharedWords::new(1)?)))
    }

    /// A bucket of this process alone, such as that of one connection. It may be made at any time.
    pub fn private() -> TokenBucket {
        TokenBucket(Memory::Own(AtomicU64::new(0)))
    }

    fn word(&self) -> &AtomicU64 {
        match &self.0 {
            Memory::Shared(words) => &words[0],
            Memory::Own(word) => word,
        }
    }

    /// Takes `tokens`, more than the capacity if need be, and returns how long to wait before using
    /// them. Later callers wait longer. A caller that cannot wait so long
    /// [returns](Self::give_back) them.
    ///
    /// # Errors
    /// That of clock_gettime(2), EINVAL, which a kernel that has the clock does not return.
    pub fn take(&self, tokens: u64, rate: Rate) -> Result<Duration> {
        Ok(take_at(self.word(), now()?, tokens, rate))
    }

    /// Takes `tokens` if they can be used at once; false if not, and nothing was taken.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn try_take(&self, tokens: u64, rate: Rate) -> Result<bool> {
        Ok(try_take_at(self.word(), now()?, tokens, rate))
    }

    /// Returns `tokens` that were taken and not used.
    pub fn give_back(&self, tokens: u64, rate: Rate) {
        give_back(self.word(), tokens, rate);
    }

    /// For the fuzz targets, which are hostile workers: any time.
    #[cfg(any(test, feature = "fuzz"))]
    #[doc(hidden)]
    pub fn scribble(&self, word: u64) {
        access::store(self.word(), word);
    }
}

/// [`TokenBucket::take`] from the bucket of this word, at a time of [`now`].
pub(super) fn take_at(word: &AtomicU64, now: u64, tokens: u64, rate: Rate) -> Duration {
    let mut seen = access::load(word);
    loop {
        let earned = rate.earned(seen, now, tokens);
        match access::exchange(word, seen, earned) {
            Ok(()) => return Duration::from_nanos(earned.saturating_sub(now)),
            Err(other) => seen = other,
        }
    }
}

/// [`TokenBucket::try_take`] from the bucket of this word, at a time of [`now`].
pub(super) fn try_take_at(word: &AtomicU64, now: u64, tokens: u64, rate: Rate) -> bool {
    let mut seen = access::load(word);
    loop {
        let earned = rate.earned(seen, now, tokens);
        if earned > now {
            return false;
        }
        match access::exchange(word, seen, earned) {
            Ok(()) => return true,
            Err(other) => seen = other,
        }
    }
}

/// [`TokenBucket::give_back`] to the bucket of this word.
pub(super) fn give_back(word: &AtomicU64, tokens: u64, rate: Rate) {
    let earning = rate.earning(tokens);
    let mut seen = access::load(word);
    while let Err(now) = access::exchange(word, seen, seen.saturating_sub(earning)) {
        seen = now;
    }
}

/// Whether the bucket of this word has all the tokens that it can have.
pub(super) fn is_full(word: &AtomicU64, now: u64, rate: Rate) -> bool {
    access::load(word) <= now.saturating_sub(rate.earning(rate.capacity))
}

impl Rate {
    /// When `tokens` more will be earned, if `seen` is the word of a bucket.
    fn earned(self, seen: u64, now: u64, tokens: u64) -> u64 {
        let saved = self.earning(self.capacity);
        // Tokens are saved up to the capacity, and owed up to the limit: whatever the word is.
        let latest = now.saturating_add(self.earning(self.owed));
        let from = seen.clamp(now.saturating_sub(saved).min(latest), latest);
        from.saturating_add(self.earning(tokens))
    }

    /// Nanoseconds in which so many tokens are earned.
    fn earning(self, tokens: u64) -> u64 {
        let nanoseconds =
            u128::from(tokens) * u128::from(SECOND) / u128::from(self.per_second.get());
        // Some 290 years: sums of three of them do not overflow.
        u64::try_from(nanoseconds).unwrap_or(u64::MAX).min(i64::MAX as u64)
    }
}

/// Nanoseconds of a clock that all processes share and none can set. It begins when the machine
/// starts, and until it has run for as long as the capacity takes, the bucket is not full.
pub(super) fn now() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).or_error(|| "clock_gettime")?;
    let (seconds, nanoseconds) = (time.tv_sec() as u64, time.tv_nsec() as u64);
    Ok(seconds.saturating_mul(SECOND).saturating_add(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::deaths::{self, Child};
    use std::sync::atomic::Ordering;

    const RATE: Rate =
        Rate { per_second: NonZeroU64::new(1000).unwrap(), capacity: 500, owed: 10_000 };
    /// A time, and a second.
    const T: u64 = 1 << 40;
    const S: u64 = SECOND;

    impl TokenBucket {
        fn at(&self, now: u64, tokens: u64, rate: Rate) -> Duration {
            take_at(self.word(), now, tokens, rate)
        }
    }

    fn bucket() -> TokenBucket {
        TokenBucket::new().unwrap()
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_full_bucket_has_its_capacity_and_then_the_rate() {
        let bucket = bucket();
        assert_eq!(bucket.at(T, 500, RATE), ms(0));
        assert_eq!(bucket.at(T, 100, RATE), ms(100));
        assert_eq!(bucket.at(T, 100, RATE), ms(200));
        assert_eq!(bucket.at(T + S / 10, 100, RATE), ms(200));
        // Left alone for long, it is as full as at first.
        assert_eq!(bucket.at(T + 100 * S, 400, RATE), ms(0));
        assert_eq!(bucket.at(T + 100 * S, 101, RATE), ms(1));
    }

    #[test]
    fn more_than_the_capacity_is_waited_for() {
        assert_eq!(bucket().at(T, 2500, RATE), ms(2000));
        assert_eq!(TokenBucket::private().at(T, 2500, RATE), ms(2000));
    }

    #[test]
    fn what_is_given_back_others_need_not_wait_for() {
        let bucket = bucket();
        bucket.at(T, 1500, RATE);
        bucket.give_back(1000, RATE);
        assert_eq!(bucket.at(T, 1, RATE), ms(1));
        bucket.give_back(u64::MAX, RATE);
        assert_eq!(bucket.at(T, 500, RATE), ms(0));
    }

    #[test]
    fn tokens_that_would_have_to_be_waited_for_are_not_taken() {
        let bucket = bucket();
        let take = |now, tokens| try_take_at(bucket.word(), now, tokens, RATE);
        assert!(!take(T, 501), "more than the capacity");
        assert!(take(T, 400) && !take(T, 101) && take(T, 100) && !take(T, 1));
        assert!(take(T + S / 10, 100) && !take(T + S / 10, 1));
        // What others wait for comes first.
        assert_eq!(bucket.at(T + S / 10, 200, RATE), ms(200));
        assert!(!take(T + S / 5, 1) && take(T + S / 2, 200));
        assert!(TokenBucket::private().try_take(500, RATE).unwrap());
    }

    #[test]
    fn another_rate_holds_from_the_next_taking_on() {
        let bucket = bucket();
        bucket.at(T, 1500, RATE);
        let faster = Rate { per_second: NonZeroU64::new(1_000_000).unwrap(), ..RATE };
        // What is owed is a time, and no longer than the new rate takes for the tokens.
        assert_eq!(bucket.at(T, 1000, faster), ms(11));
        assert_eq!(bucket.at(T, 1000, RATE), ms(1011));
    }

    /// Whatever a hostile process writes, and whenever.
    #[test]
    fn nobody_waits_for_longer_than_the_limit_and_nothing_overflows() {
        for word in [0, 1, T, T + S, u64::MAX - 1, u64::MAX, 1 << 63] {
            let bucket = bucket();
            bucket.scribble(word);
            let waits = bucket.at(T, 100, RATE);
            assert!(waits <= ms(10_100), "{word:#x}: {waits:?}");
            let extreme = Rate { per_second: NonZeroU64::MIN, capacity: u64::MAX, owed: u64::MAX };
            bucket.at(T, u64::MAX, extreme);
            bucket.at(0, u64::MAX, extreme);
            bucket.at(u64::MAX, u64::MAX, extreme);
            bucket.give_back(u64::MAX, extreme);
            assert!(bucket.at(T, 100, RATE) <= ms(10_100), "{word:#x}");
        }
    }

    #[test]
    fn processes_share_the_rate_and_lose_nothing() {
        const EACH: u64 = 50_000;
        let bucket = bucket();
        let rate = Rate { owed: u64::MAX, ..RATE };
        let take = || (0..EACH).for_each(|_| _ = bucket.at(T, 1, rate));
        let others: Vec<_> = (0..4).map(|_| Child::new(take)).collect();
        std::thread::scope(|scope| {
            scope.spawn(take);
            scope.spawn(take);
        });
        others.into_iter().for_each(Child::join);
        assert_eq!(bucket.at(T, 0, rate), ms(6 * EACH - 500));
    }

    #[test]
    fn the_clock_is_that_of_all_processes() {
        let bucket = bucket();
        let taken = Child::new(|| drop(bucket.take(1_000_500, RATE)));
        taken.join();
        let waits = bucket.take(0, RATE).unwrap();
        // The other owes as much as may be owed.
        assert!(waits > ms(0) && waits <= ms(10_000), "{waits:?}");
    }

    #[test]
    fn a_process_that_dies_at_any_step_has_taken_all_or_nothing() {
        deaths::alone(
            "shared::bucket::tests::a_process_that_dies_at_any_step_has_taken_all_or_nothing",
            || {
                let check = |bucket: TokenBucket, how: &str| {
                    let word = bucket.word().load(Ordering::SeqCst);
                    let waits = bucket.at(T, 500, RATE);
                    assert!(waits == ms(0) || waits == ms(100), "{how}: {word:#x} {waits:?}");
                };
                let take = |bucket: &TokenBucket| _ = bucket.at(T, 100, RATE);
                deaths::at_every_step(bucket, take, check);
                let take = |bucket: &TokenBucket| _ = try_take_at(bucket.word(), T, 100, RATE);
                deaths::at_every_step(bucket, take, check);
            },
        );
    }
}
