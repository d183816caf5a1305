//! nbdkit-nofilter-filter(1): does nothing, for tests.

use nbdkit_api::{DataPath, Direction, Filter, Open, OpenLayer, Result, Slot};

/// The filter.
#[derive(Debug)]
pub struct NoFilter;

impl Filter for NoFilter {
    fn name(&self) -> &str {
        "nofilter"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit nofilter filter")
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(Handle))
    }
}

struct Handle;

impl OpenLayer for Handle {
    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Transparent
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Disk};
    use nbdkit_api::Flags;
    use std::sync::Arc;

    #[test]
    fn every_request_reaches_the_layer_below_as_it_is() {
        let disk = Arc::new(Disk::pattern(1 << 20));
        let filter = testing::backend(&disk, &["nofilter"], &[]);
        assert_eq!(filter.size().unwrap(), 1 << 20);
        disk.take_calls();
        testing::read(&filter, 3, 1);
        filter.pwrite(&[1], 2, Flags::FUA).unwrap();
        filter.zero(6, 1, Flags::MAY_TRIM).unwrap();
        filter.trim(5, 0, Flags::empty()).unwrap();
        filter.cache(7, 2).unwrap();
        filter.flush().unwrap();
        assert_eq!(
            disk.take_calls(),
            ["pread 3@1", "pwrite 1@2 FUA", "zero 6@1 MAY_TRIM", "trim 5@0", "cache 7@2", "flush"]
        );
        assert_eq!(testing::extents_of(&filter, 65_536, 65_536), [(65_536, 65_536, 3)]);
    }
}
