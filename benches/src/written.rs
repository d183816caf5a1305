//! What a write workload has written, so that all of it can be read back and compared.
//!
//! A block is its offset, a template and the number of the write, so that making it costs the
//! client next to nothing while a lost, torn, stale or misplaced write is still found.
#![forbid(unsafe_code)]

use std::io::IoSlice;

use crate::failure::Failure;
use crate::pattern::{Pattern, hash};
use crate::replies::Replies;

/// Different fillings, so that two writes of one block rarely share one.
const TEMPLATES: u64 = 7;

/// A block on its way: what differs from its template.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    first: [u8; 8],
    last: [u8; 8],
    template: usize,
}

/// The last write of every block.
#[derive(Debug)]
pub(crate) struct Written {
    block: usize,
    templates: Vec<Vec<u8>>,
    /// By block: the number of the last write, zero if there was none.
    last: Vec<u64>,
    writes: u64,
}

impl Written {
    /// For an export of so many blocks of so many bytes.
    pub(crate) fn new(block: u32, blocks: u64) -> Written {
        let block = usize::try_from(block).unwrap_or(0);
        let count = usize::try_from(blocks).unwrap_or(0);
        let template = |number| {
            let mut bytes = vec![0; block];
            Pattern::Hashed.fill(hash(number) & !7 & (u64::MAX >> 8), &mut bytes);
            bytes
        };
        let templates =
            if count == 0 { Vec::new() } else { (0..TEMPLATES).map(template).collect() };
        Written { block, templates, last: vec![0; count], writes: 0 }
    }

    /// How many blocks the export has.
    pub(crate) fn blocks(&self) -> u64 {
        self.last.len() as u64
    }

    /// Numbers a write of the block at `offset`.
    pub(crate) fn stamp(&mut self, offset: u64) -> Stamp {
        self.writes += 1;
        let number = self.writes;
        if let Some(last) = self.last.get_mut(index(offset, self.block)) {
            *last = number;
        }
        stamp_of(offset, number)
    }

    /// The block as it goes over the wire.
    pub(crate) fn slices<'a>(&'a self, stamp: &'a Stamp) -> [IoSlice<'a>; 3] {
        let middle = &self.templates[stamp.template][8..self.block - 8];
        [IoSlice::new(&stamp.first), IoSlice::new(middle), IoSlice::new(&stamp.last)]
    }

    /// Compares blocks that were read back with what was written last.
    pub(crate) fn check(&self, slots: &[usize], replies: &Replies) -> Result<(), Failure> {
        for slot in slots {
            let slot = &replies.slots[*slot];
            let number = self.last.get(index(slot.offset, self.block)).copied().unwrap_or(0);
            if number == 0 {
                continue;
            }
            let stamp = stamp_of(slot.offset, number);
            let right = slot.buffer.len() == self.block
                && slot.buffer.starts_with(&stamp.first)
                && slot.buffer.ends_with(&stamp.last)
                && slot.buffer[8..self.block - 8]
                    == self.templates[stamp.template][8..self.block - 8];
            if !right {
                return Err(Failure::Wrong(format!(
                    "write: the block at {} is not what was written last",
                    slot.offset
                )));
            }
        }
        Ok(())
    }
}

fn stamp_of(offset: u64, number: u64) -> Stamp {
    let template = usize::try_from(number % TEMPLATES).unwrap_or(0);
    Stamp { first: hash(offset).to_le_bytes(), last: number.to_le_bytes(), template }
}

fn index(offset: u64, block: usize) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX) / block.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replies::Check;

    fn read_back(written: &Written, offset: u64, bytes: Vec<u8>) -> Result<(), Failure> {
        let mut replies = Replies::new(1, Check::Keep);
        replies.slots[0].begin(offset, 512);
        replies.slots[0].buffer = bytes;
        written.check(&[0], &replies)
    }

    fn bytes_of(written: &Written, stamp: &Stamp) -> Vec<u8> {
        written.slices(stamp).iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn the_last_write_of_a_block_is_the_right_one() {
        let mut written = Written::new(512, 4);
        let first = written.stamp(512);
        let second = written.stamp(512);
        let (first, second) = (bytes_of(&written, &first), bytes_of(&written, &second));
        assert!(read_back(&written, 512, second).is_ok());
        assert!(read_back(&written, 512, first).is_err());
    }

    #[test]
    fn a_torn_or_misplaced_write_is_found() {
        let mut written = Written::new(512, 4);
        let stamp = written.stamp(0);
        let other = written.stamp(512);
        let elsewhere = bytes_of(&written, &other);
        let mut torn = bytes_of(&written, &stamp);
        torn[300] ^= 1;
        assert!(read_back(&written, 0, torn).is_err());
        assert!(read_back(&written, 0, elsewhere).is_err());
    }
}
