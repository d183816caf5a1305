//! Counts the bytes that clients ask for, and prints them when the server ends: nbdkit's count
//! filter, which came with 1.46.
//!
//! Workers count in shared words, which a hostile one can make wrong and nothing else.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nbdkit_api::shared::SharedWords;
use nbdkit_api::{
    DataPath, Direction, Error, Filter, Flags, Next, Open, OpenLayer, Result, Slot, ThreadModel,
    debug,
};

/// The filter and, once ready, its counters.
#[derive(Debug, Default)]
pub struct Count {
    counters: Option<Arc<SharedWords>>,
}

/// The indices of the counters.
const READ: usize = 0;
const WRITTEN: usize = 1;
const ZEROED: usize = 2;
const TRIMMED: usize = 3;

impl Filter for Count {
    fn name(&self) -> &str {
        "count"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit count filter")
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.counters = Some(Arc::new(SharedWords::new(4)?));
        Ok(())
    }

    fn unload(&self) {
        let Some(counters) = &self.counters else { return };
        let bytes = |index: usize| counters[index].load(Ordering::Relaxed);
        debug!(
            "count bytes: read {}, written {}, zeroed {}, trimmed {}",
            bytes(READ),
            bytes(WRITTEN),
            bytes(ZEROED),
            bytes(TRIMMED)
        );
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let counters = self.counters.as_ref();
        let counters = counters.ok_or_else(|| Error::msg("count: opened before get_ready"))?;
        Ok(Box::new(Handle(Arc::clone(counters))))
    }
}

struct Handle(Arc<SharedWords>);

impl Handle {
    fn add(&self, index: usize, bytes: u64) {
        self.0[index].fetch_add(bytes, Ordering::Relaxed);
    }
}

impl OpenLayer for Handle {
    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.add(READ, buf.len() as u64);
        next.pread(buf, offset)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.add(WRITTEN, buf.len() as u64);
        next.pwrite(buf, offset, flags)
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.add(TRIMMED, count);
        next.trim(count, offset, flags)
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.add(ZEROED, count);
        next.zero(count, offset, flags)
    }

    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Watched
    }

    fn passed(&self, direction: Direction, count: u64, _: u64, _: Duration, _: bool) {
        let index = match direction {
            Direction::Read => READ,
            Direction::Write => WRITTEN,
        };
        self.add(index, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};

    #[test]
    fn bytes_are_counted_by_what_is_done_to_them() {
        let disk = Arc::new(Disk::new(1 << 20));
        let mut filter = Count::default();
        filter.get_ready(ThreadModel::Parallel).unwrap();
        let counters = Arc::clone(filter.counters.as_ref().unwrap());
        let handle = Handle(Arc::clone(&counters));
        let backend = testing::backend(&disk, &[], &[]);
        handle.pread(&backend, &mut [0; 10], 0).unwrap();
        handle.pwrite(&backend, &[0; 200], 0, Flags::empty()).unwrap();
        handle.zero(&backend, 3000, 0, Flags::empty()).unwrap();
        handle.trim(&backend, 40_000, 0, Flags::empty()).unwrap();
        let counted = [0, 1, 2, 3].map(|index: usize| counters[index].load(Ordering::Relaxed));
        assert_eq!(counted, [10, 200, 3000, 40_000]);
    }
}
