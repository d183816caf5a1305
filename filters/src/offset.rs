//! nbdkit-offset-filter(1): serves the part of a disk that begins at `offset` and is `range` long.

use nbdkit_api::{
    DataPath, Direction, Errno, Error, Extents, Filter, Flags, Next, NextConfig, Open, OpenLayer,
    Result, Slot, Value,
};

/// The filter: where the part begins and how long it is, in bytes.
#[derive(Debug, Default)]
pub struct Offset {
    offset: u64,
    range: Option<u64>,
}

impl Filter for Offset {
    fn name(&self) -> &str {
        "offset"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit offset filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "offset=<OFFSET>            The start offset to serve (default 0).\n\
             range=<LENGTH>             The total size to serve (default rest of file).",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "offset" => self.offset = value.size()?,
            "range" => self.range = Some(value.size()?),
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(Handle { offset: self.offset, range: self.range }))
    }
}

/// The sums below cannot overflow: the layer above checked the request against `size`, so that
/// `offset + self.offset` lies within the disk below.
struct Handle {
    offset: u64,
    range: Option<u64>,
}

impl OpenLayer for Handle {
    fn size(&self, next: &Next) -> Result<u64> {
        let below = next.size()?;
        let (offset, range) = (self.offset, self.range);
        let too_big = |what| {
            Error::new(
                Errno::EINVAL,
                format!(
                    "{what} is larger than the real size ({below}) of the underlying file or device"
                ),
            )
        };
        let rest =
            below.checked_sub(offset).ok_or_else(|| too_big(format!("offset ({offset})")))?;
        match range {
            None => Ok(rest),
            Some(range) if range <= rest => Ok(range),
            Some(range) => Err(too_big(format!("offset+range ({offset}+{range})"))),
        }
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        next.pread(buf, offset + self.offset)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        next.pwrite(buf, offset + self.offset, flags)
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        next.trim(count, offset + self.offset, flags)
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        next.zero(count, offset + self.offset, flags)
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        let mut below = Extents::new(offset + self.offset, next.size()?);
        next.extents(count, offset + self.offset, flags, &mut below)?;
        extents.add_shifted(&below, -(self.offset as i64))
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        next.cache(count, offset + self.offset)
    }

    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Shifted(self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::sync::Arc;

    #[test]
    fn every_request_is_shifted() {
        let disk = Arc::new(Disk::pattern(1 << 20));
        let backend =
            testing::backend(&disk, &["offset"], &[("offset", "1000"), ("range", "5000")]);
        assert_eq!(backend.size().unwrap(), 5000);
        assert_eq!(testing::read(&backend, 2, 3), [1003 % 251, 1004 % 251].map(|b: usize| b as u8));
        disk.take_calls();
        backend.pwrite(b"abc", 4997, Flags::FUA).unwrap();
        backend.trim(5, 0, Flags::empty()).unwrap();
        backend.zero(6, 1, Flags::MAY_TRIM).unwrap();
        backend.cache(7, 2).unwrap();
        assert_eq!(
            disk.take_calls(),
            ["pwrite 3@5997 FUA", "trim 5@1000", "zero 6@1001 MAY_TRIM", "cache 7@1002"]
        );
        assert!(backend.pread(&mut [0; 2], 4999).is_err());
    }

    #[test]
    fn extents_are_shifted_and_end_with_the_range() {
        let disk = Arc::new(Disk::new(1 << 20));
        let backend = testing::backend(&disk, &["offset"], &[("offset", "60k"), ("range", "100k")]);
        assert_eq!(
            testing::extents_of(&backend, 100 << 10, 0),
            [(0, 4 << 10, 0), (4 << 10, 64 << 10, 3), (68 << 10, 32 << 10, 0)]
        );
    }

    #[test]
    fn a_part_beyond_the_end_is_an_error_at_open() {
        let disk = Arc::new(Disk::new(1 << 20));
        for (params, why) in [
            (&[("offset", "2M")][..], "offset (2097152) is larger than the real size (1048576) "),
            (
                &[("offset", "512k"), ("range", "1M")],
                "offset+range (524288+1048576) is larger than the real size (1048576) ",
            ),
        ] {
            let error = testing::backend(&disk, &["offset"], params).size().unwrap_err();
            assert!(error.message().starts_with(why), "{error}");
        }
    }
}
