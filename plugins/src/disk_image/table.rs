//! A table of blocks: an entry for each block of the disk, in order.

use nbdkit_api::{Errno, Error, Result};

/// Entries that are looked at together: those of a table of VMDK.
const ENTRIES: usize = 512;

/// What an entry says of its block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It is zeroes, which are nowhere.
    #[default]
    Zeroes,
    /// Its first byte is at this offset of the image.
    At(u64),
    /// Nonsense.
    Bad,
}

/// The error of a block, or of a table, that the image does not have.
pub(crate) fn outside() -> Error {
    Error::new(Errno::EIO, "a block lies outside of the image")
}

/// Where the byte `at` of a disk of blocks is, and how many from there on are in one piece with it,
/// at most `count`, which is not 0. Blocks have `block` bytes; the image has `image` bytes.
/// `read` reads as many entries as it is given, from the one of that number.
///
/// # Errors
/// EIO: the entry is bad, or what it says is not in the image. Those of `read`.
pub(crate) fn find(
    (at, count): (u64, u64),
    block: u64,
    image: u64,
    read: impl FnOnce(u64, &mut [Entry]) -> Result<()>,
) -> Result<(Option<u64>, u64)> {
    let (first, within) = (at / block, at % block);
    let last = (at + count - 1) / block;
    let blocks = usize::try_from(last - first + 1).map_or(ENTRIES, |all| all.min(ENTRIES));
    let mut entries = vec![Entry::Zeroes; blocks];
    read(first, &mut entries)?;
    let follows = |entry: &Entry, number: u64| match (entries[0], *entry) {
        (Entry::Zeroes, Entry::Zeroes) => true,
        (Entry::At(begin), Entry::At(at)) => begin.checked_add(number * block) == Some(at),
        _ => false,
    };
    let run = (0..).zip(&entries).take_while(|(number, entry)| follows(entry, *number)).count();
    let count = (run as u64 * block).saturating_sub(within).min(count);
    match entries[0] {
        Entry::Zeroes => Ok((None, count)),
        Entry::At(begin) => {
            let end = begin.checked_add(within).and_then(|begin| begin.checked_add(count));
            if end.is_none_or(|end| end > image) {
                return Err(outside());
            }
            Ok((Some(begin + within), count))
        }
        Entry::Bad => Err(Error::new(Errno::EIO, "an entry of the image's table makes no sense")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Entry::{At, Bad, Zeroes};

    const TABLE: [Entry; 7] = [Zeroes, Zeroes, At(100), At(110), At(50), Bad, At(u64::MAX)];

    fn look(at: u64, count: u64) -> Result<(Option<u64>, u64)> {
        find((at, count), 10, 120, |first, entries| {
            entries.copy_from_slice(&TABLE[first as usize..][..entries.len()]);
            Ok(())
        })
    }

    #[test]
    fn blocks_that_are_next_to_each_other_are_one_piece() {
        assert_eq!(look(0, 50).unwrap(), (None, 20));
        assert_eq!(look(13, 2).unwrap(), (None, 2));
        assert_eq!(look(21, 30).unwrap(), (Some(101), 19));
        assert_eq!(look(29, 1).unwrap(), (Some(109), 1));
        assert_eq!(look(40, 30).unwrap(), (Some(50), 10));
    }

    #[test]
    fn entries_that_are_bad_or_outside_fail_only_who_needs_them() {
        for at in [50, 60] {
            assert_eq!(look(at, 1).unwrap_err().errno(), Errno::EIO);
        }
        let small = find((0, 10), 10, 105, |_, entries| {
            entries[0] = At(100);
            Ok(())
        });
        assert_eq!(small.unwrap_err().errno(), Errno::EIO);
    }
}
