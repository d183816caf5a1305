//! Delays requests as the heads of a spinning disk would: nbdkit's spinning filter, which came with
//! 1.40. The heads are a connection's own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nbdkit_api::{
    Blocking, Client, Error, Filter, Flags, Next, NextConfig, Open, OpenLayer, Result, Slot, Value,
    client, debug, log,
};

/// The filter: its parameters.
#[derive(Debug, Clone, Copy)]
pub struct Spinning {
    heads: u32,
    /// Each head has an arm of its own.
    separate: bool,
    /// The time of the shortest seek, of one over half of a head's range, and over all of it.
    min: Duration,
    half: Duration,
    max: Duration,
}

impl Default for Spinning {
    fn default() -> Spinning {
        let ms = Duration::from_millis;
        Spinning { heads: 1, separate: false, min: ms(10), half: ms(200), max: ms(500) }
    }
}

const MOST_HEADS: u32 = 64;

/// Seeks over no more bytes than this take no time: the disk has them in its cache.
const NEAR: u64 = 128 << 10;

impl Filter for Spinning {
    fn name(&self) -> &str {
        "spinning"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit spinning filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "heads=<N>                  Number of heads, 1 to 64 (default 1).\n\
             separate-heads=<BOOL>      Heads move separately (default false).\n\
             min-seek-time=<DELAY>      Time of the shortest seek (default 10ms).\n\
             half-seek-time=<DELAY>     Time of a seek over half the disk (default 200ms).\n\
             max-seek-time=<DELAY>      Time of the longest seek (default 500ms).",
        )
    }

    fn debug_flags(&self) -> &'static [&'static str] {
        &["verbose"]
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "heads" => {
                self.heads = value.integer(key)?;
                if !(1..=MOST_HEADS).contains(&self.heads) {
                    return Err(Error::msg("heads must be between 1 and 64"));
                }
            }
            "separate-heads" => self.separate = value.boolean()?,
            "min-seek-time" => self.min = value.delay(key)?,
            "half-seek-time" => self.half = value.delay(key)?,
            "max-seek-time" => self.max = value.delay(key)?,
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let arms = if self.separate { self.heads } else { 1 };
        Ok(Box::new(Handle {
            parameters: *self,
            client: open.client.map(Arc::clone),
            arms: (0..arms).map(|_| Mutex::new(0)).collect(),
        }))
    }
}

impl Spinning {
    /// How long a seek over a part of a head's range takes, 0 to 1: the parabola through the three
    /// times.
    fn seek_time(&self, part: f64) -> Duration {
        let [min, half, max] = [self.min, self.half, self.max].map(|time| time.as_secs_f64());
        let a = 2.0 * (max - 2.0 * half + min);
        let b = 2.0 * (half - min - a / 4.0);
        let seconds = a * part * part + b * part + min;
        // Between strange times the parabola may be below 0.
        Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
    }

    /// The head of an offset, where its range begins, and how long that is; the last one has what
    /// is left over. `size` is not 0.
    fn head(&self, offset: u64, size: u64) -> (usize, u64, u64) {
        let heads = u64::from(self.heads).min(size);
        let range = size / heads;
        let head = (offset / range).min(heads - 1);
        let start = head * range;
        let length = if head == heads - 1 { size - start } else { range };
        (head as usize, start, length)
    }
}

struct Handle {
    parameters: Spinning,
    client: Option<Arc<Client>>,
    /// Where each arm is: bytes from the start of a head's range.
    arms: Vec<Mutex<u64>>,
}

impl Handle {
    /// Moves the head to `offset`, while others that need its arm wait.
    ///
    /// # Errors
    /// ESHUTDOWN: the client has gone or the server stops. Those of asking for the size.
    fn seek(&self, next: &Next, offset: u64) -> Result<()> {
        let size = next.size()?;
        if size == 0 {
            return Ok(());
        }
        let (head, start, length) = self.parameters.head(offset, size);
        let arm = &self.arms[if self.parameters.separate { head } else { 0 }];
        let mut position = arm.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = offset - start;
        let distance = position.abs_diff(wanted);
        *position = wanted;
        if distance <= NEAR {
            return Ok(());
        }
        // The last range may be longer than the one that the arm was in.
        let part = (distance as f64 / length as f64).min(1.0);
        let time = self.parameters.seek_time(part);
        if log::flag("spinning", "verbose") != 0 {
            debug!("spinning: head {head} seeks {distance} bytes to {offset}: {time:?}");
        }
        client::sleep(self.client.as_deref(), time)
    }
}

impl OpenLayer for Handle {
    fn is_rotational(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    /// Clients are to use one connection, whose heads are moved.
    fn can_multi_conn(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.seek(next, offset)?;
        next.pread(buf, offset)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.seek(next, offset)?;
        next.pwrite(buf, offset, flags)
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.seek(next, offset)?;
        next.zero(count, offset, flags)
    }

    fn blocking(&self) -> Blocking {
        Blocking::Long
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::time::Instant;

    const MIB: u64 = 1 << 20;

    #[test]
    fn seek_times_are_those_of_the_parameters() {
        let disk = Spinning::default();
        for (part, milliseconds) in [(0.0, 10), (0.5, 200), (1.0, 500)] {
            let time = disk.seek_time(part);
            assert!(time.abs_diff(Duration::from_millis(milliseconds)) < Duration::from_micros(1));
        }
        assert!(disk.seek_time(0.1) < disk.seek_time(0.2));
        let strange = Spinning { half: Duration::ZERO, max: Duration::ZERO, ..disk };
        assert_eq!(strange.seek_time(0.75), Duration::ZERO);
    }

    #[test]
    fn heads_share_the_disk() {
        let disk = Spinning { heads: 3, ..Spinning::default() };
        assert_eq!(disk.head(0, 100), (0, 0, 33));
        assert_eq!(disk.head(32, 100), (0, 0, 33));
        assert_eq!(disk.head(33, 100), (1, 33, 33));
        assert_eq!(disk.head(99, 100), (2, 66, 34));
        assert_eq!(disk.head(1, 2), (1, 1, 1));
    }

    fn took(what: impl FnOnce()) -> Duration {
        let start = Instant::now();
        what();
        start.elapsed()
    }

    #[test]
    fn far_requests_wait_and_near_ones_do_not() {
        let disk = Arc::new(Disk::new(4 << 20));
        let hour = "3600";
        let params = [("heads", "2"), ("min-seek-time", "0"), ("half-seek-time", hour)];
        let params = [&params[..], &[("max-seek-time", hour)]].concat();
        let near = testing::backend(&disk, &["spinning"], &params);
        near.pread(&mut [0], 100_000).unwrap();
        near.pwrite(&[0], 0, Flags::empty()).unwrap();
        // The other head, at nearly that offset within its range.
        near.pread(&mut [0], 2 * MIB + 1000).unwrap();
        near.trim(1, MIB, Flags::empty()).unwrap();
        near.cache(1, MIB).unwrap();
        assert!(near.is_rotational().unwrap() && !near.can_multi_conn().unwrap());

        let times =
            [("min-seek-time", "50ms"), ("half-seek-time", "50ms"), ("max-seek-time", "50ms")];
        let far = testing::backend(&disk, &["spinning"], &times);
        let wait = Duration::from_millis(50);
        assert!(took(|| far.pread(&mut [0], MIB).unwrap()) >= wait);
        assert!(took(|| far.pwrite(&[0], 0, Flags::empty()).unwrap()) >= wait);
        assert!(took(|| far.zero(1, 2 * MIB, Flags::empty()).unwrap()) >= wait);
    }

    #[test]
    fn separate_heads_stay_where_they_are() {
        let disk = Arc::new(Disk::new(4 << 20));
        let params = [("heads", "2"), ("separate-heads", "true"), ("min-seek-time", "20ms")];
        let backend = testing::backend(&disk, &["spinning"], &params);
        let read = |offset| took(|| backend.pread(&mut [0], offset).unwrap());
        let wait = Duration::from_millis(20);
        assert!(read(MIB) >= wait && read(3 * MIB + MIB / 2) >= wait);
        // With one arm, each of these would move it.
        let start = Instant::now();
        for _ in 0..1000 {
            read(MIB);
            read(3 * MIB + MIB / 2 + 5);
            read(MIB + 5);
            read(3 * MIB + MIB / 2);
        }
        assert!(start.elapsed() < 1000 * wait);
    }

    #[test]
    fn parameters_are_checked() {
        for (key, bad) in [("heads", "0"), ("heads", "65"), ("max-seek-time", "x")] {
            testing::config_error("spinning", &[(key, bad)]);
        }
    }
}
