//! Where the runs of data and of holes are. Every part of the disk can be found without those
//! before it: the disk is divided into stretches of many runs, each with random numbers of its own.

#![forbid(unsafe_code)]

use crate::words::noise;

/// Bytes of a block, all data or all hole.
pub(super) const BLOCK: u64 = 4096;
/// Pairs of a run of data and one of holes in a stretch, on average.
const PAIRS: u64 = 64;
/// More blocks than a disk has.
const MOST: u64 = 1 << 52;

/// Blocks of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The first block.
    pub(super) start: u64,
    /// The block behind the last one.
    pub(super) end: u64,
    pub(super) data: bool,
}

/// Runs of lengths from 1 to twice their average, all equally likely.
#[derive(Debug, Clone, Copy)]
pub(super) struct Runs {
    seed: u32,
    /// Average blocks of a run of data and of holes; 0 if there is none of this kind.
    data: u64,
    hole: u64,
    /// Blocks of a stretch.
    stretch: u64,
}

impl Runs {
    /// `percent`: of the disk that is data, from 0 to 100. `length`: average bytes of a run of
    /// data, which are more where holes would have to be shorter than a block.
    pub(super) fn new(seed: u32, percent: f64, length: u64) -> Runs {
        let (data, hole) = if percent <= 0.0 {
            (0, MOST)
        } else if percent >= 100.0 {
            (MOST, 0)
        } else {
            let ratio = (100.0 - percent) / percent;
            let data = (length.div_ceil(BLOCK) as f64).max(1.0 / ratio);
            // Casts of numbers that are too large give the largest.
            ((data.round() as u64).clamp(1, MOST), ((data * ratio).round() as u64).clamp(1, MOST))
        };
        Runs { seed, data, hole, stretch: (PAIRS * (data + hole)).min(MOST) }
    }

    /// The runs from the one that has `block` on, without end. Neighbours may be of one kind.
    pub(super) fn from(self, block: u64) -> impl Iterator<Item = Run> {
        let first = block / self.stretch;
        let runs = (first..).flat_map(move |number| self.of_stretch(number));
        runs.skip_while(move |run| run.end <= block)
    }

    /// The runs of a stretch.
    fn of_stretch(self, number: u64) -> impl Iterator<Item = Run> {
        let seed = u64::from(self.seed) ^ number.rotate_left(32);
        let mut drawn = 0;
        let mut draw = move |below: u64| {
            drawn += 8;
            u64::from_le_bytes(noise(seed, drawn)) % below
        };
        let start = number.saturating_mul(self.stretch);
        let end = start.saturating_add(self.stretch);
        let mut at = start;
        let mut data = draw(self.data + self.hole) < self.data;
        // Who looks at random sees a run from its middle, on average.
        let mut is_first = true;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let average = if data { self.data } else { self.hole };
            let length = if is_first { 1 + draw(average) } else { 1 + draw(2 * average - 1) };
            is_first = false;
            let run = Run { start: at, end: at.saturating_add(length).min(end), data };
            at = run.end;
            // With one kind only there is nothing to change to.
            data = if data { self.hole == 0 } else { self.data > 0 };
            Some(run)
        })
    }
}
