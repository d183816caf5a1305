//! Policy: whether the reader tries to answer a read from memory before it hands it over.
//!
//! An attempt that finds nothing is not free: the kernel looks for the page, allocates one and
//! sends the disk a request, all on the one thread that reads requests, and a thread of the pool
//! then goes the same way again. So a client whose last reads were not in memory has the next ones
//! begun by the pool, whose threads share that work; an attempt now and then notices when that
//! changes.

#![forbid(unsafe_code)]

use super::pin::{self, Pin};
use super::poll_backoff::PollBackoff;

/// Attempts in vain in a row from which on attempts become rare. Of reads that find half of their
/// data in memory, one in 65 000 begins such a row.
const MISSES: u32 = 16;
/// The most reads between two attempts: what has come into memory since is handed over for no
/// longer.
const SKIPPED: u32 = 31;

/// Which reads are tried, of one connection.
pub(super) fn read_attempts() -> PollBackoff {
    of(Pin::of(pin::ATTEMPTS))
}

fn of(pin: Option<Pin>) -> PollBackoff {
    PollBackoff::after(pin, MISSES, SKIPPED)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many reads are tried, if attempts find something or not.
    fn tried(attempts: &mut PollBackoff, reads: usize, found: bool) -> usize {
        let read = |_: &usize| attempts.is_due().then(|| attempts.record(found)).is_some();
        (0..reads).filter(read).count()
    }

    #[test]
    fn attempts_in_vain_become_rare_and_one_that_is_not_makes_them_usual_again() {
        let mut attempts = of(None);
        assert_eq!(tried(&mut attempts, 100, true), 100);
        assert_eq!(tried(&mut attempts, 16, false), 16);
        assert_eq!(tried(&mut attempts, 3 + 5 + 9 + 17, false), 4);
        assert_eq!(tried(&mut attempts, 10 * 32, false), 10);
        assert_eq!(tried(&mut attempts, 31, true), 0);
        assert_eq!(tried(&mut attempts, 100, true), 100);
        assert_eq!(tried(&mut attempts, 100, false), 21, "a new row");
    }

    #[test]
    fn a_client_that_finds_one_read_in_eight_in_memory_has_all_of_them_tried() {
        let mut attempts = of(None);
        for read in 0..10_000 {
            assert!(attempts.is_due());
            attempts.record(read % 8 == 0);
        }
    }

    #[test]
    fn a_pinned_policy_does_not_look_at_what_attempts_find() {
        for (pin, all) in [(Pin::Always, 50), (Pin::Never, 0)] {
            let mut attempts = of(Some(pin));
            assert_eq!(tried(&mut attempts, 50, false), all);
        }
    }
}
