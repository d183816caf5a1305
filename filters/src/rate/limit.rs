//! One of the two limits: its parameters, and the rate that they and a file give now.

use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nbdkit_api::paths::{self, Declared};
use nbdkit_api::shared::Rate;
use nbdkit_api::{Error, Result, ResultExt, Value, parse};

/// How often a file is looked at, at most.
const INTERVAL: Duration = Duration::from_millis(100);

/// The longest first line of a file that is read.
const LONGEST_LINE: usize = 64;

/// Bits that requests of all clients may have taken and not yet waited for: 64 GiB. A worker that
/// writes a wrong amount to the bucket makes others wait for no more than that.
const OWED: u64 = 1 << 39;

/// Where the rate comes from.
#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    rate: Option<NonZeroU64>,
    pub(super) path: Option<PathBuf>,
}

impl Source {
    pub(super) fn set_rate(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        let rate = NonZeroU64::new(value.size()?)
            .ok_or_else(|| Error::msg(format!("{key} cannot be set to 0")))?;
        self.rate = Some(rate);
        Ok(())
    }

    /// Whether there is a limit, or may be one later.
    pub(super) fn may_limit(&self) -> bool {
        self.rate.is_some() || self.path.is_some()
    }

    pub(super) fn declared(&self) -> Option<Declared> {
        self.path.as_ref().map(|path| Declared::file(path).read_only(true))
    }
}

/// A limit as a connection has it.
#[derive(Debug)]
pub(super) struct Limit {
    rate: Option<NonZeroU64>,
    file: Option<Declared>,
    burstiness: f64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    looked: Option<Instant>,
    /// The rate in the file when it could be read last.
    rate: Option<NonZeroU64>,
    /// The last complaint, which is not repeated while the file stays as it is.
    complaint: String,
}

impl Limit {
    pub(super) fn new(source: &Source, burstiness: f64) -> Limit {
        let (rate, file) = (source.rate, source.declared());
        Limit { rate, file, burstiness, state: Mutex::default() }
    }

    /// The rate that holds now, `None` for no limit. `last`: the last one from the file, of any
    /// worker, 0 for none.
    pub(super) fn now(&self, last: &AtomicU64) -> Option<Rate> {
        self.of(self.file.as_ref().and_then(|file| self.file_rate(file, last)))
    }

    /// The rate that holds now, if it is known without a look at the file.
    pub(super) fn known(&self) -> Option<Option<Rate>> {
        let file_rate = match &self.file {
            None => None,
            Some(_) => {
                let state = self.state.try_lock().ok()?;
                state.looked.filter(|at| at.elapsed() < INTERVAL)?;
                state.rate
            }
        };
        Some(self.of(file_rate))
    }

    fn of(&self, file_rate: Option<NonZeroU64>) -> Option<Rate> {
        let per_second = file_rate.or(self.rate)?;
        let capacity = (per_second.get() as f64 * self.burstiness) as u64;
        Some(Rate { per_second, capacity, owed: OWED })
    }

    fn file_rate(&self, file: &Declared, last: &AtomicU64) -> Option<NonZeroU64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.is_some_and(|at| at.elapsed() < INTERVAL) {
            return state.rate;
        }
        if state.looked.is_none() {
            state.rate = NonZeroU64::new(last.load(Ordering::Relaxed));
        }
        state.looked = Some(Instant::now());
        match read(file) {
            Ok(Some(rate)) => {
                state.rate = Some(rate);
                state.complaint.clear();
                last.store(rate.get(), Ordering::Relaxed);
            }
            Ok(None) => {}
            Err(error) if error.message() == state.complaint => {}
            Err(error) => {
                nbdkit_api::error!("{error}");
                error.message().clone_into(&mut state.complaint);
            }
        }
        state.rate
    }
}

/// The rate in the first line of the file; `None` if there is no file, or the rate is 0.
///
/// # Errors
/// The line is no rate; the file cannot be read.
fn read(file: &Declared) -> Result<Option<NonZeroU64>> {
    // Most often because there is none yet, or no longer.
    let Ok(opened) = paths::open(file, None, true) else { return Ok(None) };
    let mut bytes = [0; LONGEST_LINE];
    let mut length = 0;
    while length < bytes.len() {
        let count = opened
            .file
            .read_at(&mut bytes[length..], length as u64)
            .or_error(|| format!("read: {}", opened.name))?;
        if count == 0 {
            break;
        }
        length += count;
    }
    let line = bytes[..length].split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let rate = parse::size(&line).map_err(|error| error.context(&opened.name))?;
    Ok(NonZeroU64::new(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rate once the interval is over.
    fn rate_of(limit: &Limit, last: &AtomicU64) -> Option<u64> {
        let mut state = limit.state.lock().unwrap();
        state.looked = state.looked.and_then(|at| at.checked_sub(INTERVAL));
        drop(state);
        limit.now(last).map(|rate| rate.per_second.get())
    }

    #[test]
    fn the_last_rate_in_the_file_holds_also_for_later_connections() {
        let dir = std::env::temp_dir().join(format!("nbdkit-rate-{}", std::process::id()));
        let source = Source { rate: NonZeroU64::new(7), path: Some(dir.clone()) };
        let limit = Limit::new(&source, 2.0);
        let last = AtomicU64::new(0);
        let known = |limit: &Limit| limit.known().map(|rate| rate.unwrap().per_second.get());
        assert_eq!(known(&limit), None, "nobody has looked");
        assert_eq!(rate_of(&limit, &last), Some(7), "no file");
        for (content, rate) in [
            ("2M\njunk", 2 << 20),
            ("junk", 2 << 20),
            ("0\n", 2 << 20),
            ("", 2 << 20),
            ("-5\n", 2 << 20),
            ("1K", 1 << 10),
        ] {
            std::fs::write(&dir, content).unwrap();
            assert_eq!(rate_of(&limit, &last), Some(rate), "{content:?}");
            // Unless it has been so long that the file has to be looked at again.
            assert!(known(&limit).is_none_or(|known| known == rate), "{content:?}");
        }
        std::fs::remove_file(&dir).unwrap();
        assert_eq!(rate_of(&limit, &last), Some(1 << 10), "deleted");
        assert_eq!(rate_of(&Limit::new(&source, 2.0), &last), Some(1 << 10), "a later connection");
        assert_eq!(limit.now(&last).unwrap().capacity, 2 << 10);
    }

    #[test]
    fn a_capacity_beyond_all_numbers_is_the_largest_one() {
        let source = Source { rate: NonZeroU64::new(i64::MAX as u64), path: None };
        assert_eq!(Limit::new(&source, 1e300).now(&AtomicU64::new(0)).unwrap().capacity, u64::MAX);
    }
}
