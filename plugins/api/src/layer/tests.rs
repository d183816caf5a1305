//! Who prepares, finalizes and closes a context, and what its handles can do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use super::*;
use crate::{
    Connection, Errno, Error, Filter, Layer, Open, OpenLayer, Plugin, Result, Slot, Stack,
};

/// What happened, in order, and how the next calls go.
#[derive(Default)]
struct Record {
    events: Mutex<Vec<String>>,
    size: AtomicU64,
    open_fails: AtomicBool,
    prepare_fails: AtomicBool,
}

impl Record {
    fn note(&self, event: impl Into<String>) {
        self.events.lock().unwrap().push(event.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.events.lock().unwrap())
    }
}

struct Disk(Arc<Record>);

impl Plugin for Disk {
    fn name(&self) -> &str {
        "disk"
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        if self.0.open_fails.load(Ordering::Relaxed) {
            return Err(Error::silent(Errno::ENOENT));
        }
        self.0.note(format!("open {} readonly={}", open.export, open.readonly));
        Ok(Box::new(Handle(Arc::clone(&self.0))))
    }
}

struct Handle(Arc<Record>);

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        Ok(self.0.size.load(Ordering::Relaxed))
    }

    fn pread(&self, buf: &mut [u8], _: u64) -> Result<()> {
        buf.fill(7);
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.note("close");
    }
}

/// How a [`Middle`] gets the layer below.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Own,
    ToReopen,
    /// One context, opened in `after_fork`, for all connections.
    Shared,
}

/// A filter that records its life.
struct Middle {
    name: &'static str,
    way: Way,
    record: Arc<Record>,
    shared: OnceLock<Next>,
}

impl Filter for Middle {
    fn name(&self) -> &str {
        self.name
    }

    fn after_fork(&self, below: &Arc<Layer>) -> Result<()> {
        if self.way == Way::Shared {
            let next =
                below.open(&Open { client: None, readonly: false, export: "", tls: false })?;
            next.prepare()?;
            let _ = self.shared.set(next);
        }
        Ok(())
    }

    fn cleanup(&self, _: &Arc<Layer>) {
        if let Some(shared) = self.shared.get() {
            shared.finalize().unwrap();
        }
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        match self.way {
            Way::Own => drop(below.open(open)?.clone()),
            Way::ToReopen => drop(below.open_to_reopen(open)?.clone()),
            Way::Shared => below.share(self.shared.get().cloned().unwrap_or_default()),
        }
        Ok(Box::new(Recorder { name: self.name, record: Arc::clone(&self.record) }))
    }
}

struct Recorder {
    name: &'static str,
    record: Arc<Record>,
}

impl OpenLayer for Recorder {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        next.size()?;
        if self.name == "outer" && self.record.prepare_fails.load(Ordering::Relaxed) {
            return Err(Error::silent(Errno::EIO));
        }
        self.record.note(format!("prepare {}", self.name));
        Ok(())
    }

    fn finalize(&self, _: &Next) -> Result<()> {
        self.record.note(format!("finalize {}", self.name));
        Ok(())
    }

    /// Reopens the layer below if it is asked for the last byte.
    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        if self.name == "outer" && offset == 511 {
            next.reopen(true)?;
        }
        next.pread(buf, offset)
    }
}

/// "outer", which gets the layer below in some way, on "inner" and the plugin.
fn stack(way: Way) -> (Arc<Record>, Arc<Layer>) {
    let record = Arc::new(Record::default());
    record.size.store(512, Ordering::Relaxed);
    let filter = |name, way| -> Box<dyn Filter> {
        let record = Arc::clone(&record);
        Box::new(Middle { name, way, record, shared: OnceLock::new() })
    };
    let filters = vec![filter("outer", way), filter("inner", Way::Own)];
    let layer = Stack::new(filters, Box::new(Disk(Arc::clone(&record)))).freeze();
    layer.after_fork().unwrap();
    (record, layer)
}

fn open(layer: &Arc<Layer>) -> Next {
    layer.open(&Open { client: None, readonly: false, export: "x", tls: false }).unwrap()
}

#[test]
fn a_context_of_a_connection_begins_and_ends_with_it() {
    for way in [Way::Own, Way::ToReopen] {
        let (record, layer) = stack(way);
        let next = open(&layer);
        next.prepare().unwrap();
        next.prepare().unwrap();
        next.finalize().unwrap();
        next.finalize().unwrap();
        drop(next);
        assert_eq!(
            record.take(),
            [
                "open x readonly=false",
                "prepare inner",
                "prepare outer",
                "finalize outer",
                "finalize inner",
                "close"
            ]
        );
    }
}

#[test]
fn layers_that_were_prepared_are_finalized_when_one_above_was_not() {
    let (record, layer) = stack(Way::Own);
    record.prepare_fails.store(true, Ordering::Relaxed);
    let next = open(&layer);
    next.prepare().unwrap_err();
    next.finalize().unwrap();
    drop(next);
    assert_eq!(
        record.take(),
        ["open x readonly=false", "prepare inner", "finalize inner", "close"]
    );
}

#[test]
fn a_shared_context_outlives_connections() {
    let (record, layer) = stack(Way::Shared);
    for _ in 0..2 {
        let next = open(&layer);
        next.prepare().unwrap();
        next.pread(&mut [0; 512], 0).unwrap();
        next.finalize().unwrap();
    }
    layer.cleanup();
    drop(layer);
    assert_eq!(
        record.take(),
        [
            "open  readonly=false",
            "prepare inner",
            "prepare outer",
            "finalize outer",
            "prepare outer",
            "finalize outer",
            "finalize inner",
            "close"
        ]
    );
}

#[test]
fn a_thread_uses_its_own_handle_and_the_layer_is_closed_with_the_last_one() {
    let (record, layer) = stack(Way::Own);
    let next = open(&layer);
    next.prepare().unwrap();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let handle = next.clone();
    let thread = std::thread::spawn(move || {
        wait.recv().unwrap();
        let mut buf = [0; 4];
        handle.pread(&mut buf, 0).map(|()| buf)
    });
    record.take();
    drop(next);
    assert!(record.take().is_empty());
    go.send(()).unwrap();
    assert_eq!(thread.join().unwrap().unwrap(), [7; 4]);
    assert_eq!(record.take(), ["close"]);
}

#[test]
fn reopening_replaces_the_layer_for_every_handle() {
    let (record, layer) = stack(Way::ToReopen);
    let next = open(&layer);
    next.prepare().unwrap();
    record.take();
    next.pread(&mut [0], 511).unwrap();
    assert_eq!(record.take(), ["finalize inner", "close", "open x readonly=true", "prepare inner"]);
    // Until an attempt succeeds there is nothing to read from.
    record.open_fails.store(true, Ordering::Relaxed);
    assert_eq!(next.pread(&mut [0], 511).unwrap_err().errno(), Errno::ENOENT);
    assert_eq!(next.pread(&mut [0], 0).unwrap_err().errno(), Errno::EIO);
    record.open_fails.store(false, Ordering::Relaxed);
    next.pread(&mut [0], 511).unwrap();
    next.pread(&mut [0], 0).unwrap();
    record.take();
    next.finalize().unwrap();
    drop(next);
    assert_eq!(record.take(), ["finalize outer", "finalize inner", "close"]);
}

#[test]
fn a_size_that_changes_with_reopening_is_the_new_one_for_requests_below() {
    let (record, layer) = stack(Way::ToReopen);
    let next = open(&layer);
    next.prepare().unwrap();
    assert_eq!(next.size().unwrap(), 512);
    record.size.store(100, Ordering::Relaxed);
    // Out of bounds of the new layer.
    assert_eq!(next.pread(&mut [0], 511).unwrap_err().errno(), Errno::EINVAL);
    next.pread(&mut [0; 100], 0).unwrap();
}

#[test]
fn only_what_was_opened_for_it_is_reopened() {
    let (_, layer) = stack(Way::Own);
    let next = open(&layer);
    next.prepare().unwrap();
    assert_eq!(next.pread(&mut [0], 511).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(Next::default().pread(&mut [0], 0).unwrap_err().errno(), Errno::EIO);
}
