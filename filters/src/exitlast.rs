//! nbdkit-exitlast-filter(1): stops the server when the last client has gone.
//!
//! A worker that dies without closing its connection frees its place but stops nothing: the
//! server then lives until the next client has come and gone.

use std::sync::Arc;

use nbdkit_api::{
    Errno, Error, Filter, FilterConnection, Open, Result, Slot, ThreadModel, client, debug,
};

use crate::presence::{Place, Places};

/// The filter and, once ready, the places of its clients.
#[derive(Debug, Default)]
pub struct ExitLast {
    places: Option<Arc<Places>>,
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
        Ok(())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn FilterConnection>> {
        below.open(open)?;
        let places = self
            .places
            .as_ref()
            .ok_or_else(|| Error::new(Errno::EINVAL, "exitlast: opened before get_ready"))?;
        // With so many places there is always one.
        Ok(Box::new(Handle { place: places.take()?, places: Arc::clone(places) }))
    }
}

struct Handle {
    place: Option<Place>,
    places: Arc<Places>,
}

impl Drop for Handle {
    /// Each leaver first leaves and then looks around, so of several that leave at once at
    /// least one finds itself alone.
    fn drop(&mut self) {
        self.place = None;
        if matches!(self.places.occupied(), Ok(false)) {
            debug!("exitlast: exiting on last client connection");
            client::shutdown();
        }
    }
}

impl FilterConnection for Handle {
    reads_pass_through!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::sync::atomic::{AtomicU32, Ordering};

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
