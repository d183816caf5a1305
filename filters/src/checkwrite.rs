//! nbdkit-checkwrite-filter(1): writes are compared with the disk, which they do not change.

use nbdkit_api::{
    DataPath, Direction, Errno, Error, Filter, Flags, Fua, Needs, Next, Open, OpenLayer, Result,
    Slot, Zero,
};

use crate::compare;

/// The filter.
#[derive(Debug, Default, Clone, Copy)]
pub struct CheckWrite;

impl Filter for CheckWrite {
    fn name(&self) -> &str {
        "checkwrite"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit checkwrite filter")
    }

    fn needs(&self, below: Needs) -> Needs {
        below.read_only()
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(&open.readonly(true))?;
        Ok(Box::new(*self))
    }
}

fn expect(is_expected: bool) -> Result<()> {
    if is_expected {
        Ok(())
    } else {
        Err(Error::new(Errno::EIO, "data written does not match expected"))
    }
}

impl OpenLayer for CheckWrite {
    fn can_write(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn can_flush(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn can_trim(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn can_zero(&self, _: &Next) -> Result<Zero> {
        Ok(Zero::Native)
    }

    fn can_fast_zero(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn can_fua(&self, _: &Next) -> Result<Fua> {
        Ok(Fua::Native)
    }

    /// Nobody writes.
    fn can_multi_conn(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, _: Flags) -> Result<()> {
        expect(compare::has_bytes(next, buf, offset)?)
    }

    fn flush(&self, _: &Next) -> Result<()> {
        Ok(())
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, _: Flags) -> Result<()> {
        expect(compare::has_zeroes(next, count, offset)?)
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, _: Flags) -> Result<()> {
        expect(compare::has_zeroes(next, count, offset)?)
    }

    fn data_path(&self, direction: Direction) -> DataPath {
        match direction {
            Direction::Read => DataPath::Transparent,
            Direction::Write => DataPath::Opaque,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::sync::Arc;

    #[test]
    fn writes_are_compared_and_nothing_below_is_written() {
        let disk = Arc::new(Disk { flush: false, trim: false, zero: false, ..Disk::pattern(8192) });
        disk.data.lock().unwrap()[4096..].fill(0);
        let backend = testing::backend(&disk, &["checkwrite"], &[]);
        assert_eq!(disk.take_calls(), ["open \"one\" readonly=true"]);
        let none = Flags::empty();
        backend.pwrite(&testing::read(&backend, 5000, 100), 100, Flags::FUA).unwrap();
        backend.zero(4096, 4096, Flags::FAST_ZERO).unwrap();
        backend.trim(100, 5000, none).unwrap();
        backend.flush().unwrap();
        for result in [
            backend.pwrite(b"x", 5000, none),
            backend.zero(2, 4095, none),
            backend.trim(2, 0, none),
        ] {
            assert_eq!(result.unwrap_err().errno(), Errno::EIO);
        }
        assert!(
            disk.take_calls()
                .iter()
                .all(|call| call.starts_with("pread") || call.starts_with("extents"))
        );
    }
}
