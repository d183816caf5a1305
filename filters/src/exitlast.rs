//! nbdkit-exitlast-filter(1): stops the server when the last client has gone.
//!
//! A worker that is killed cannot report that it was the last; the template then notices that
//! nobody is there any more. Where the server is to wait for another client, a watcher, [`grace`],
//! does.

mod grace;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nbdkit_api::shared::SharedWords;
use nbdkit_api::{
    Client, DataPath, Direction, Errno, Error, Filter, Needs, NextConfig, Open, OpenLayer, Result,
    ResultExt, Slot, ThreadModel, Value, Watcher, client, debug,
};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::presence::{Place, Places};
use grace::Grace;

/// The filter and, once ready, what its processes share.
#[derive(Debug, Default)]
pub struct ExitLast {
    /// How long the server waits for another client after the last one.
    grace: Duration,
    shared: Option<Arc<Shared>>,
    /// Until the watcher has it.
    watcher: Mutex<Option<Grace>>,
}

/// What workers, watcher and template share.
#[derive(Debug)]
struct Shared {
    places: Arc<Places>,
    /// Not 0 once there was a client at all.
    visited: SharedWords,
    /// Tells the watcher that a client has gone; `None` without a grace period.
    gone: Option<EventFd>,
}

impl Shared {
    /// A client has gone, and perhaps it was the last one. Each leaver first leaves and then looks
    /// around, so of several that leave at once at least one finds itself alone.
    fn client_has_gone(&self) {
        match &self.gone {
            // A counter that is full has told, too.
            Some(gone) => drop(gone.write(1)),
            None => self.stop_if_empty(),
        }
    }

    fn stop_if_empty(&self) {
        if self.visited[0].load(Ordering::Relaxed) != 0
            && matches!(self.places.occupied(), Ok(false))
        {
            debug!("exitlast: exiting on last client connection");
            client::shutdown();
        }
    }
}

impl Filter for ExitLast {
    fn name(&self) -> &str {
        "exitlast"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit exitlast filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("exitlast-grace=<DELAY>   Wait for another client for so long (default: 0).")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "exitlast-grace" => self.grace = value.delay(key)?,
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        let waits = !self.grace.is_zero();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let gone = waits.then(|| EventFd::from_flags(flags)).transpose().or_error(|| "eventfd")?;
        let shared = Arc::new(Shared {
            places: Places::new("exitlast", i64::MAX as u64)?,
            visited: SharedWords::new(1)?,
            gone,
        });
        let watcher = waits.then(|| Grace::new(self.grace, Arc::clone(&shared)));
        self.watcher = Mutex::new(watcher);
        self.shared = Some(shared);
        Ok(())
    }

    fn watcher(&self) -> Option<Box<dyn Watcher>> {
        let watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Box::new(watcher))
    }

    fn notified(&self) {
        if let Some(shared) = &self.shared {
            shared.stop_if_empty();
        }
    }

    fn needs(&self, below: Needs) -> Needs {
        below.shutdown()
    }

    fn worker_ended(&self) {
        if let Some(shared) = &self.shared {
            shared.client_has_gone();
        }
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let shared = self
            .shared
            .as_ref()
            .ok_or_else(|| Error::new(Errno::EINVAL, "exitlast: opened before get_ready"))?;
        shared.visited[0].store(1, Ordering::Relaxed);
        // With so many places there is always one.
        let visit = || Ok(Visit { place: shared.places.take()?, shared: Arc::clone(shared) });
        match open.client {
            Some(client) => client.keep_one(visit)?,
            // What outlives connections.
            None => return Ok(Box::new(Handle { _client: None, _visit: Some(visit()?) })),
        }
        Ok(Box::new(Handle { _client: open.client.cloned(), _visit: None }))
    }
}

/// A client that has opened an export, until its connection is over: it may ask about several ones
/// before it opens the one that it wants.
struct Visit {
    place: Option<Place>,
    shared: Arc<Shared>,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.place = None;
        self.shared.client_has_gone();
    }
}

/// What keeps the visit.
struct Handle {
    _client: Option<Arc<Client>>,
    _visit: Option<Visit>,
}

impl OpenLayer for Handle {
    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Transparent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::sync::atomic::AtomicU32;

    static SHUTDOWNS: AtomicU32 = AtomicU32::new(0);

    #[test]
    fn the_last_client_stops_the_server() {
        client::on_shutdown(Box::new(|| {
            SHUTDOWNS.fetch_add(1, Ordering::SeqCst);
        }));
        let layer = testing::layer(&Arc::new(Disk::new(512)), &["exitlast"], &[]);
        let first = testing::open(&layer);
        let second = testing::open(&layer);
        drop(first);
        assert_eq!(SHUTDOWNS.load(Ordering::SeqCst), 0);
        drop(second);
        assert_eq!(SHUTDOWNS.load(Ordering::SeqCst), 1);
    }
}
