//! What the bytes of every export under measurement are, so that each reply can be checked: a
//! function of the offset.
//!
//! The 8-byte word at offset `o` is a hash of `o`, little-endian. Wrong data, data of another
//! offset and stale data all show.
#![forbid(unsafe_code)]

/// Bytes of each piece of [`Pattern::Pieces`].
pub(crate) const PIECE: u64 = 4 << 10;

/// The content of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Every word is a hash of its offset.
    Hashed,
    /// Every eighth word is, and the seven behind it are the same: there is something to compress.
    Repeated,
    /// Every byte is zero.
    Zero,
    /// Each so many bytes begin with [`PIECE`] bytes of [`Pattern::Hashed`]; the rest is zero, and
    /// may be a hole.
    Pieces(u64),
}

impl Pattern {
    /// The word at this offset, a multiple of 8.
    pub(crate) fn word(self, offset: u64) -> [u8; 8] {
        match self {
            Pattern::Hashed => hash(offset).to_le_bytes(),
            Pattern::Repeated => hash(offset & !63).to_le_bytes(),
            Pattern::Zero => [0; 8],
            Pattern::Pieces(step) if offset % step >= PIECE => [0; 8],
            Pattern::Pieces(_) => hash(offset).to_le_bytes(),
        }
    }

    /// Whether there is nothing but zeroes from `offset` on, for `length` bytes.
    pub(crate) fn is_zero(self, offset: u64, length: u64) -> bool {
        match self {
            Pattern::Zero => true,
            Pattern::Pieces(step) => {
                let at = offset % step;
                at >= PIECE && length <= step - at
            }
            Pattern::Hashed | Pattern::Repeated => false,
        }
    }

    /// Fills `bytes`, which lie at `offset`, a multiple of 8.
    pub(crate) fn fill(self, offset: u64, bytes: &mut [u8]) {
        for (word, at) in bytes.chunks_mut(8).zip((offset..).step_by(8)) {
            word.copy_from_slice(&self.word(at)[..word.len()]);
        }
    }

    /// Whether all of `bytes` are what lies at `offset`, which need not be aligned.
    pub(crate) fn holds(self, offset: u64, bytes: &[u8]) -> bool {
        let lead = usize::try_from(offset.wrapping_neg() % 8).unwrap_or(0).min(bytes.len());
        let (head, body) = bytes.split_at(lead);
        self.holds_in_word(offset, head)
            && body
                .chunks(8)
                .zip((offset + lead as u64..).step_by(8))
                .all(|(word, at)| self.holds_in_word(at, word))
    }

    /// As [`holds`](Self::holds), for the first and the last few bytes only: cheap enough for every
    /// reply of a timed run.
    pub(crate) fn holds_at_the_ends(self, offset: u64, bytes: &[u8]) -> bool {
        let length = bytes.len();
        if length <= 16 {
            return self.holds(offset, bytes);
        }
        let tail = offset + (length - 8) as u64;
        self.holds(offset, &bytes[..8]) && self.holds(tail, &bytes[length - 8..])
    }

    /// Compares a piece that does not cross a multiple of 8.
    fn holds_in_word(self, offset: u64, piece: &[u8]) -> bool {
        let at = usize::try_from(offset % 8).unwrap_or(0);
        let word = self.word(offset - offset % 8);
        word.get(at..at + piece.len()) == Some(piece)
    }
}

/// A permutation of 64-bit words whose output looks random: the finalizer of splitmix64.
pub(crate) fn hash(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A cheap source of offsets and sizes, the same in every run.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A sequence of its own for every seed.
    pub(crate) fn new(seed: u64) -> Random {
        Random(hash(seed))
    }

    /// A number below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        // The high half of a product, so that no division is in the way.
        ((u128::from(hash(self.0)) * u128::from(limit)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_holds_at_its_offset_only() {
        let mut block = [0; 4096];
        Pattern::Hashed.fill(8192, &mut block);
        assert!(Pattern::Hashed.holds(8192, &block));
        assert!(!Pattern::Hashed.holds(4096, &block));
        assert!(!Pattern::Hashed.holds_at_the_ends(4096, &block));
    }

    #[test]
    fn pieces_hold_wherever_they_are_cut() {
        let mut block = [0; 64];
        Pattern::Hashed.fill(0, &mut block);
        for start in 0..64 {
            for end in start..=64 {
                assert!(Pattern::Hashed.holds(start as u64, &block[start..end]));
                assert!(Pattern::Hashed.holds_at_the_ends(start as u64, &block[start..end]));
            }
        }
    }

    #[test]
    fn one_wrong_byte_anywhere_is_found() {
        let mut block = [0; 128];
        Pattern::Hashed.fill(0, &mut block);
        for at in 0..128 {
            let mut wrong = block;
            wrong[at] ^= 1;
            assert!(!Pattern::Hashed.holds(0, &wrong));
        }
    }

    #[test]
    fn zeroes_are_not_the_hashed_pattern() {
        assert!(Pattern::Zero.holds(3, &[0; 100]));
        assert!(!Pattern::Hashed.holds(0, &[0; 8]));
        assert!(!Pattern::Zero.holds(0, &[0, 0, 1]));
    }

    #[test]
    fn random_numbers_stay_below_their_limit_and_reach_both_halves() {
        let mut random = Random::new(1);
        let numbers: Vec<u64> = (0..1000).map(|_| random.below(10)).collect();
        assert!(numbers.iter().all(|number| *number < 10));
        assert!(numbers.contains(&0) && numbers.contains(&9));
        // The blocks of an export of 8 EiB.
        let far: Vec<u64> = (0..1000).map(|_| random.below(1 << 51)).collect();
        assert!(far.iter().any(|number| *number > 1 << 50) && far.iter().all(|n| *n < 1 << 51));
    }

    #[test]
    fn only_what_lies_between_two_pieces_is_a_hole() {
        let pattern = Pattern::Pieces(16384);
        assert!(pattern.is_zero(4096, 12288) && pattern.is_zero(16384 + 8192, 4096));
        assert!(!pattern.is_zero(4096, 12289) && !pattern.is_zero(16384, 1));
        assert!(pattern.holds(4096, &[0; 4096]) && !pattern.holds(16384, &[0; 4096]));
    }
}
