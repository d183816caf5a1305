//! What the tables of the cache hold: for each block of a disk where it is, for each slot of the
//! file whose it is. Any word may stand there: another worker may be hostile.

use nbdkit_api::shared::BlockState;
use nbdkit_api::{Errno, Error, Result};

/// Slots that a file can have.
pub(super) const MAX_SLOTS: u64 = 1 << 38;
/// Blocks that a disk can have.
pub(super) const MAX_BLOCKS: u64 = 1 << 50;

fn corrupt() -> Error {
    Error::new(Errno::EIO, "cache: a table is corrupt")
}

/// A slot of the file, and how often slots were filled when it was, in 24 bits: so that a reader
/// notices that it was given to another block and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) number: u64,
    pub(super) fill: u32,
}

pub(super) const FILL_MASK: u64 = (1 << 24) - 1;

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// In the layer below.
    Absent,
    /// In this slot, too.
    Clean(Slot),
    /// In this slot, and the layer below has older data.
    Dirty(Slot),
}

impl State {
    pub(super) fn slot(self) -> Option<Slot> {
        match self {
            State::Absent => None,
            State::Clean(slot) | State::Dirty(slot) => Some(slot),
        }
    }
}

const CLEAN: u64 = 1;
const DIRTY: u64 = 2;

impl BlockState for State {
    const ABSENT: State = State::Absent;

    /// The kind in the lowest two bits, then the count of fills, then the slot.
    fn encode(self) -> u64 {
        let word = |slot: Slot, kind| slot.number << 26 | u64::from(slot.fill) << 2 | kind;
        match self {
            State::Absent => 0,
            State::Clean(slot) => word(slot, CLEAN),
            State::Dirty(slot) => word(slot, DIRTY),
        }
    }

    fn decode(word: u64) -> Result<State> {
        let slot = Slot { number: word >> 26, fill: (word >> 2 & FILL_MASK) as u32 };
        match word & 3 {
            0 if word == 0 => Ok(State::Absent),
            CLEAN => Ok(State::Clean(slot)),
            DIRTY => Ok(State::Dirty(slot)),
            _ => Err(corrupt()),
        }
    }
}

/// Whose a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Free,
    /// A block of the export with this number. If its state is not in this slot, the slot is being
    /// filled, or the worker that filled it was killed.
    Block {
        export: usize,
        block: u64,
    },
}

impl BlockState for Owner {
    const ABSENT: Owner = Owner::Free;

    fn encode(self) -> u64 {
        match self {
            Owner::Free => 0,
            Owner::Block { export, block } => (export as u64 + 1) << 50 | block,
        }
    }

    fn decode(word: u64) -> Result<Owner> {
        match (word >> 50).checked_sub(1) {
            Some(export) => {
                Ok(Owner::Block { export: export as usize, block: word & (MAX_BLOCKS - 1) })
            }
            None if word == 0 => Ok(Owner::Free),
            None => Err(corrupt()),
        }
    }
}

/// When a slot was last used, by the count of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Used(pub(super) u64);

impl BlockState for Used {
    const ABSENT: Used = Used(0);

    fn encode(self) -> u64 {
        self.0
    }

    fn decode(word: u64) -> Result<Used> {
        Ok(Used(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_and_nonsense_is_refused() {
        for slot in [
            Slot { number: 0, fill: 0 },
            Slot { number: MAX_SLOTS - 1, fill: FILL_MASK as u32 },
            Slot { number: 5, fill: 7 },
        ] {
            for state in [State::Absent, State::Clean(slot), State::Dirty(slot)] {
                assert_eq!(State::decode(state.encode()).unwrap(), state);
            }
        }
        for owner in [
            Owner::Free,
            Owner::Block { export: 0, block: 0 },
            Owner::Block { export: 9999, block: MAX_BLOCKS - 1 },
        ] {
            assert_eq!(Owner::decode(owner.encode()).unwrap(), owner);
        }
        State::decode(3).unwrap_err();
        State::decode(1 << 30).unwrap_err();
        Owner::decode(5).unwrap_err();
    }
}
