//! The table of an export: a word per block, in memory that all workers map, and what cow writes
//! there.

use nbdkit_api::shared::{BlockCursor, BlockState, SharedBlockMap};
use nbdkit_api::{Errno, Error, Result};

/// The table of one export: where each block is.
pub(super) type Table = SharedBlockMap<Block>;

/// For looking at several blocks in a row.
pub(super) type Cursor<'a> = BlockCursor<'a, Block>;

/// Where a block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// In the layer below.
    Absent,
    /// In this cluster of the overlay.
    Present(u64),
    /// Nowhere; it is zeroes. If it had a cluster, that is still its own, and holds no space.
    Trimmed(Option<u64>),
    /// The same, but the cluster holds space: the file system cannot punch holes.
    Unfreed(u64),
}

const PRESENT: u64 = 1;
const TRIMMED: u64 = 2;
const UNFREED: u64 = 3;

impl BlockState for Block {
    const ABSENT: Block = Block::Absent;

    /// The state in the lowest two bits, above it the cluster's number plus one.
    fn encode(self) -> u64 {
        match self {
            Block::Absent => 0,
            Block::Present(cluster) => (cluster + 1) << 2 | PRESENT,
            Block::Trimmed(cluster) => cluster.map_or(0, |c| c + 1) << 2 | TRIMMED,
            Block::Unfreed(cluster) => (cluster + 1) << 2 | UNFREED,
        }
    }

    fn decode(word: u64) -> Result<Block> {
        let cluster = (word >> 2).checked_sub(1);
        match (word & 3, cluster) {
            (0, None) => Ok(Block::Absent),
            (PRESENT, Some(cluster)) => Ok(Block::Present(cluster)),
            (TRIMMED, cluster) => Ok(Block::Trimmed(cluster)),
            (UNFREED, Some(cluster)) => Ok(Block::Unfreed(cluster)),
            _ => Err(Error::new(Errno::EIO, "cow: the table of blocks is corrupt")),
        }
    }
}

impl Block {
    /// Whether its cluster holds space.
    pub(super) fn holds_space(self) -> bool {
        match self {
            Block::Present(_) | Block::Unfreed(_) => true,
            Block::Absent | Block::Trimmed(_) => false,
        }
    }
}

/// The number of blocks of a table that hold space.
///
/// # Errors
/// EIO: it is corrupt.
pub(super) fn count(table: &Table) -> Result<u64> {
    table.present().try_fold(0, |count, block| Ok(count + u64::from(block?.1.holds_space())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdkit_api::shared::SharedBlockMaps;

    #[test]
    fn states_survive_encoding_and_nonsense_is_refused() {
        for state in [
            Block::Absent,
            Block::Present(0),
            Block::Present((1 << 62) - 2),
            Block::Trimmed(None),
            Block::Trimmed(Some(7)),
            Block::Unfreed(0),
        ] {
            assert_eq!(Block::decode(state.encode()).unwrap(), state);
        }
        for nonsense in [4, PRESENT, UNFREED, u64::MAX << 2] {
            assert!(Block::decode(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn blocks_that_hold_space_are_counted() {
        let tables = SharedBlockMaps::new("test", 1).unwrap();
        let (number, table) = tables.open::<Block>("", 1 << 40).unwrap();
        for (block, state) in [
            (1 << 39, Block::Present(5)),
            (7, Block::Unfreed(6)),
            (8, Block::Trimmed(Some(8))),
            (9, Block::Trimmed(None)),
        ] {
            table.cursor().store(block, state).unwrap();
        }
        assert_eq!(count(&tables.get(number).unwrap()).unwrap(), 2);
    }
}
