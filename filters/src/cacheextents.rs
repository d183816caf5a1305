//! nbdkit-cacheextents-filter(1): keeps the last answer about extents, for all clients.
//!
//! The list is in a file in memory that all workers share, and each worker keeps a copy. A request
//! that changes the disk makes it invalid, also for an answer that was on its way meanwhile.

mod list;

use std::sync::Arc;

use nbdkit_api::{
    Client, DataPath, Direction, Errno, Error, Extents, Filter, Flags, Next, Open, OpenLayer,
    Result, Slot, ThreadModel,
};

use list::LastList;

/// The filter: once ready, the last list.
#[derive(Debug, Default)]
pub struct CacheExtents {
    last: Option<Arc<LastList>>,
}

impl Filter for CacheExtents {
    fn name(&self) -> &str {
        "cacheextents"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit cacheextents filter")
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.last = Some(Arc::new(LastList::new()?));
        Ok(())
    }

    fn worker_ended(&self) {
        if let Some(last) = &self.last {
            last.worker_ended();
        }
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let last = self.last.clone();
        Ok(Box::new(Handle {
            export: open.export.to_owned(),
            client: open.client.cloned(),
            last: last.ok_or_else(|| {
                Error::new(Errno::EINVAL, "cacheextents: opened before get_ready")
            })?,
        }))
    }
}

struct Handle {
    export: String,
    client: Option<Arc<Client>>,
    last: Arc<LastList>,
}

impl Handle {
    fn change(&self, change: impl FnOnce() -> Result<()>) -> Result<()> {
        self.last.change(self.client.as_deref(), change)
    }
}

impl OpenLayer for Handle {
    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.change(|| next.pwrite(buf, offset, flags))
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.change(|| next.trim(count, offset, flags))
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.change(|| next.zero(count, offset, flags))
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        let client = self.client.as_deref();
        let found = self.last.find(client, &self.export, offset, flags, extents)?;
        let Some(version) = found else { return Ok(()) };
        // All that the layer below knows, so that there is something to cache.
        let mut below = Extents::new(offset, next.size()?);
        next.extents(count, offset, flags - Flags::REQ_ONE, &mut below)?;
        self.last.store(client, version, &self.export, &below)?;
        let wanted = if flags.contains(Flags::REQ_ONE) { 1 } else { below.len() };
        below.iter().take(wanted).try_for_each(|it| extents.add(it.offset, it.length, it.kind))
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

    fn layer(disk: &Arc<Disk>) -> Arc<nbdkit_api::Layer> {
        testing::layer(disk, &["cacheextents"], &[])
    }

    /// What is asked below for extents of this range.
    fn asked(disk: &Disk, filter: &Next, count: u64, offset: u64) -> Vec<String> {
        disk.take_calls();
        assert_eq!(testing::extents_of(filter, count, offset)[0].0, offset);
        disk.take_calls()
    }

    #[test]
    fn what_the_last_answer_covers_is_not_asked_again() {
        let disk = Arc::new(Disk::new(1 << 20));
        let layer = layer(&disk);
        let (one, other) = (testing::open(&layer), testing::open(&layer));
        assert_eq!(asked(&disk, &one, 200_000, 1000), ["extents 200000@1000"]);
        assert!(asked(&disk, &one, 200_000, 1000).is_empty());
        // Of another connection, up to its end.
        assert!(asked(&disk, &other, 10, 262_143).is_empty());
        let first = [(100_000, 31_072, 3), (131_072, 65_536, 0), (196_608, 65_536, 3)];
        assert_eq!(testing::extents_of(&other, 300_000, 100_000), first);
        assert_eq!(asked(&disk, &other, 10, 262_144), ["extents 10@262144"]);
        // Now that is the last one.
        assert_eq!(asked(&disk, &other, 10, 0), ["extents 10@0"]);
    }

    #[test]
    fn one_extent_is_all_that_a_request_for_one_gets() {
        let disk = Arc::new(Disk::new(1 << 20));
        let filter = testing::open(&layer(&disk));
        for calls in [1, 0] {
            disk.take_calls();
            let mut extents = Extents::new(0, 1 << 20);
            filter.extents(1 << 20, 0, Flags::REQ_ONE, &mut extents).unwrap();
            assert_eq!((extents.len(), extents.covered_to()), (1, 65_536));
            assert_eq!(disk.take_calls().len(), calls);
        }
        assert_eq!(testing::extents_of(&filter, 1 << 20, 0).len(), 16);
        assert!(disk.take_calls().is_empty());
    }

    #[test]
    fn every_change_by_any_connection_makes_it_invalid() {
        let disk = Arc::new(Disk::new(1 << 20));
        let layer = layer(&disk);
        let (one, other) = (testing::open(&layer), testing::open(&layer));
        let changes: [&dyn Fn(); 3] = [
            &|| other.pwrite(&[1], 0, Flags::empty()).unwrap(),
            &|| other.trim(1, 0, Flags::empty()).unwrap(),
            &|| other.zero(1, 0, Flags::empty()).unwrap(),
        ];
        for change in changes {
            testing::extents_of(&one, 10, 0);
            assert!(asked(&disk, &one, 10, 0).is_empty());
            change();
            assert_eq!(asked(&disk, &one, 10, 0).len(), 1);
        }
        other.flush().unwrap();
        testing::read(&other, 10, 0);
        assert!(asked(&disk, &one, 10, 0).is_empty());
    }

    #[test]
    fn exports_have_lists_of_their_own() {
        let disk = Arc::new(Disk::new(1 << 20));
        let layer = layer(&disk);
        let one = testing::try_open(&layer, "one", false).unwrap();
        let two = testing::try_open(&layer, "two", false).unwrap();
        testing::extents_of(&one, 10, 0);
        assert_eq!(asked(&disk, &two, 10, 0).len(), 1);
        assert_eq!(asked(&disk, &one, 10, 0).len(), 1);
        assert!(asked(&disk, &one, 10, 0).is_empty());
    }
}
