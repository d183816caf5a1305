//! nbdkit-swab-filter(1): swaps the bytes of each word.

use nbdkit_api::{
    BlockSize, DataPath, Direction, Errno, Error, Extents, Filter, Flags, Next, NextConfig, Open,
    OpenLayer, Result, Slot, Value,
};

/// Piece in which a write is swapped, bytes: a multiple of every word.
const PIECE: usize = 64 << 10;

/// The filter: the length of a word.
#[derive(Debug, Clone, Copy)]
pub struct Swab {
    /// Bytes: 1, 2, 4 or 8.
    word: u64,
}

impl Default for Swab {
    fn default() -> Swab {
        Swab { word: 2 }
    }
}

impl Filter for Swab {
    fn name(&self) -> &str {
        "swab"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit byte-swapping filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("swab-bits=8|16|32|64       Size of byte swap (default 16).")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        if key != "swab-bits" {
            return next.config(key, value);
        }
        self.word = match value.integer::<u32>(key)? {
            bits @ (8 | 16 | 32 | 64) => u64::from(bits / 8),
            _ => return Err(Error::msg("invalid swab-bits, must be 8, 16, 32 or 64")),
        };
        Ok(())
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(*self))
    }
}

impl Swab {
    fn swap(self, bytes: &mut [u8]) {
        bytes.chunks_exact_mut(self.word as usize).for_each(<[u8]>::reverse);
    }

    /// Clients see the minimum block size; one that does not keep to it gets an error.
    fn check(self, count: u64, offset: u64) -> Result<()> {
        if (count | offset).is_multiple_of(self.word) {
            return Ok(());
        }
        Err(Error::new(Errno::EINVAL, "swab: requests to this filter must be aligned"))
    }
}

impl OpenLayer for Swab {
    fn size(&self, next: &Next) -> Result<u64> {
        let size = next.size()?;
        Ok(size - size % self.word)
    }

    fn block_size(&self, next: &Next) -> Result<BlockSize> {
        let below = next.block_size()?;
        let word = self.word as u32;
        Ok(if below.is_unspecified() {
            BlockSize { minimum: word, preferred: 512, maximum: u32::MAX }
        } else {
            BlockSize { minimum: below.minimum.max(word), ..below }
        })
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(buf.len() as u64, offset)?;
        next.pread(buf, offset)?;
        self.swap(buf);
        Ok(())
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.check(buf.len() as u64, offset)?;
        if self.word == 1 {
            return next.pwrite(buf, offset, flags);
        }
        let mut swapped = vec![0; buf.len().min(PIECE)];
        for (piece, at) in buf.chunks(PIECE).zip((offset..).step_by(PIECE)) {
            let swapped = &mut swapped[..piece.len()];
            swapped.copy_from_slice(piece);
            self.swap(swapped);
            next.pwrite(swapped, at, flags)?;
        }
        Ok(())
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.check(count, offset)?;
        next.trim(count, offset, flags)
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.check(count, offset)?;
        next.zero(count, offset, flags)
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        self.check(count, offset)?;
        // A word is in one extent.
        next.extents_aligned(count, offset, flags, self.word as u32, extents)
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        self.check(count, offset)?;
        next.cache(count, offset)
    }

    fn data_path(&self, _: Direction) -> DataPath {
        if self.word == 1 { DataPath::Transparent } else { DataPath::Opaque }
    }

    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        if let Err(error) = self.check(buf.len() as u64, offset) {
            return Some(Err(error));
        }
        let result = next.try_pread(buf, offset)?;
        self.swap(buf);
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::sync::Arc;

    #[test]
    fn words_of_each_length_are_swapped_both_ways() {
        for (bits, expected) in
            [("8", *b"01234567"), ("16", *b"10325476"), ("32", *b"32107654"), ("64", *b"76543210")]
        {
            let disk = Arc::new(Disk::new(20));
            let backend = testing::backend(&disk, &["swab"], &[("swab-bits", bits)]);
            backend.pwrite(b"01234567", 8, Flags::empty()).unwrap();
            assert_eq!(disk.data.lock().unwrap()[8..16], expected, "{bits}");
            assert_eq!(testing::read(&backend, 8, 8), b"01234567");
        }
    }

    #[test]
    fn a_long_write_is_swapped_as_a_short_one() {
        let disk = Arc::new(Disk::new(1 << 20));
        let backend = testing::backend(&disk, &["swab"], &[("swab-bits", "64")]);
        let bytes: Vec<u8> = (0..200_000).map(|i| (i % 251) as u8).collect();
        backend.pwrite(&bytes, 8, Flags::FUA).unwrap();
        assert_eq!(testing::read(&backend, bytes.len(), 8), bytes);
        let mut swapped = bytes.clone();
        swapped.chunks_exact_mut(8).for_each(<[u8]>::reverse);
        assert_eq!(disk.data.lock().unwrap()[8..][..swapped.len()], swapped);
    }

    #[test]
    fn what_is_no_whole_word_is_cut_or_refused() {
        let disk = Arc::new(Disk::new(1007));
        let backend = testing::backend(&disk, &["swab"], &[("swab-bits", "32")]);
        assert_eq!(backend.size().unwrap(), 1004);
        let refused = [
            backend.pread(&mut [0; 4], 2),
            backend.pread(&mut [0; 3], 4),
            backend.pwrite(&[0; 4], 1, Flags::empty()),
            backend.trim(2, 0, Flags::empty()),
            backend.zero(4, 2, Flags::empty()),
            backend.cache(4, 3),
        ];
        for result in refused {
            assert_eq!(result.unwrap_err().errno(), Errno::EINVAL);
        }
        assert!(testing::config_error("swab", &[("swab-bits", "12")]).contains("8, 16, 32 or 64"));
    }
}
