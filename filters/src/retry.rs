//! nbdkit-retry-filter(1): reopens the layers below when a request fails, and tries the request
//! again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nbdkit_api::{
    Blocking, Client, Errno, Error, Extents, Filter, Flags, Next, NextConfig, Open, OpenLayer,
    Result, Slot, ThreadModel, Value, client, debug,
};

/// The filter: its parameters.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    retries: u32,
    /// Before the first retry.
    delay: Duration,
    /// The delay doubles from one retry to the next.
    exponential: bool,
    /// The layers below are reopened read-only.
    force_readonly: bool,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry {
            retries: 5,
            delay: Duration::from_secs(2),
            exponential: true,
            force_readonly: false,
        }
    }
}

impl Filter for Retry {
    fn name(&self) -> &str {
        "retry"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit retry filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "retries=<N>              Number of retries (default: 5).\n\
             retry-delay=<N>          Time to wait before retry (default: 2 seconds).\n\
             retry-exponential=yes|no Exponential back-off (default: yes).\n\
             retry-readonly=yes|no    Force read-only on failure (default: no).",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "retries" => self.retries = value.integer(key)?,
            "retry-delay" => {
                self.delay = value.delay(key)?;
                if self.delay.is_zero() {
                    return Err(Error::msg("retry-delay cannot be 0"));
                }
            }
            "retry-exponential" => self.exponential = value.boolean()?,
            "retry-readonly" => self.force_readonly = value.boolean()?,
            _ => return next.config(key, value),
        }
        Ok(())
    }

    /// No request may be in progress below while the layers are reopened.
    fn thread_model(&self, _: ThreadModel) -> Result<ThreadModel> {
        Ok(ThreadModel::SerializeRequests)
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        let mut delays = self.delays().zip(1..);
        while let Err(error) = below.open_to_reopen(open) {
            let Some(delay) = delays.next() else { return Err(error) };
            wait(open.client.map(|client| &**client), delay)?;
        }
        Ok(Box::new(Handle {
            parameters: *self,
            client: open.client.cloned(),
            readonly: open.readonly || self.force_readonly,
            is_open: AtomicBool::new(true),
        }))
    }
}

impl Retry {
    /// How long to wait before each retry.
    fn delays(&self) -> impl Iterator<Item = Duration> {
        let factor = if self.exponential { 2 } else { 1 };
        let next = move |delay: &Duration| Some(delay.saturating_mul(factor));
        std::iter::successors(Some(self.delay), next).take(self.retries as usize)
    }
}

/// Waits before the retry of this number.
///
/// # Errors
/// ESHUTDOWN: the client has gone, or the server stops.
fn wait(client: Option<&Client>, (delay, number): (Duration, u32)) -> Result<()> {
    debug!("retry {number}: waiting {} seconds before retrying", delay.as_secs_f64());
    client::sleep(client, delay)
}

struct Handle {
    parameters: Retry,
    client: Option<Arc<Client>>,
    /// How the layers below are reopened.
    readonly: bool,
    /// False after a reopening that failed. Requests come one at a time.
    is_open: AtomicBool,
}

/// How an attempt failed.
enum Failure {
    /// Reopening may help.
    Retry(Error),
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Retry(error)
    }
}

impl Handle {
    /// Makes attempts until one succeeds, as often as the parameters allow.
    fn retry(&self, next: &Next, mut attempt: impl FnMut() -> Result<(), Failure>) -> Result<()> {
        let mut delays = self.parameters.delays().zip(1..);
        loop {
            let result = if self.is_open.load(Ordering::Relaxed) {
                attempt()
            } else {
                Err(Failure::Retry(Error::silent(Errno::ESHUTDOWN)))
            };
            let error = match result {
                Ok(()) => return Ok(()),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Retry(error)) => error,
            };
            let Some(delay) = delays.next() else { return Err(error) };
            wait(self.client.as_deref(), delay)?;
            // A failure has been logged by the layer that failed.
            self.is_open.store(next.reopen(self.readonly).is_ok(), Ordering::Relaxed);
        }
    }
}

/// Checks that a range lies within the disk, which may have another size than when the client came.
/// The next reopening may find the old size again.
fn check_range(next: &Next, count: u64, offset: u64, beyond: Errno) -> Result<(), Failure> {
    let size = next.size()?;
    if offset > size || count > size - offset {
        return Err(Failure::Retry(Error::silent(beyond)));
    }
    Ok(())
}

/// Checks that a range may be written: not if the layers were reopened read-only.
fn check_write(next: &Next, count: u64, offset: u64) -> Result<(), Failure> {
    if !next.can_write()? {
        return Err(Failure::Final(Error::silent(Errno::EROFS)));
    }
    check_range(next, count, offset, Errno::ENOSPC)
}

impl OpenLayer for Handle {
    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.retry(next, || {
            check_range(next, buf.len() as u64, offset, Errno::EIO)?;
            Ok(next.pread(buf, offset)?)
        })
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.retry(next, || {
            check_write(next, buf.len() as u64, offset)?;
            Ok(next.pwrite(buf, offset, flags)?)
        })
    }

    fn flush(&self, next: &Next) -> Result<()> {
        self.retry(next, || Ok(next.flush()?))
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.retry(next, || {
            check_write(next, count, offset)?;
            Ok(next.trim(count, offset, flags)?)
        })
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.retry(next, || {
            check_write(next, count, offset)?;
            Ok(next.zero(count, offset, flags)?)
        })
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        self.retry(next, || {
            check_range(next, count, offset, Errno::EIO)?;
            // An attempt that fails may have added some.
            let mut found = Extents::new(extents.start(), extents.end());
            next.extents(count, offset, flags, &mut found)?;
            Ok(extents.add_shifted(&found, 0)?)
        })
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        self.retry(next, || {
            check_range(next, count, offset, Errno::EIO)?;
            Ok(next.cache(count, offset)?)
        })
    }

    fn blocking(&self) -> Blocking {
        Blocking::Long
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};

    #[test]
    fn parameters_are_checked() {
        for (key, value, why) in [
            ("retries", "-1", "retries: negative numbers are not allowed"),
            ("retry-delay", "0", "retry-delay cannot be 0"),
            ("retry-delay", "-1", "retry-delay: "),
            ("retry-exponential", "x", "could not decipher boolean (x)"),
            ("retry-readonly", "x", "could not decipher boolean (x)"),
        ] {
            let message = testing::config_error("retry", &[(key, value)]);
            assert!(message.starts_with(why), "{key}={value}: {message}");
        }
    }

    #[test]
    fn by_default_a_request_is_given_up_after_about_a_minute() {
        let seconds =
            |retry: Retry| retry.delays().map(|delay| delay.as_secs()).collect::<Vec<_>>();
        assert_eq!(seconds(Retry::default()), [2, 4, 8, 16, 32]);
        let constant = Retry { retries: 3, exponential: false, ..Retry::default() };
        assert_eq!(seconds(constant), [2, 2, 2]);
        assert_eq!(seconds(Retry { retries: 0, ..Retry::default() }), [0; 0]);
        // The sum does not overflow.
        let longest =
            Retry { retries: 200, delay: Duration::from_secs(u32::MAX.into()), ..Retry::default() };
        assert_eq!(longest.delays().last(), Some(Duration::MAX));
    }

    #[test]
    fn a_request_that_fails_for_good_fails_after_the_last_retry_with_its_own_error() {
        let disk = Arc::new(Disk { fail_reads: Some(Errno::ENOMEM), ..Disk::new(512) });
        let params = [("retries", "2"), ("retry-delay", "1"), ("retry-exponential", "no")];
        let backend = testing::backend(&disk, &["retry"], &params);
        disk.take_calls();
        let start = std::time::Instant::now();
        assert_eq!(backend.pread(&mut [0], 7).unwrap_err().errno(), Errno::ENOMEM);
        assert!(start.elapsed() >= Duration::from_secs(2));
        let attempt = ["pread 1@7", "open \"one\" readonly=false"];
        assert_eq!(
            disk.take_calls(),
            [attempt, attempt].concat().into_iter().chain(["pread 1@7"]).collect::<Vec<_>>()
        );
        // Others are not affected.
        backend.pwrite(b"x", 0, Flags::FUA).unwrap();
        assert_eq!(disk.take_calls(), ["pwrite 1@0 FUA"]);
    }

    #[test]
    fn after_a_failure_a_disk_may_be_read_only() {
        let disk = Arc::new(Disk { fail_reads: Some(Errno::EIO), ..Disk::new(512) });
        let params = [("retries", "1"), ("retry-delay", "1"), ("retry-readonly", "yes")];
        let backend = testing::backend(&disk, &["retry"], &params);
        backend.pwrite(b"x", 0, Flags::empty()).unwrap();
        disk.take_calls();
        backend.pread(&mut [0], 0).unwrap_err();
        assert_eq!(disk.take_calls()[1], "open \"one\" readonly=true");
        assert_eq!(backend.pwrite(b"x", 0, Flags::empty()).unwrap_err().errno(), Errno::EROFS);
        assert_eq!(disk.take_calls(), [""; 0]);
    }
}
