//! Which bytes of a read have come, so that none comes twice and none is missing in the end.

#![forbid(unsafe_code)]

use nbdkit_api::Result;

use super::haggle::violation;

/// Chunks of a read may come in any order; most servers keep to the order of offsets, and
/// neighbours become one range. A server that sends more holes between what it has sent is not
/// waited for.
const MAX_RANGES: usize = 64 * 1024;

/// Ranges of bytes, in ascending order, none touching the next.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    ranges: Vec<(u64, u64)>,
    total: u64,
}

impl Coverage {
    /// Bytes of all ranges.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn clear(&mut self) {
        self.ranges.clear();
        self.total = 0;
    }

    /// Adds `length` bytes from `start`. The caller has checked that they lie in the request.
    ///
    /// # Errors
    /// Some of them have been added already; there are too many ranges.
    pub(super) fn add(&mut self, start: u64, length: u64) -> Result<()> {
        let end = start + length;
        let at = match self.ranges.last() {
            Some((_, last)) if start < *last => {
                self.ranges.partition_point(|(_, range_end)| *range_end <= start)
            }
            _ => self.ranges.len(),
        };
        // The ranges in front of `at` end at or before `start`.
        if self.ranges.get(at).is_some_and(|(next, _)| *next < end) {
            return Err(violation("reply to a read has bytes twice"));
        }
        self.total += length;
        let joins_next = self.ranges.get(at).is_some_and(|(next, _)| *next == end);
        let before = at.checked_sub(1).filter(|before| self.ranges[*before].1 == start);
        match (before, joins_next) {
            (Some(before), true) => {
                self.ranges[before].1 = self.ranges[at].1;
                self.ranges.remove(at);
            }
            (Some(before), false) => self.ranges[before].1 = end,
            (None, true) => self.ranges[at].0 = start,
            (None, false) if self.ranges.len() >= MAX_RANGES => {
                return Err(violation("reply to a read is in too many pieces"));
            }
            (None, false) => self.ranges.insert(at, (start, end)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_become_one_range() {
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]] {
            let mut coverage = Coverage::default();
            for piece in order {
                coverage.add(piece * 10, 10).unwrap();
            }
            assert_eq!((coverage.total(), coverage.ranges.as_slice()), (40, &[(0, 40)][..]));
        }
    }

    #[test]
    fn no_byte_comes_twice() {
        let mut coverage = Coverage::default();
        coverage.add(10, 10).unwrap();
        coverage.add(30, 10).unwrap();
        for (start, length) in [(10, 1), (19, 1), (5, 6), (0, 100), (39, 1), (15, 20), (20, 11)] {
            assert!(coverage.add(start, length).is_err(), "{start} {length}");
        }
        coverage.add(20, 10).unwrap();
        assert_eq!(coverage.ranges, [(10, 40)]);
    }

    /// Against a map with an entry for each byte.
    #[test]
    fn random_pieces_are_counted_as_by_a_map_of_bytes() {
        let mut state = 1_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..200 {
            let (mut coverage, mut map) = (Coverage::default(), [false; 64]);
            for _ in 0..40 {
                let start = random(64);
                let length = 1 + random(64 - start);
                let bytes = &mut map[start as usize..(start + length) as usize];
                let twice = bytes.contains(&true);
                assert_eq!(coverage.add(start, length).is_err(), twice);
                if !twice {
                    bytes.fill(true);
                }
                let count = map.iter().filter(|byte| **byte).count();
                assert_eq!(coverage.total(), count as u64);
            }
        }
    }
}
