//! nbdkit-retry-request-filter(1): tries requests again that fail, on the same connection to the
//! plugin.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nbdkit_api::{
    Blocking, Client, Error, Extents, Filter, Flags, Next, NextConfig, Open, OpenLayer, Result,
    Slot, Value, client, debug,
};

/// The filter: its parameters.
#[derive(Debug, Clone, Copy)]
pub struct RetryRequest {
    retries: u32,
    /// Before each retry.
    delay: Duration,
    /// Opening the plugin is retried, too.
    open: bool,
}

impl Default for RetryRequest {
    fn default() -> RetryRequest {
        RetryRequest { retries: 2, delay: Duration::from_secs(2), open: true }
    }
}

/// The largest number of retries that nbdkit accepts.
const MOST_RETRIES: u32 = 1000;

impl Filter for RetryRequest {
    fn name(&self) -> &str {
        "retry-request"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit retry request filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "retry-request-retries=<N> Number of retries (default: 2).\n\
             retry-request-delay=<N>   Seconds to wait before retry (default: 2).\n\
             retry-request-open=false  Do not retry opening the plugin (default: true).",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "retry-request-retries" => {
                self.retries = value.integer(key)?;
                if self.retries > MOST_RETRIES {
                    return Err(Error::msg(format!("{key}: value too large")));
                }
            }
            "retry-request-delay" => {
                self.delay = value.delay(key)?;
                if self.delay.is_zero() {
                    return Err(Error::msg(format!("{key} cannot be 0")));
                }
            }
            "retry-request-open" => self.open = value.boolean()?,
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        let client = open.client.map(Arc::clone);
        let handle = Handle { parameters: *self, client, failed: Mutex::default() };
        if self.open {
            handle.retry("open", None, || below.open(open).map(drop))?;
        } else {
            below.open(open)?;
        }
        Ok(Box::new(handle))
    }
}

struct Handle {
    parameters: RetryRequest,
    client: Option<Arc<Client>>,
    /// Reads that have been tried once, the oldest first.
    failed: Mutex<VecDeque<Failed>>,
}

/// A read whose first attempt has failed, and is to be retried by `pread`.
struct Failed {
    count: usize,
    offset: u64,
    error: Error,
}

/// Most reads that are known to have failed: there are no more at a time, but that the layer above
/// may go on with other ranges.
const MOST_FAILED: usize = 128;

impl Handle {
    /// Makes attempts until one succeeds, as often as the parameters allow. `failed`: the error of
    /// an attempt that was made already.
    ///
    /// # Errors
    /// That of the last attempt; ESHUTDOWN: the client has gone or the server stops.
    fn retry<T>(
        &self,
        what: &str,
        mut failed: Option<Error>,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let mut number = 0;
        loop {
            match failed.take().map_or_else(&mut attempt, Err) {
                // That fast zeroes are not fast is an answer.
                Err(error) if number < self.parameters.retries && !error.is_unsupported() => {
                    number += 1;
                    debug!("retry-request: {what} failed, retry {number}: {error}");
                    client::sleep(self.client.as_deref(), self.parameters.delay)?;
                }
                result => return result,
            }
        }
    }

    fn failed(&self) -> MutexGuard<'_, VecDeque<Failed>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error of the first attempt of a read, if that was made.
    fn take_failed(&self, count: usize, offset: u64) -> Option<Error> {
        let mut failed = self.failed();
        let at = failed.iter().position(|it| it.count == count && it.offset == offset)?;
        failed.remove(at).map(|it| it.error)
    }
}

impl OpenLayer for Handle {
    fn size(&self, next: &Next) -> Result<u64> {
        self.retry("get_size", None, || next.size())
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let failed = self.take_failed(buf.len(), offset);
        self.retry("pread", failed, || next.pread(buf, offset))
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.retry("pwrite", None, || next.pwrite(buf, offset, flags))
    }

    fn flush(&self, next: &Next) -> Result<()> {
        self.retry("flush", None, || next.flush())
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.retry("trim", None, || next.trim(count, offset, flags))
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.retry("zero", None, || next.zero(count, offset, flags))
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        let found = self.retry("extents", None, || {
            // An attempt that fails may have added some.
            let mut found = Extents::new(extents.start(), extents.end());
            next.extents(count, offset, flags, &mut found)?;
            Ok(found)
        })?;
        extents.add_shifted(&found, 0)
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        self.retry("cache", None, || next.cache(count, offset))
    }

    fn blocking(&self) -> Blocking {
        Blocking::Long
    }

    /// The first attempt; if it fails, `pread` makes the others.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let Err(error) = next.try_pread(buf, offset)? else { return Some(Ok(())) };
        let mut failed = self.failed();
        if failed.len() == MOST_FAILED {
            failed.pop_front();
        }
        failed.push_back(Failed { count: buf.len(), offset, error });
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use nbdkit_api::Errno;

    #[test]
    fn a_request_that_fails_for_good_is_tried_as_often_as_wanted() {
        let disk = Arc::new(Disk { fail_reads: Some(Errno::ENOMEM), ..Disk::new(512) });
        let params = [("retry-request-retries", "3"), ("retry-request-delay", "1ms")];
        let backend = testing::backend(&disk, &["retry-request"], &params);
        disk.take_calls();
        assert_eq!(backend.pread(&mut [0], 7).unwrap_err().errno(), Errno::ENOMEM);
        assert_eq!(disk.take_calls(), ["pread 1@7"; 4]);
        // With an attempt before.
        assert!(backend.try_pread(&mut [0], 7).is_none());
        assert_eq!(disk.take_calls(), ["pread 1@7"]);
        assert_eq!(backend.pread(&mut [0], 7).unwrap_err().errno(), Errno::ENOMEM);
        assert_eq!(disk.take_calls(), ["pread 1@7"; 3]);
        assert_eq!(backend.pread(&mut [0], 7).unwrap_err().errno(), Errno::ENOMEM);
        assert_eq!(disk.take_calls(), ["pread 1@7"; 4]);
        // Reads that nobody goes on with.
        (0..500).for_each(|offset| assert!(backend.try_pread(&mut [0], offset).is_none()));
        disk.take_calls();
        assert_eq!(backend.pread(&mut [0], 0).unwrap_err().errno(), Errno::ENOMEM);
        assert_eq!(disk.take_calls().len(), 4);
        assert_eq!(backend.pread(&mut [0], 499).unwrap_err().errno(), Errno::ENOMEM);
        assert_eq!(disk.take_calls().len(), 3);
        backend.pwrite(b"x", 0, Flags::FUA).unwrap();
        assert_eq!(disk.take_calls(), ["pwrite 1@0 FUA"]);
    }

    #[test]
    fn parameters_are_checked() {
        for (key, value, why) in [
            ("retry-request-retries", "1001", "retry-request-retries: value too large"),
            ("retry-request-delay", "0", "retry-request-delay cannot be 0"),
        ] {
            assert_eq!(testing::config_error("retry-request", &[(key, value)]), why);
        }
    }
}
