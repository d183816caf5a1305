//! nbdkit-noextents-filter(1): makes the disk look fully allocated.

use nbdkit_api::{DataPath, Direction, Filter, Next, Open, OpenLayer, Result, Slot};

/// The filter; it has no parameters.
#[derive(Debug, Default)]
pub struct NoExtents;

impl Filter for NoExtents {
    fn name(&self) -> &str {
        "noextents"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit noextents filter")
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(NoExtents))
    }
}

impl OpenLayer for NoExtents {
    fn can_extents(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Transparent
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Disk};
    use std::sync::Arc;

    #[test]
    fn holes_count_as_data() {
        let disk = Arc::new(Disk::new(1 << 20));
        let backend = testing::backend(&disk, &["noextents"], &[]);
        assert!(!backend.can_extents().unwrap());
        assert_eq!(testing::extents_of(&backend, 1 << 20, 0), [(0, 1 << 20, 0)]);
    }
}
