//! nbdkit-delay-filter(1): makes requests slow.

use std::sync::Arc;
use std::time::Duration;

use nbdkit_api::{
    Blocking, Client, DataPath, Direction, Errno, Error, Extents, Filter, Flags, Next, NextConfig,
    Open, OpenLayer, Result, Slot, Value, client,
};

/// The filter: how long each operation takes.
#[derive(Debug, Clone, Copy)]
pub struct Delay {
    read: Duration,
    write: Duration,
    zero: Duration,
    trim: Duration,
    extents: Duration,
    cache: Duration,
    open: Duration,
    close: Duration,
    /// False: a fast zero fails at once rather than after the delay.
    fast_zero: bool,
}

impl Default for Delay {
    fn default() -> Delay {
        let none = Duration::ZERO;
        Delay {
            read: none,
            write: none,
            zero: none,
            trim: none,
            extents: none,
            cache: none,
            open: none,
            close: none,
            fast_zero: true,
        }
    }
}

impl Filter for Delay {
    fn name(&self) -> &str {
        "delay"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit delay filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "rdelay=<NN>[ms|us|ns]          Read delay in seconds or the given unit.\n\
             delay-read=<NN>[ms|us|ns]      The same.\n\
             delay-write=<NN>[ms|us|ns]     Write delay.\n\
             delay-zero=<NN>[ms|us|ns]      Zero delay.\n\
             delay-trim=<NN>[ms|us|ns]      Trim delay.\n\
             delay-extents=<NN>[ms|us|ns]   Extents delay.\n\
             delay-cache=<NN>[ms|us|ns]     Cache delay.\n\
             wdelay=<NN>[ms|us|ns]          Write, zero and trim delay.\n\
             delay-fast-zero=<BOOL>         Delay fast zero requests (default true).\n\
             delay-open=<NN>[ms|us|ns]      Open delay.\n\
             delay-close=<NN>[ms|us|ns]     Close delay.",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        // Programs look for nbdkit's words.
        let delay = || {
            let text = value.str()?;
            value.delay(key).map_err(|_| {
                Error::msg(format!(
                    "{key}: could not parse number: \"{text}\": not a delay such as 10, 1.5s or 100ms"
                ))
            })
        };
        match key {
            "rdelay" | "delay-read" | "delay-reads" => self.read = delay()?,
            "wdelay" => {
                self.write = delay()?;
                self.zero = self.write;
                self.trim = self.write;
            }
            "delay-write" | "delay-writes" => self.write = delay()?,
            "delay-zero" | "delay-zeroes" => self.zero = delay()?,
            "delay-trim" | "delay-trims" | "delay-discard" | "delay-discards" => {
                self.trim = delay()?;
            }
            "delay-extent" | "delay-extents" => self.extents = delay()?,
            "delay-cache" => self.cache = delay()?,
            "delay-fast-zero" => self.fast_zero = value.boolean()?,
            "delay-open" => self.open = delay()?,
            "delay-close" => self.close = delay()?,
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        let handle = Handle { client: open.client.map(Arc::clone), delay: *self };
        handle.sleep(self.open)?;
        below.open(open)?;
        Ok(Box::new(Closing(handle)))
    }
}

struct Handle {
    client: Option<Arc<Client>>,
    delay: Delay,
}

impl Handle {
    fn sleep(&self, duration: Duration) -> Result<()> {
        if duration.is_zero() { Ok(()) } else { client::sleep(self.client.as_deref(), duration) }
    }

    fn fails_fast_zeroes(&self) -> bool {
        !self.delay.fast_zero && !self.delay.zero.is_zero()
    }
}

/// An open connection, whose close is delayed. A connection that could not be opened is not.
struct Closing(Handle);

impl Drop for Closing {
    fn drop(&mut self) {
        // Cut short if the client does not wait for the close, as the manual says.
        let _ = self.0.sleep(self.0.delay.close);
    }
}

impl OpenLayer for Closing {
    fn can_fast_zero(&self, next: &Next) -> Result<bool> {
        if self.0.fails_fast_zeroes() { Ok(true) } else { next.can_fast_zero() }
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.sleep(self.0.delay.read)?;
        next.pread(buf, offset)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.0.sleep(self.0.delay.write)?;
        next.pwrite(buf, offset, flags)
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.0.sleep(self.0.delay.trim)?;
        next.trim(count, offset, flags)
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        if flags.contains(Flags::FAST_ZERO) && self.0.fails_fast_zeroes() {
            return Err(Error::silent(Errno::EOPNOTSUPP));
        }
        self.0.sleep(self.0.delay.zero)?;
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
        self.0.sleep(self.0.delay.extents)?;
        next.extents(count, offset, flags, extents)
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        self.0.sleep(self.0.delay.cache)?;
        next.cache(count, offset)
    }

    fn data_path(&self, direction: Direction) -> DataPath {
        let delay = match direction {
            Direction::Read => self.0.delay.read,
            Direction::Write => self.0.delay.write,
        };
        if delay.is_zero() { DataPath::Transparent } else { DataPath::Opaque }
    }

    fn blocking(&self) -> Blocking {
        let d = &self.0.delay;
        let delays = [d.read, d.write, d.zero, d.trim, d.extents, d.cache];
        if delays.iter().all(Duration::is_zero) { Blocking::Never } else { Blocking::Long }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::time::Instant;

    fn takes(delay: Duration, what: impl FnOnce()) {
        let start = Instant::now();
        what();
        let took = start.elapsed();
        assert!(took >= delay && took < delay + Duration::from_secs(5), "{took:?}");
    }

    #[test]
    fn each_operation_waits_its_own_delay() {
        let disk = Arc::new(Disk::new(4096));
        let none = Flags::empty();
        let ms = Duration::from_millis;
        let backend = testing::backend(
            &disk,
            &["delay"],
            &[
                ("rdelay", "10ms"),
                ("delay-writes", "20ms"),
                ("delay-zeroes", "30ms"),
                ("delay-discard", "40ms"),
                ("delay-extent", "50ms"),
                ("delay-cache", "60000us"),
            ],
        );
        assert_eq!(backend.blocking(), Blocking::Long);
        assert!(backend.try_pread(&mut [0], 0).is_none());
        takes(ms(10), || backend.pread(&mut [0], 0).unwrap());
        takes(ms(20), || backend.pwrite(b"x", 0, none).unwrap());
        takes(ms(30), || backend.zero(1, 0, none).unwrap());
        takes(ms(40), || backend.trim(1, 0, none).unwrap());
        takes(ms(50), || drop(testing::extents_of(&backend, 1, 0)));
        takes(ms(60), || backend.cache(1, 0).unwrap());
        takes(ms(0), || backend.flush().unwrap());
    }

    #[test]
    fn opening_and_closing_are_delayed() {
        let disk = Arc::new(Disk::new(4096));
        let layer =
            testing::layer(&disk, &["delay"], &[("delay-open", "30ms"), ("delay-close", "0.04")]);
        takes(Duration::from_millis(70), || drop(testing::open(&layer)));
    }

    #[test]
    fn wdelay_is_three_delays_and_reads_stay_fast() {
        let disk = Arc::new(Disk::new(4096));
        let backend = testing::backend(&disk, &["delay"], &[("wdelay", "20ms")]);
        takes(Duration::from_millis(60), || {
            backend.pwrite(b"x", 0, Flags::empty()).unwrap();
            backend.zero(1, 0, Flags::empty()).unwrap();
            backend.trim(1, 0, Flags::empty()).unwrap();
        });
        assert!(backend.try_pread(&mut [0], 0).is_some());
    }

    #[test]
    fn fast_zeroes_fail_at_once_if_wanted() {
        let disk = Arc::new(Disk { fast_zero: false, ..Disk::new(4096) });
        let params = [("delay-zero", "10"), ("delay-fast-zero", "false")];
        let backend = testing::backend(&disk, &["delay"], &params);
        assert!(backend.can_fast_zero().unwrap());
        takes(Duration::ZERO, || {
            assert!(backend.zero(1, 0, Flags::FAST_ZERO).unwrap_err().is_unsupported());
        });
        let backend = testing::backend(&disk, &["delay"], &[("delay-fast-zero", "false")]);
        assert!(!backend.can_fast_zero().unwrap());
    }

    #[test]
    fn bad_delays_are_refused() {
        for bad in ["foo", "-1", "1m", ""] {
            testing::config_error("delay", &[("wdelay", bad)]);
        }
    }
}
