//! Limits how long a connection lasts: nbdkit's time-limit filter, which came with 1.42.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nbdkit_api::{
    Client, DataPath, Direction, Errno, Error, Extents, Filter, Flags, Next, NextConfig, Open,
    OpenLayer, Result, Slot, Value,
};

/// The filter: how long a connection may last, zero for any time.
#[derive(Debug, Clone, Copy)]
pub struct TimeLimit {
    limit: Duration,
}

impl Default for TimeLimit {
    fn default() -> TimeLimit {
        TimeLimit { limit: Duration::from_secs(60) }
    }
}

impl Filter for TimeLimit {
    fn name(&self) -> &str {
        "time-limit"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit time limit filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("time-limit=<DELAY>         Limit on the time of a connection (default 60, 0 = off).")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "time-limit" | "time_limit" | "timelimit" => self.limit = value.delay(key)?,
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        let start = Instant::now();
        below.open(open)?;
        // A limit beyond the end of time is none.
        let end = if self.limit.is_zero() { None } else { start.checked_add(self.limit) };
        Ok(Box::new(Handle { client: open.client.map(Arc::clone), end }))
    }
}

struct Handle {
    client: Option<Arc<Client>>,
    /// `None` if there is no limit.
    end: Option<Instant>,
}

impl Handle {
    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// # Errors
    /// ESHUTDOWN: the time is over. The client is disconnected.
    fn check(&self) -> Result<()> {
        if !self.is_over() {
            return Ok(());
        }
        if let Some(client) = &self.client {
            client.disconnect(true);
        }
        Err(Error::new(Errno::ESHUTDOWN, "time-limit: the connection has lasted too long"))
    }
}

impl OpenLayer for Handle {
    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check()?;
        next.pread(buf, offset)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.check()?;
        next.pwrite(buf, offset, flags)
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.check()?;
        next.trim(count, offset, flags)
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.check()?;
        next.zero(count, offset, flags)
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        self.check()?;
        next.extents(count, offset, flags, extents)
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        self.check()?;
        next.cache(count, offset)
    }

    fn data_path(&self, _: Direction) -> DataPath {
        if self.end.is_some() { DataPath::PerRequest } else { DataPath::Transparent }
    }

    fn passes(&self, _: &Next, _: Direction, _: u64, _: u64) -> bool {
        !self.is_over()
    }

    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        match self.check() {
            Ok(()) => next.try_pread(buf, offset),
            Err(error) => Some(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use nbdkit_api::client::Peer;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn requests_after_the_end_fail_and_cut_the_client_off() {
        let disk = Arc::new(Disk::new(1 << 20));
        let layer = testing::layer(&disk, &["time-limit"], &[("timelimit", "1us")]);
        let is_cut = Arc::new(AtomicBool::new(false));
        let cut = Arc::clone(&is_cut);
        let on_force = Box::new(move || cut.store(true, Ordering::Relaxed));
        let client = Client::new(1, Peer::default(), None, on_force);
        let open = Open { client: Some(&client), readonly: false, export: "", tls: false };
        let backend = layer.open(&open).unwrap();
        backend.prepare().unwrap();
        std::thread::sleep(Duration::from_micros(2));
        backend.flush().unwrap();
        assert!(!is_cut.load(Ordering::Relaxed));
        assert_eq!(backend.passes_to(Direction::Write, 1, 0), None);
        let none = Flags::empty();
        for result in [
            backend.pread(&mut [0], 0),
            backend.try_pread(&mut [0], 0).unwrap(),
            backend.pwrite(&[0], 0, none),
            backend.zero(1, 0, none),
            backend.trim(1, 0, none),
            backend.cache(1, 0),
            backend.extents(1, 0, none, &mut Extents::new(0, 1)),
        ] {
            assert_eq!(result.unwrap_err().errno(), Errno::ESHUTDOWN);
        }
        assert!(is_cut.load(Ordering::Relaxed));
    }

    #[test]
    fn requests_before_the_end_or_without_a_limit_pass() {
        let disk = Arc::new(Disk::new(512));
        for limit in ["0", "1000000", "2147483647"] {
            let backend = testing::backend(&disk, &["time-limit"], &[("time_limit", limit)]);
            backend.pread(&mut [0], 0).unwrap();
            assert_eq!(backend.passes_to(Direction::Read, 1, 5), Some(5), "{limit}");
        }
        testing::config_error("time-limit", &[("time-limit", "x")]);
    }
}
