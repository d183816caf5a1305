//! nbdkit-spinning-filter(1): takes as long as the heads of a hard disk take to get to the data.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::Duration;

use nbdkit_api::{
    Blocking, Client, DataPath, Direction, Error, Filter, Flags, Next, NextConfig, Open, OpenLayer,
    Result, Slot, Value, client, log,
};

/// Most heads.
const HEADS: u32 = 64;
/// So near to where a head is that it need not move, bytes.
const NEAR: u64 = 128 << 10;

/// The filter: heads, and how fast they move.
#[derive(Debug, Clone, Copy)]
pub struct Spinning {
    heads: u32,
    /// Whether each head has an arm of its own.
    separate: bool,
    /// For the shortest way, half and all of the way across a head's range.
    seek: [Duration; 3],
}

impl Default for Spinning {
    fn default() -> Spinning {
        let seek = [10, 200, 500].map(Duration::from_millis);
        Spinning { heads: 1, separate: false, seek }
    }
}

impl Filter for Spinning {
    fn name(&self) -> &str {
        "spinning"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit spinning filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "heads=<N>               Number of heads, 1 to 64 (default 1).\n\
             separate-heads=<BOOL>   Whether heads move independently (default false).\n\
             min-seek-time=<NN>[ms|us|ns]  Shortest seek (default 10ms).\n\
             half-seek-time=<NN>[ms|us|ns] Seek across half of the disk (default 200ms).\n\
             max-seek-time=<NN>[ms|us|ns]  Seek across the disk (default 500ms).",
        )
    }

    fn debug_flags(&self) -> &'static [&'static str] {
        &["verbose"]
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "heads" => {
                self.heads = value.integer(key)?;
                if !(1..=HEADS).contains(&self.heads) {
                    return Err(Error::msg(format!("heads: must be 1 to {HEADS}")));
                }
            }
            "separate-heads" => self.separate = value.boolean()?,
            "min-seek-time" => self.seek[0] = value.delay(key)?,
            "half-seek-time" => self.seek[1] = value.delay(key)?,
            "max-seek-time" => self.seek[2] = value.delay(key)?,
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        if !self.seek.is_sorted() {
            return Err(Error::msg(
                "min-seek-time must not be more than half-seek-time, nor that more than \
                 max-seek-time",
            ));
        }
        next.config_complete()
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(Handle::new(*self, open.client.cloned())))
    }
}

impl Spinning {
    /// How long the way across `part` of a head's range takes, 0 to 1: a parabola.
    fn seek_time(&self, part: f64) -> Duration {
        let [min, half, max] = self.seek.map(|time| time.as_secs_f64());
        let a = 2.0 * (max - 2.0 * half + min);
        let b = 2.0 * (half - min - a / 4.0);
        Duration::from_secs_f64((a * part * part + b * part + min).clamp(0.0, max))
    }
}

struct Handle {
    client: Option<Arc<Client>>,
    disk: Spinning,
    /// Bytes of the disk; set when the layer is prepared.
    size: OnceLock<u64>,
    /// Where each arm is in the ranges of its heads, bytes from their beginning.
    arms: Vec<Mutex<u64>>,
}

impl Handle {
    fn new(disk: Spinning, client: Option<Arc<Client>>) -> Handle {
        let arms = if disk.separate { disk.heads } else { 1 };
        let arms = (0..arms).map(|_| Mutex::default()).collect();
        Handle { client, disk, size: OnceLock::new(), arms }
    }

    /// Waits until a head is at the beginning of a request. Requests to one arm wait for each
    /// other.
    fn seek(&self, count: u64, offset: u64) -> Result<()> {
        let (_arm, time) = self.moved(count, offset);
        if time.is_zero() {
            return Ok(());
        }
        if log::flag("spinning", "verbose") != 0 {
            log::debug(&format!("spinning: seek to {offset}: {time:?}"));
        }
        client::sleep(self.client.as_deref(), time)
    }

    /// Moves an arm through a request: the arm, to be kept as long as it moves, and how long the
    /// way to the request's beginning takes.
    fn moved(&self, count: u64, offset: u64) -> (MutexGuard<'_, u64>, Duration) {
        let way = self.way(count, offset);
        let mut at = self.arms[way.arm].lock().unwrap_or_else(PoisonError::into_inner);
        let time = self.time(*at, &way);
        *at = way.end;
        (at, time)
    }

    fn way(&self, count: u64, offset: u64) -> Way {
        let size = self.size.get().copied().unwrap_or_default();
        let heads = u64::from(self.disk.heads).min(size).max(1);
        let range = size / heads;
        let head = offset.checked_div(range).unwrap_or(0).min(heads - 1);
        // The last head has what is left.
        let length = if head == heads - 1 { size - head * range } else { range };
        let begin = offset - head * range;
        let arm = if self.disk.separate { head as usize } else { 0 };
        Way { arm, begin, end: (begin + count).min(length), length }
    }

    /// How long the arm takes to the beginning from where it is.
    fn time(&self, at: u64, way: &Way) -> Duration {
        let distance = way.begin.abs_diff(at);
        let part = distance as f64 / way.length as f64;
        if distance > NEAR { self.disk.seek_time(part) } else { Duration::ZERO }
    }
}

/// Where an arm goes for a request.
struct Way {
    arm: usize,
    /// Of the request, bytes from the beginning of the head's range.
    begin: u64,
    end: u64,
    /// Of the head's range, bytes.
    length: u64,
}

impl OpenLayer for Handle {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        let _ = self.size.set(next.size()?);
        Ok(())
    }

    fn is_rotational(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn can_multi_conn(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.seek(buf.len() as u64, offset)?;
        next.pread(buf, offset)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.seek(buf.len() as u64, offset)?;
        next.pwrite(buf, offset, flags)
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.seek(count, offset)?;
        next.zero(count, offset, flags)
    }

    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Opaque
    }

    fn blocking(&self) -> Blocking {
        Blocking::Long
    }

    /// What is near to where the arm is.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let way = self.way(buf.len() as u64, offset);
        let mut at = match self.arms[way.arm].try_lock() {
            Ok(at) => at,
            Err(TryLockError::Poisoned(at)) => at.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if !self.time(*at, &way).is_zero() {
            return None;
        }
        let result = next.try_pread(buf, offset)?;
        *at = way.end;
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::sync::atomic::Ordering;
    use std::time::Instant;

    const SIZE: u64 = 8 << 20;

    fn disk(heads: u32, separate: bool) -> Handle {
        let handle = Handle::new(Spinning { heads, separate, ..Spinning::default() }, None);
        handle.size.set(SIZE).unwrap();
        handle
    }

    /// Goes to each offset, and says which of the ways took time.
    fn delayed(disk: &Handle, offsets: &[u64]) -> Vec<bool> {
        offsets.iter().map(|offset| !disk.moved(1, *offset).1.is_zero()).collect()
    }

    #[test]
    fn the_curve_goes_through_the_three_times() {
        for seek in [[10, 200, 500], [0, 0, 0], [5, 8, 9], [0, 90, 100]] {
            let seek = seek.map(Duration::from_millis);
            let disk = Spinning { seek, ..Spinning::default() };
            for (part, expected) in [0.0, 0.5, 1.0].into_iter().zip(seek) {
                let difference = disk.seek_time(part).as_secs_f64() - expected.as_secs_f64();
                assert!(difference.abs() < 1e-6, "{seek:?} at {part}");
            }
            assert!((0..=100).all(|part| disk.seek_time(f64::from(part) / 100.0) <= seek[2]));
        }
    }

    #[test]
    fn far_ways_take_time_and_near_ones_none() {
        let disk = disk(1, false);
        let offsets = [0, NEAR, 4 << 20, (4 << 20) + 1, SIZE - 1, SIZE - 1];
        assert_eq!(delayed(&disk, &offsets), [false, false, true, false, true, false]);
        assert_eq!(disk.moved(1, 0).1.as_millis(), 500);
        assert_eq!(disk.moved(1, 4 << 20).1.as_millis(), 199);
        // What is read in order is near.
        let in_order = (4..8).map(|at| disk.moved(1 << 20, at << 20).1);
        assert!(in_order.into_iter().all(|time| time.is_zero()));
    }

    #[test]
    fn near_reads_need_not_wait_and_only_what_was_read_moves_an_arm() {
        for cached in [true, false] {
            let disk = Disk { blocking: Blocking::Short, ..Disk::new(SIZE as usize) };
            disk.cached.store(cached, Ordering::Relaxed);
            let disk = Arc::new(disk);
            let next = testing::backend(&disk, &["spinning"], &[]);
            let now = |offset| next.try_pread(&mut [0; 1024], offset).is_some();
            // The second is near to the first, not to where the arm was at first.
            assert_eq!([now(NEAR), now(2 * NEAR)], [cached, cached]);
            assert!(!now(4 << 20));
            assert_eq!(now(2 * NEAR + 1024), cached);
        }
    }

    #[test]
    fn heads_on_one_arm_move_together_and_others_do_not() {
        // Two heads of 4 MiB each: to one arm, 1 MiB and 5 MiB are the same.
        let offsets = [1 << 20, 5 << 20, 0, 4 << 20, 1 << 20];
        assert_eq!(delayed(&disk(2, false), &offsets), [true, false, true, false, true]);
        let separate = disk(2, true);
        assert_eq!(delayed(&separate, &offsets), [true; 5]);
        assert_eq!(delayed(&separate, &[1 << 20, 4 << 20, 1 << 20]), [false; 3]);
    }

    #[test]
    fn reads_writes_and_zeroes_wait_and_nothing_else() {
        let disk = Arc::new(Disk::new(SIZE as usize));
        let next = testing::backend(&disk, &["spinning"], &[]);
        let takes = |what: &dyn Fn()| {
            let start = Instant::now();
            what();
            start.elapsed()
        };
        let none = Flags::empty();
        assert!(takes(&|| next.pread(&mut [0], SIZE - 1).unwrap()) >= Duration::from_millis(490));
        assert!(takes(&|| next.pwrite(&[0], 0, none).unwrap()) >= Duration::from_millis(490));
        assert!(takes(&|| next.zero(1, SIZE - 1, none).unwrap()) >= Duration::from_millis(490));
        next.trim(1, 0, none).unwrap();
        next.flush().unwrap();
        assert!(!next.can_multi_conn().unwrap() && next.is_rotational().unwrap());
    }

    #[test]
    fn disks_of_few_bytes_have_few_heads() {
        for size in [0, 1, 63] {
            let disk = Arc::new(Disk::new(size));
            let layer = testing::layer(&disk, &["spinning"], &[("heads", "64")]);
            let next = testing::open(&layer);
            (0..size as u64).for_each(|at| next.pread(&mut [0], at).unwrap());
        }
    }

    #[test]
    fn bad_parameters_are_refused() {
        for heads in ["0", "65", "-1"] {
            testing::config_error("spinning", &[("heads", heads)]);
        }
        let error = testing::config_error("spinning", &[("min-seek-time", "1s")]);
        assert!(error.contains("half-seek-time"), "{error}");
    }
}
