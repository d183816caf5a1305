//! Policy: how long the polls before sleep may last.
//!
//! How soon a client sends its next request depends on how long it takes to wake it: a few
//! microseconds on one machine, fifty on a virtual one whose host takes idle processors away. Where
//! short polls are in vain although requests come soon, longer ones are tried. They stay if the
//! client's requests come sooner so than if the worker slept, by what is worth a processor's time:
//! a client that is slow for a reason of its own is not made quicker by polling.

#![forbid(unsafe_code)]

use std::time::Duration;

/// The limit to begin with.
const SHORT: Duration = Duration::from_micros(50);
/// Gaps in a row that are measured before it is decided.
const SAMPLES: u32 = 8;
/// A longer poll lasts so many times what gaps have been.
const MARGIN: u32 = 2;
/// Longer polls stay if gaps become shorter than this fraction of what they were.
const WORTH: (u32, u32) = (2, 3);
/// Gaps that go by after longer polls were not worth it, before they are tried again.
const HELD_OFF: u32 = 4096;

/// How long polls may last on one connection. A gap is the time from a reply to the next request.
#[derive(Debug)]
pub(super) struct PollLength {
    /// The limit of short polls.
    short: Duration,
    /// The longest poll that is allowed.
    most: Duration,
    limit: Duration,
    stage: Stage,
    gaps: Gaps,
    /// Gaps that will go by before longer polls are tried.
    held_off: u32,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Short,
    /// Longer polls are tried; gaps were this long before, on average.
    Trial(Duration),
    Long,
}

impl PollLength {
    /// No longer than `most`, and short ones to begin with.
    pub(super) fn up_to(most: Duration) -> PollLength {
        PollLength::between(most.min(SHORT), most)
    }

    /// Always as long.
    pub(super) fn fixed(limit: Duration) -> PollLength {
        PollLength::between(limit, limit)
    }

    fn between(short: Duration, most: Duration) -> PollLength {
        let (stage, gaps) = (Stage::Short, Gaps::default());
        PollLength { short, most, limit: short, stage, gaps, held_off: 0 }
    }

    /// How long a poll may last now.
    #[inline]
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// Whether it would be of use to know how long a gap was in which the worker slept.
    #[inline]
    pub(super) fn may_grow(&self) -> bool {
        matches!(self.stage, Stage::Short) && self.most > self.limit
    }

    /// A poll found a request after `gap`.
    #[inline]
    pub(super) fn found(&mut self, gap: Duration) {
        let Stage::Trial(slept) = self.stage else { return };
        let Some(polled) = self.gaps.add(gap) else { return };
        if polled * WORTH.1 <= slept * WORTH.0 {
            self.stage = Stage::Long;
        } else {
            self.shorten();
            self.held_off = HELD_OFF;
        }
    }

    /// A request came after `gap`, for some of which the worker slept.
    pub(super) fn slept(&mut self, gap: Duration) {
        if !self.may_grow() {
            return;
        }
        if gap >= self.most {
            self.gaps = Gaps::default();
            return;
        }
        if self.held_off > 0 {
            self.held_off -= 1;
            return;
        }
        let Some(slept) = self.gaps.add(gap) else { return };
        self.limit = (slept * MARGIN).clamp(self.limit, self.most);
        self.stage = Stage::Trial(slept);
    }

    /// Polls are in vain, one after the other.
    pub(super) fn in_vain(&mut self) {
        if !matches!(self.stage, Stage::Short) {
            self.shorten();
        }
    }

    fn shorten(&mut self) {
        self.limit = self.short;
        self.stage = Stage::Short;
        self.gaps = Gaps::default();
    }
}

/// The mean of the next [`SAMPLES`] gaps.
#[derive(Debug, Default)]
struct Gaps {
    sum: Duration,
    count: u32,
}

impl Gaps {
    /// The mean, if this was the last one; then it begins anew.
    fn add(&mut self, gap: Duration) -> Option<Duration> {
        self.sum += gap;
        self.count += 1;
        if self.count < SAMPLES {
            return None;
        }
        let Gaps { sum, count } = std::mem::take(self);
        Some(sum / count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(200);

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// So many waits of a client whose requests come `polled` after a reply if the worker is awake
    /// then, and `slept` if it has to be woken.
    fn waits(length: &mut PollLength, number: u32, polled: Duration, slept: Duration) {
        for _ in 0..number {
            if polled <= length.limit() {
                length.found(polled);
            } else {
                length.slept(slept);
            }
        }
    }

    #[test]
    fn polls_become_longer_where_that_makes_requests_come_sooner() {
        let mut length = PollLength::up_to(MOST);
        assert_eq!(length.limit(), SHORT);
        waits(&mut length, SAMPLES, micros(60), micros(100));
        assert_eq!(length.limit(), MOST);
        waits(&mut length, 1000, micros(60), micros(100));
        assert_eq!(length.limit(), MOST);
        // Until the client pauses.
        length.in_vain();
        assert_eq!(length.limit(), SHORT);
    }

    #[test]
    fn a_client_that_is_slow_by_itself_is_tried_with_them_once_in_a_while() {
        let mut length = PollLength::up_to(MOST);
        let mut long = 0;
        for _ in 0..3 * HELD_OFF {
            long += u32::from(length.limit() > SHORT);
            waits(&mut length, 1, micros(100), micros(110));
        }
        assert!((SAMPLES..=3 * SAMPLES).contains(&long), "{long}");
    }

    #[test]
    fn gaps_that_are_too_long_do_not_count_nor_do_those_before_them() {
        let mut length = PollLength::up_to(MOST);
        for _ in 0..10 {
            waits(&mut length, SAMPLES - 1, micros(60), micros(100));
            assert_eq!(length.limit(), SHORT);
            waits(&mut length, 1, MOST, MOST);
        }
    }

    #[test]
    fn no_poll_is_longer_than_allowed_and_a_fixed_length_stays() {
        let mut length = PollLength::up_to(MOST);
        waits(&mut length, SAMPLES, micros(60), MOST - micros(1));
        assert_eq!(length.limit(), MOST);
        let mut short = PollLength::up_to(micros(20));
        assert!(!short.may_grow());
        waits(&mut short, 1000, micros(21), micros(22));
        assert_eq!(short.limit(), micros(20));
        let mut fixed = PollLength::fixed(MOST);
        fixed.in_vain();
        waits(&mut fixed, 1000, micros(201), micros(202));
        assert_eq!(fixed.limit(), MOST);
    }
}
