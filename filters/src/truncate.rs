//! nbdkit-truncate-filter(1): changes the size of the disk. What lies beyond the real disk reads
//! as zeroes and takes nothing but zeroes.

use nbdkit_api::{
    DataPath, Direction, Errno, Error, ExtentKind, Extents, Filter, Flags, Next, NextConfig, Open,
    OpenLayer, Result, Slot, Value,
};

/// The filter: how to compute the size, in bytes.
#[derive(Debug, Default, Clone, Copy)]
pub struct Truncate {
    truncate: Option<u64>,
    round_up: Option<u64>,
    round_down: Option<u64>,
}

impl Filter for Truncate {
    fn name(&self) -> &str {
        "truncate"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit truncate filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "truncate=<SIZE>                The new size.\n\
             round-up=<N>                   Round up to next multiple of N.\n\
             round-down=<N>                 Round down to multiple of N.",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        let multiple = || match value.size()? {
            0 => Err(Error::msg(format!("if set, the {key} parameter must be > 0"))),
            n => Ok(Some(n)),
        };
        match key {
            "truncate" => self.truncate = Some(value.size()?),
            "round-up" => self.round_up = multiple()?,
            "round-down" => self.round_down = multiple()?,
            _ => return next.config(key, value),
        }
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

impl OpenLayer for Truncate {
    /// First the absolute size, then rounding up, then rounding down.
    fn size(&self, next: &Next) -> Result<u64> {
        let mut size = self.truncate.map_or_else(|| next.size(), Ok)?;
        if let Some(n) = self.round_up {
            size = size
                .checked_next_multiple_of(n)
                .filter(|&size| size <= i64::MAX as u64)
                .ok_or_else(|| {
                    Error::new(
                        Errno::EOVERFLOW,
                        format!("cannot round size {size} up to next boundary of {n}"),
                    )
                })?;
        }
        if let Some(n) = self.round_down {
            size -= size % n;
        }
        Ok(size)
    }

    /// If the disk is larger than it really is, the end of it is known to be a hole.
    fn can_extents(&self, next: &Next) -> Result<bool> {
        Ok(self.size(next)? > next.size()? || next.can_extents()?)
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let (real, tail) = buf.split_at_mut(real(next, buf.len() as u64, offset)? as usize);
        if !real.is_empty() {
            next.pread(real, offset)?;
        }
        tail.fill(0);
        Ok(())
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let (real, tail) = buf.split_at(real(next, buf.len() as u64, offset)? as usize);
        if !is_zero(tail) {
            return Err(Error::new(
                Errno::ENOSPC,
                "truncate: write beyond end of underlying device",
            ));
        }
        if real.is_empty() { Ok(()) } else { next.pwrite(real, offset, flags) }
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        match real(next, count, offset)? {
            0 => Ok(()),
            count => next.trim(count, offset, flags),
        }
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        match real(next, count, offset)? {
            0 => Ok(()),
            count => next.zero(count, offset, flags),
        }
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        let real = real(next, count, offset)?;
        if real > 0 {
            let mut below = Extents::new(offset, offset + real);
            next.extents(real, offset, flags, &mut below)?;
            extents.add_shifted(&below, 0)?;
            if below.covered_to() < offset + real || flags.contains(Flags::REQ_ONE) {
                return Ok(());
            }
        }
        extents.add(offset + real, count - real, ExtentKind::SPARSE)
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        match real(next, count, offset)? {
            0 => Ok(()),
            count => next.cache(count, offset),
        }
    }

    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let real = match real(next, buf.len() as u64, offset) {
            Ok(real) => real as usize,
            Err(error) => return Some(Err(error)),
        };
        let (real, tail) = buf.split_at_mut(real);
        let result = if real.is_empty() { Ok(()) } else { next.try_pread(real, offset)? };
        tail.fill(0);
        Some(result)
    }

    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::PerRequest
    }

    /// What lies wholly on the real disk passes.
    fn passes(&self, next: &Next, _: Direction, count: u64, offset: u64) -> bool {
        real(next, count, offset).is_ok_and(|real| real == count)
    }
}

/// How many of `count` bytes from `offset` lie on the real disk.
fn real(next: &Next, count: u64, offset: u64) -> Result<u64> {
    Ok(count.min(next.size()?.saturating_sub(offset)))
}

fn is_zero(buf: &[u8]) -> bool {
    // Without a way out in the inner loop it becomes a few vector instructions.
    buf.chunks(4096).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::sync::Arc;

    #[test]
    fn sizes_are_cut_then_rounded_up_then_down() {
        let disk = Arc::new(Disk::new(1000));
        for (params, size) in [
            (&[][..], 1000),
            (&[("truncate", "0")], 0),
            (&[("truncate", "1M")], 1 << 20),
            (&[("round-up", "512")], 1024),
            (&[("round-down", "512")], 512),
            (&[("truncate", "100"), ("round-up", "512"), ("round-down", "64")], 512),
        ] {
            let backend = testing::backend(&disk, &["truncate"], params);
            assert_eq!(backend.size().unwrap(), size, "{params:?}");
        }
    }

    #[test]
    fn bad_sizes_say_why() {
        assert_eq!(
            testing::config_error("truncate", &[("round-up", "0")]),
            "if set, the round-up parameter must be > 0"
        );
        let disk = Arc::new(Disk::new(1000));
        let params = [("truncate", "9223372036854775807"), ("round-up", "4096")];
        let error = testing::backend(&disk, &["truncate"], &params).size().unwrap_err();
        assert_eq!(
            error.message(),
            "cannot round size 9223372036854775807 up to next boundary of 4096"
        );
    }

    #[test]
    fn the_tail_reads_as_zeroes_and_takes_only_zeroes() {
        let disk = Arc::new(Disk::pattern(1000));
        let backend = testing::backend(&disk, &["truncate"], &[("truncate", "2000")]);
        let mut expected = vec![(998 % 251) as u8, (999 % 251) as u8];
        expected.extend([0; 8]);
        assert_eq!(testing::read(&backend, 10, 998), expected);
        assert_eq!(testing::read(&backend, 10, 1990), [0; 10]);
        backend.pwrite(&[0; 10], 1000, Flags::empty()).unwrap();
        backend.pwrite(&[1, 2, 0, 0], 998, Flags::FUA).unwrap();
        for offset in [998, 1990] {
            let error = backend.pwrite(&[7; 10], offset, Flags::empty()).unwrap_err();
            assert_eq!(error.errno(), Errno::ENOSPC);
        }
        assert_eq!(testing::read(&backend, 3, 998), [1, 2, 0]);
    }

    #[test]
    fn requests_below_end_with_the_real_disk() {
        let disk = Arc::new(Disk::new(1000));
        let backend = testing::backend(&disk, &["truncate"], &[("truncate", "2000")]);
        for offset in [900, 1500] {
            backend.trim(500, offset, Flags::empty()).unwrap();
            backend.zero(500, offset, Flags::empty()).unwrap();
            backend.cache(500, offset).unwrap();
        }
        assert_eq!(disk.take_calls()[1..], ["trim 100@900", "zero 100@900", "cache 100@900"]);
    }

    #[test]
    fn the_tail_is_a_hole() {
        let disk = Arc::new(Disk::new(1000));
        let backend = testing::backend(&disk, &["truncate"], &[("truncate", "2000")]);
        assert_eq!(testing::extents_of(&backend, 2000, 0), [(0, 1000, 0), (1000, 1000, 3)]);
        assert_eq!(testing::extents_of(&backend, 100, 1500), [(1500, 100, 3)]);
        let backend = testing::backend(&disk, &["truncate"], &[("truncate", "500")]);
        assert_eq!(testing::extents_of(&backend, 500, 0), [(0, 500, 0)]);
    }

    #[test]
    fn the_largest_disk_can_be_pretended() {
        let disk = Arc::new(Disk::new(1000));
        let params = [("truncate", "9223372036854775807")];
        let backend = testing::backend(&disk, &["truncate"], &params);
        assert_eq!(testing::read(&backend, 4, i64::MAX as u64 - 4), [0; 4]);
        assert!(backend.pread(&mut [0; 4], i64::MAX as u64 - 3).is_err());
    }
}
