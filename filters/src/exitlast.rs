//! nbdkit-exitlast-filter(1): stops the server when the last client has gone.
//!
//! A worker that is killed cannot report that it was the last; the template then notices that
//! nobody is there any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use nbdkit_api::shared::SharedWords;
use nbdkit_api::{
    Client, DataPath, Direction, Errno, Error, Filter, Needs, Open, OpenLayer, Result, Slot,
    ThreadModel, client, debug,
};

use crate::presence::{Place, Places};

/// The filter and, once ready, the places of its clients.
#[derive(Debug, Default)]
pub struct ExitLast {
    places: Option<Arc<Places>>,
    /// Not 0 once there was a client at all.
    visited: Option<Arc<SharedWords>>,
}

impl ExitLast {
    fn shared(&self) -> Result<(&Arc<Places>, &Arc<SharedWords>)> {
        self.places
            .as_ref()
            .zip(self.visited.as_ref())
            .ok_or_else(|| Error::new(Errno::EINVAL, "exitlast: opened before get_ready"))
    }
}

impl Filter for ExitLast {
    fn name(&self) -> &str {
        "exitlast"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit exitlast filter")
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.places = Some(Places::new("exitlast", i64::MAX as u64)?);
        self.visited = Some(Arc::new(SharedWords::new(1)?));
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        below.shutdown()
    }

    fn worker_ended(&self) {
        if let Ok((places, visited)) = self.shared()
            && visited[0].load(Ordering::Relaxed) != 0
        {
            shut_down_if_empty(places);
        }
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let (places, visited) = self.shared()?;
        visited[0].store(1, Ordering::Relaxed);
        // With so many places there is always one.
        let visit = || Ok(Visit { place: places.take()?, places: Arc::clone(places) });
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
    places: Arc<Places>,
}

impl Drop for Visit {
    /// Each leaver first leaves and then looks around, so of several that leave at once at
    /// least one finds itself alone.
    fn drop(&mut self) {
        self.place = None;
        shut_down_if_empty(&self.places);
    }
}

fn shut_down_if_empty(places: &Places) {
    if matches!(places.occupied(), Ok(false)) {
        debug!("exitlast: exiting on last client connection");
        client::shutdown();
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
