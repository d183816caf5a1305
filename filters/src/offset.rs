//! nbdkit-offset-filter(1): serves the part of a disk that begins at `offset` and is `range` long.

use std::ops::Range;

use nbdkit_api::{Errno, Error, Filter, NextConfig, Open, OpenLayer, Result, Slot, Value};

use crate::window::Window;

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

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let (offset, range) = (self.offset, self.range);
        Ok(Window::new(move |next| part(next.size()?, offset, range)))
    }
}

/// The part of a disk of `below` bytes.
fn part(below: u64, offset: u64, range: Option<u64>) -> Result<Range<u64>> {
    let too_big = |what| {
        let why = format!(
            "{what} is larger than the real size ({below}) of the underlying file or device"
        );
        Error::new(Errno::EINVAL, why)
    };
    let rest = below.checked_sub(offset).ok_or_else(|| too_big(format!("offset ({offset})")))?;
    match range {
        None => Ok(offset..below),
        Some(range) if range <= rest => Ok(offset..offset + range),
        Some(range) => Err(too_big(format!("offset+range ({offset}+{range})"))),
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Disk};
    use nbdkit_api::Flags;
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
            let layer = testing::layer(&disk, &["offset"], params);
            let error = testing::try_open(&layer, "", false).unwrap_err();
            assert!(error.message().starts_with(why), "{error}");
        }
    }
}
