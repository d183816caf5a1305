//! Disks whose 8-byte words are a function of their offset: the pattern, random and sparse-random
//! plugins.

/// Fills `buf` with the bytes from `offset` on of the disk on which the 8 bytes at
/// each multiple of 8 are `word` of that offset. The disk ends before 2^63.
pub(crate) fn fill(buf: &mut [u8], offset: u64, word: impl Fn(u64) -> [u8; 8]) {
    let skip = (offset % 8) as usize;
    let (head, rest) = buf.split_at_mut(head_length(offset).min(buf.len()));
    head.copy_from_slice(&word(offset - offset % 8)[skip..][..head.len()]);
    let mut at = offset + head.len() as u64;
    let (whole, tail) = rest.as_chunks_mut::<8>();
    for chunk in whole {
        *chunk = word(at);
        at += 8;
    }
    if !tail.is_empty() {
        tail.copy_from_slice(&word(at)[..tail.len()]);
    }
}

/// Whether `buf` holds what [`fill`] would have put there.
pub(crate) fn matches(buf: &[u8], offset: u64, word: impl Fn(u64) -> [u8; 8]) -> bool {
    let skip = (offset % 8) as usize;
    let (head, rest) = buf.split_at(head_length(offset).min(buf.len()));
    let start = offset + head.len() as u64;
    let (whole, tail) = rest.as_chunks::<8>();
    let end = start + 8 * whole.len() as u64;
    *head == word(offset - offset % 8)[skip..][..head.len()]
        && whole.iter().zip((start..).step_by(8)).all(|(chunk, at)| *chunk == word(at))
        && (tail.is_empty() || *tail == word(end)[..tail.len()])
}

/// The 8 bytes at a multiple of 8: a step of SplitMix64 (Steele, Lea, Flood: "Fast splittable
/// pseudorandom number generators", 2014) whose state is made of the seed and the offset.
pub(crate) fn noise(seed: u64, offset: u64) -> [u8; 8] {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let start = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
    let step = (offset / 8).wrapping_add(1);
    mix(start.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes()
}

/// Bytes from `offset` to the next multiple of 8.
fn head_length(offset: u64) -> usize {
    ((8 - offset % 8) % 8) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_of_a_read_gives_the_same_bytes() {
        let word = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let mut whole = [0; 100];
        fill(&mut whole, 1000, word);
        for from in 0..40 {
            for to in from..60 {
                let mut part = vec![0; to - from];
                fill(&mut part, 1000 + from as u64, word);
                assert_eq!(part, whole[from..to]);
                assert!(matches(&part, 1000 + from as u64, word));
            }
        }
        whole[99] ^= 1;
        assert!(!matches(&whole, 1000, word));
    }
}
