//! nbdkit-stats-filter(1): counts operations and writes a summary when the server ends.
//!
//! Workers count in shared words; the template, which opened the file, writes the summary.

mod counters;
mod report;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbdkit_api::{
    DataPath, Direction, Error, Extents, Filter, Flags, Layer, Next, NextConfig, Open, OpenLayer,
    Result, ResultExt, Slot, ThreadModel, Value,
};

use counters::{Counters, Operation};

/// The filter: its parameters and, once ready, what it counts and where that will go.
#[derive(Debug)]
pub struct Stats {
    path: Option<PathBuf>,
    append: bool,
    /// Percentage of requests that the histograms should cover; 0 for no histograms.
    threshold: u32,
    ready: Option<Ready>,
}

#[derive(Debug)]
struct Ready {
    file: File,
    counters: Arc<Counters>,
    start: Instant,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats { path: None, append: false, threshold: 95, ready: None }
    }
}

impl Filter for Stats {
    fn name(&self) -> &str {
        "stats"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit stats filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "statsfile=<FILE>    (required) The file to place the log in.\n\
             statsappend=<BOOL>  True to append to the log (default false).\n\
             statsthreshold=<PERCENTILE>\n\
             \x20                   How much of the requests histograms show (default 95, 0 = none).",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "statsfile" => self.path = Some(value.absolute_path()?),
            "statsappend" => self.append = value.boolean()?,
            "statsthreshold" => {
                self.threshold = value.integer("printing threshold")?;
                if self.threshold > 100 {
                    return Err(Error::msg("statsthreshold must be between 0 and 100 (percent)"));
                }
            }
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        if self.path.is_none() {
            return Err(Error::msg("stats filter requires statsfile parameter"));
        }
        next.config_complete()
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let append = self.append || nbdkit_api::client::is_replacement();
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .append(append)
            .truncate(!append)
            .open(path)
            .or_error(|| format!("open: {}", path.display()))?;
        let counters = Arc::new(Counters::new(self.threshold > 0)?);
        self.ready = Some(Ready { file, counters, start: Instant::now() });
        Ok(())
    }

    fn cleanup(&self, _: &Arc<Layer>) {
        let Some(ready) = &self.ready else { return };
        let summary = report::render(&ready.counters, ready.start.elapsed(), self.threshold);
        if let Err(error) = (&ready.file).write_all(summary.as_bytes()) {
            let path = self.path.as_deref().unwrap_or("".as_ref()).display();
            nbdkit_api::error!("write: {path}: {error}");
        }
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let ready =
            self.ready.as_ref().ok_or_else(|| Error::msg("stats: opened before get_ready"))?;
        Ok(Box::new(Handle { counters: Arc::clone(&ready.counters) }))
    }
}

struct Handle {
    counters: Arc<Counters>,
}

impl Handle {
    /// Does a request and counts it if that succeeds.
    fn counted(
        &self,
        operation: Operation,
        count: u64,
        offset: u64,
        request: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        request()?;
        self.counters.add(operation, count, offset, start.elapsed());
        Ok(())
    }
}

impl OpenLayer for Handle {
    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let count = buf.len() as u64;
        self.counted(Operation::Read, count, offset, || next.pread(buf, offset))
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let count = buf.len() as u64;
        self.counted(Operation::Write, count, offset, || next.pwrite(buf, offset, flags))
    }

    fn flush(&self, next: &Next) -> Result<()> {
        self.counted(Operation::Flush, 0, 0, || next.flush())
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.counted(Operation::Trim, count, offset, || next.trim(count, offset, flags))
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.counted(Operation::Zero, count, offset, || next.zero(count, offset, flags))
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        self.counted(Operation::Extents, count, offset, || {
            next.extents(count, offset, flags, extents)
        })
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        self.counted(Operation::Cache, count, offset, || next.cache(count, offset))
    }

    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Watched
    }

    fn passed(&self, direction: Direction, count: u64, offset: u64, took: Duration, done: bool) {
        let operation = match direction {
            Direction::Read => Operation::Read,
            Direction::Write => Operation::Write,
        };
        if done {
            self.counters.add(operation, count, offset, took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use nbdkit_api::Errno;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("stats-filter-{}-{name}", std::process::id()))
    }

    #[test]
    fn successful_requests_are_counted_and_written_at_the_end() {
        let file = path("end");
        let disk = Arc::new(Disk::new(1 << 20));
        let params = [("statsfile", file.to_str().unwrap()), ("statsthreshold", "0")];
        let layer = testing::layer(&disk, &["stats"], &params);
        let backend = testing::open(&layer);
        backend.pread(&mut [0; 512], 0).unwrap();
        backend.try_pread(&mut [0; 1536], 0).unwrap().unwrap();
        backend.pwrite(&[0; 1024], 0, Flags::empty()).unwrap();
        backend.flush().unwrap();
        drop(backend);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
        layer.cleanup();
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let starts: Vec<_> = text.lines().map(|l| l.split(" s, ").next().unwrap()).collect();
        assert_eq!(starts.len(), 4);
        assert!(starts[0].starts_with("total: 4 ops, "));
        assert!(starts[1].starts_with("read: 2 ops, "));
        assert!(text.contains(" s, 2.00 KiB, "));
        assert!(starts[3].starts_with("flush: 1 ops, "));
    }

    #[test]
    fn failures_are_not_counted() {
        let file = path("failures");
        let disk = Arc::new(Disk { fail_reads: Some(Errno::EIO), ..Disk::new(512) });
        let params = [("statsfile", file.to_str().unwrap())];
        let layer = testing::layer(&disk, &["stats"], &params);
        testing::open(&layer).pread(&mut [0], 0).unwrap_err();
        layer.cleanup();
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(text.starts_with("total: 0 ops, "), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn appending_keeps_what_is_there() {
        let file = path("append");
        std::fs::write(&file, "old\n").unwrap();
        let disk = Arc::new(Disk::new(512));
        let params = [("statsfile", file.to_str().unwrap()), ("statsappend", "1")];
        testing::layer(&disk, &["stats"], &params).cleanup();
        assert!(std::fs::read_to_string(&file).unwrap().starts_with("old\ntotal: "));
        testing::layer(&disk, &["stats"], &params[..1]).cleanup();
        assert!(std::fs::read_to_string(&file).unwrap().starts_with("total: "));
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn bad_parameters_say_why() {
        for (params, why) in [
            (&[][..], "stats filter requires statsfile parameter"),
            (
                &[("statsfile", "x"), ("statsthreshold", "101")],
                "statsthreshold must be between 0 and 100 (percent)",
            ),
            (&[("statsfile", "/nonexistent/x")], "open: /nonexistent/x: No such file or directory"),
        ] {
            assert_eq!(testing::config_error("stats", params), why);
        }
    }
}
