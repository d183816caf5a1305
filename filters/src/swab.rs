//! nbdkit-swab-filter(1): swaps the bytes of each word of the disk.

use nbdkit_api::{
    BlockSize, DataPath, Direction, Errno, Error, Extents, Filter, Flags, Next, NextConfig, Open,
    OpenLayer, Result, Slot, Value,
};

/// The filter: the bytes of a word, 1, 2, 4 or 8.
#[derive(Debug, Clone, Copy)]
pub struct Swab {
    word: u32,
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
        self.word = match value.integer::<i32>(key)? {
            8 => 1,
            16 => 2,
            32 => 4,
            64 => 8,
            _ => return Err(Error::msg("invalid swab-bits, must be 8, 16, 32 or 64")),
        };
        Ok(())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(*self))
    }
}

impl Swab {
    /// # Errors
    /// EINVAL: the request does not consist of whole words.
    fn check(self, count: u64, offset: u64) -> Result<()> {
        if (count | offset).is_multiple_of(self.word.into()) {
            Ok(())
        } else {
            Err(Error::new(Errno::EINVAL, "swab: requests to this filter must be aligned"))
        }
    }

    /// Swaps the bytes of whole words.
    fn swap(self, words: &mut [u8]) {
        match self.word {
            2 => words.as_chunks_mut::<2>().0.iter_mut().for_each(|word| word.reverse()),
            4 => words.as_chunks_mut::<4>().0.iter_mut().for_each(|word| word.reverse()),
            8 => words.as_chunks_mut::<8>().0.iter_mut().for_each(|word| word.reverse()),
            _ => {}
        }
    }
}

impl OpenLayer for Swab {
    /// Whole words only.
    fn size(&self, next: &Next) -> Result<u64> {
        let size = next.size()?;
        Ok(size - size % u64::from(self.word))
    }

    fn block_size(&self, next: &Next) -> Result<BlockSize> {
        let below = next.block_size()?;
        if self.word == 1 {
            Ok(below)
        } else if below.is_unspecified() {
            Ok(BlockSize { minimum: self.word, preferred: 512, maximum: u32::MAX })
        } else {
            Ok(BlockSize { minimum: below.minimum.max(self.word), ..below })
        }
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(buf.len() as u64, offset)?;
        next.pread(buf, offset)?;
        self.swap(buf);
        Ok(())
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.check(buf.len() as u64, offset)?;
        let mut swapped = buf.to_vec();
        self.swap(&mut swapped);
        next.pwrite(&swapped, offset, flags)
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
        next.extents_aligned(count, offset, flags, self.word, extents)
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
    fn words_are_swapped_in_both_directions() {
        for (bits, expected) in [
            ("8", [0, 1, 2, 3, 4, 5, 6, 7]),
            ("16", [1, 0, 3, 2, 5, 4, 7, 6]),
            ("32", [3, 2, 1, 0, 7, 6, 5, 4]),
            ("64", [7, 6, 5, 4, 3, 2, 1, 0]),
        ] {
            let disk = Arc::new(Disk::pattern(1007));
            let backend = testing::backend(&disk, &["swab"], &[("swab-bits", bits)]);
            assert_eq!(testing::read(&backend, 8, 0), expected, "{bits}");
            let mut quick = [0; 8];
            backend.try_pread(&mut quick, 0).unwrap().unwrap();
            assert_eq!(quick, expected, "{bits}");
            backend.pwrite(&[0, 1, 2, 3, 4, 5, 6, 7], 8, Flags::FUA).unwrap();
            assert_eq!(disk.data.lock().unwrap()[8..16], expected, "{bits}");
        }
    }

    #[test]
    fn only_whole_words_are_served() {
        let disk = Arc::new(Disk::new((1 << 16) + 7));
        let backend = testing::backend(&disk, &["swab"], &[("swab-bits", "32")]);
        assert_eq!(backend.size().unwrap(), (1 << 16) + 4);
        assert_eq!(backend.block_size().unwrap().minimum, 4);
        let none = Flags::empty();
        for result in [
            backend.pread(&mut [0; 3], 0),
            backend.pwrite(&[0; 4], 2, none),
            backend.zero(4, 1, none),
            backend.trim(5, 0, none),
            backend.cache(2, 0),
        ] {
            assert_eq!(result.unwrap_err().errno(), Errno::EINVAL);
        }
        assert!(backend.try_pread(&mut [0; 4], 2).unwrap().is_err());
        testing::config_error("swab", &[("swab-bits", "24")]);
    }
}
