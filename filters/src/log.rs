//! nbdkit-log-filter(1): writes every request and its outcome to a file, or tells a script.
//!
//! All workers append to one file that the template opened, one write per line. What counts
//! over connections is counted in shared words.

mod line;
mod sink;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nbdkit_api::{
    Blocking, Client, DataPath, Direction, Exports, Extents, Filter, Flags, Layer, Needs, Next,
    NextConfig, Open, OpenLayer, Result, Slot, ThreadModel, Value,
};

use line::{Entry, Kind};
use sink::{Counter, Sink};

/// The filter: its parameters and, once ready, where lines go.
#[derive(Debug, Default)]
pub struct Log {
    file: Option<PathBuf>,
    append: bool,
    script: Option<String>,
    /// `None` if there is nothing to log to.
    sink: Option<Arc<Sink>>,
}

impl Filter for Log {
    fn name(&self) -> &str {
        "log"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit log filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "logfile=<FILE>               The file to place the log in.\n\
             logappend=<BOOL>             True to append to the log (default false).\n\
             logscript=<SCRIPT>           Script to run for logging.",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "logfile" => self.file = Some(value.absolute_path()?),
            "logappend" => self.append = value.boolean()?,
            "logscript" => self.script = Some(value.str()?.to_owned()),
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn get_ready(&mut self, model: ThreadModel) -> Result<()> {
        if self.file.is_none() && self.script.is_none() {
            return Ok(());
        }
        let append = self.append || nbdkit_api::client::is_replacement();
        let sink = Sink::new(self.file.as_deref(), append, self.script.clone())?;
        sink.put(Entry::print("Ready").with("thread_model", model as i32));
        self.sink = Some(Arc::new(sink));
        Ok(())
    }

    fn after_fork(&self, _: &Arc<Layer>) -> Result<()> {
        if let Some(sink) = &self.sink
            && nbdkit_api::client::forked()
        {
            sink.put(Entry::print("Fork"));
        }
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        if self.script.is_some() { below.programs() } else { below }
    }

    fn preconnect(&self, below: &Arc<Layer>, client: &Arc<Client>, readonly: bool) -> Result<()> {
        let Some(sink) = &self.sink else { return below.preconnect(client, readonly) };
        let id = sink.count(Counter::Preconnect);
        sink.put(Entry::enter("Preconnect", id).flag("readonly", readonly));
        let result = below.preconnect(client, readonly);
        sink.put(Entry::leave("Preconnect", id).outcome(&result));
        result
    }

    fn list_exports(
        &self,
        below: &Arc<Layer>,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        let Some(sink) = &self.sink else {
            return below.list_exports(client, readonly, exports);
        };
        let id = sink.count(Counter::ListExports);
        sink.put(
            Entry::enter("ListExports", id).flag("readonly", readonly).flag("tls", client.is_tls()),
        );
        let result = below.list_exports(client, readonly, exports);
        let mut entry = Entry::leave("ListExports", id);
        if result.is_ok() {
            entry = entry.list("exports", line::export_list(exports));
        }
        sink.put(entry.outcome(&result));
        result
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let Some(sink) = &self.sink else { return Ok(Box::new(Inactive)) };
        Ok(Box::new(Handle {
            connection: sink.count(Counter::Connection),
            sink: Arc::clone(sink),
            requests: AtomicU64::new(0),
            export: open.export.to_owned(),
            tls: open.tls,
        }))
    }
}

/// A connection of a filter that has nowhere to log to.
struct Inactive;

impl OpenLayer for Inactive {
    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Transparent
    }
}

struct Handle {
    sink: Arc<Sink>,
    /// Counted over the life of the server.
    connection: u64,
    /// Requests so far; the last one's id.
    requests: AtomicU64,
    export: String,
    tls: bool,
}

impl Handle {
    /// Logs a request, does it, and logs how that went.
    fn logged(
        &self,
        action: &'static str,
        fields: impl FnOnce(Entry) -> Entry,
        request: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let id = self.enter(action, fields);
        let result = request();
        self.leave(action, id, &result);
        result
    }

    fn enter(&self, action: &'static str, fields: impl FnOnce(Entry) -> Entry) -> u64 {
        let id = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        self.sink.put(fields(Entry::enter(action, id).on(self.connection)));
        id
    }

    fn leave(&self, action: &'static str, id: u64, result: &Result<()>) {
        self.sink.put(Entry::leave(action, id).on(self.connection).outcome(result));
    }
}

fn range(entry: Entry, count: u64, offset: u64) -> Entry {
    entry.hex("offset", offset).hex("count", count)
}

impl OpenLayer for Handle {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        let block = next.block_size()?;
        self.sink.put(
            Entry::print("Connect")
                .on(self.connection)
                .quoted("export", &self.export)
                .flag("tls", self.tls)
                .hex("size", next.size()?)
                .hex("minsize", block.minimum.into())
                .hex("prefsize", block.preferred.into())
                .hex("maxsize", block.maximum.into())
                .flag("write", next.can_write()?)
                .flag("flush", next.can_flush()?)
                .flag("rotational", next.is_rotational()?)
                .flag("trim", next.can_trim()?)
                .with("zero", next.can_zero()? as i32)
                .with("fua", next.can_fua()? as i32)
                .flag("extents", next.can_extents()?)
                .with("cache", next.can_cache()? as i32)
                .flag("fast_zero", next.can_fast_zero()?),
        );
        Ok(())
    }

    fn finalize(&self, _: &Next) -> Result<()> {
        self.sink.put(
            Entry::print("Disconnect")
                .on(self.connection)
                .with("transactions", self.requests.load(Ordering::Relaxed)),
        );
        Ok(())
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let count = buf.len() as u64;
        self.logged("Read", |entry| range(entry, count, offset), || next.pread(buf, offset))
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.logged(
            "Write",
            |entry| range(entry, buf.len() as u64, offset).flag("fua", flags.contains(Flags::FUA)),
            || next.pwrite(buf, offset, flags),
        )
    }

    fn flush(&self, next: &Next) -> Result<()> {
        self.logged("Flush", |entry| entry, || next.flush())
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.logged(
            "Trim",
            |entry| range(entry, count, offset).flag("fua", flags.contains(Flags::FUA)),
            || next.trim(count, offset, flags),
        )
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.logged(
            "Zero",
            |entry| {
                range(entry, count, offset)
                    .flag("trim", flags.contains(Flags::MAY_TRIM))
                    .flag("fua", flags.contains(Flags::FUA))
                    .flag("fast", flags.contains(Flags::FAST_ZERO))
            },
            || next.zero(count, offset, flags),
        )
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        let id = self.enter("Extents", |entry| {
            range(entry, count, offset).flag("req_one", flags.contains(Flags::REQ_ONE))
        });
        let result = next.extents(count, offset, flags, extents);
        let mut entry = Entry::leave("Extents", id).on(self.connection);
        if result.is_ok() {
            entry = entry.list("extents", line::extent_list(extents));
        }
        self.sink.put(entry.outcome(&result));
        result
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        self.logged("Cache", |entry| range(entry, count, offset), || next.cache(count, offset))
    }

    fn blocking(&self) -> Blocking {
        if self.sink.runs_script() { Blocking::Long } else { Blocking::Short }
    }

    /// A read that did not block is logged when it is over, with the time when it began.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        if self.sink.runs_script() {
            return None;
        }
        let count = buf.len() as u64;
        let began = Entry::now(Kind::Enter, "Read");
        let result = next.try_pread(buf, offset)?;
        let id = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        self.sink.put(range(began.numbered(id).on(self.connection), count, offset));
        self.leave("Read", id, &result);
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use nbdkit_api::Errno;
    use std::path::Path;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("log-filter-{}-{name}", std::process::id()))
    }

    /// The lines without their timestamps, whose form is checked.
    fn lines(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::remove_file(path).unwrap();
        text.lines()
            .map(|line| {
                let (stamp, rest) = line.split_at(27);
                let digits: String =
                    stamp.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
                assert_eq!(digits, "0000-00-00 00:00:00.000000 ");
                rest.to_owned()
            })
            .collect()
    }

    /// The expected lines are those of Debian's nbdkit but for block sizes.
    #[test]
    fn a_session_is_logged_as_nbdkit_does() {
        let file = path("session");
        let disk = Arc::new(Disk::new(1 << 20));
        let layer = testing::layer(&disk, &["log"], &[("logfile", file.to_str().unwrap())]);
        let client = testing::client();
        layer.preconnect(&client, false).unwrap();
        layer.list_exports(&client, false, &mut Exports::new()).unwrap();
        let backend = testing::open(&layer);
        backend.pread(&mut [0; 512], 0).unwrap();
        backend.try_pread(&mut [0; 512], 512).unwrap().unwrap();
        backend.pwrite(&[0; 512], 512, Flags::FUA).unwrap();
        backend.zero(4096, 0, Flags::MAY_TRIM).unwrap();
        backend.trim(4096, 0, Flags::FUA).unwrap();
        backend.flush().unwrap();
        backend.cache(4096, 0).unwrap();
        testing::extents_of(&backend, 0x20000, 0);
        backend.finalize().unwrap();
        assert_eq!(
            lines(&file),
            [
                "Ready thread_model=3",
                "Preconnect id=1 readonly=0 ...",
                "...Preconnect id=1 return=0",
                "ListExports id=1 readonly=0 tls=0 ...",
                "...ListExports id=1 exports=(one two) return=0",
                "connection=1 Connect export=one tls=0 size=0x100000 minsize=0x0 prefsize=0x0 \
             maxsize=0x0 write=1 flush=1 rotational=0 trim=1 zero=2 fua=2 extents=1 cache=2 \
             fast_zero=1",
                "connection=1 Read id=1 offset=0x0 count=0x200 ...",
                "connection=1 ...Read id=1 return=0",
                "connection=1 Read id=2 offset=0x200 count=0x200 ...",
                "connection=1 ...Read id=2 return=0",
                "connection=1 Write id=3 offset=0x200 count=0x200 fua=1 ...",
                "connection=1 ...Write id=3 return=0",
                "connection=1 Zero id=4 offset=0x0 count=0x1000 trim=1 fua=0 fast=0 ...",
                "connection=1 ...Zero id=4 return=0",
                "connection=1 Trim id=5 offset=0x0 count=0x1000 fua=1 ...",
                "connection=1 ...Trim id=5 return=0",
                "connection=1 Flush id=6 ...",
                "connection=1 ...Flush id=6 return=0",
                "connection=1 Cache id=7 offset=0x0 count=0x1000 ...",
                "connection=1 ...Cache id=7 return=0",
                "connection=1 Extents id=8 offset=0x0 count=0x20000 req_one=0 ...",
                "connection=1 ...Extents id=8 extents=(0x0 0x10000 \"\" 0x10000 0x10000 \
             \"hole,zero\") return=0",
                "connection=1 Disconnect transactions=8",
            ]
        );
    }

    #[test]
    fn failures_carry_the_error_that_the_client_sees() {
        let file = path("failures");
        for (errno, shown) in [(Errno::EROFS, "EPERM"), (Errno::ENOENT, "EIO")] {
            let disk = Arc::new(Disk { fail_reads: Some(errno), ..Disk::new(512) });
            let params = [("logfile", file.to_str().unwrap())];
            let backend = testing::backend(&disk, &["log"], &params);
            backend.pread(&mut [0], 0).unwrap_err();
            assert_eq!(
                lines(&file).pop().unwrap(),
                format!("connection=1 ...Read id=1 return=-1 error={shown}")
            );
        }
    }

    #[test]
    fn a_log_is_kept_only_with_logappend() {
        let file = path("append");
        let disk = Arc::new(Disk::new(512));
        let name = file.to_str().unwrap();
        for (append, count) in [("false", 1), ("true", 2), ("false", 1)] {
            testing::layer(&disk, &["log"], &[("logfile", name), ("logappend", append)]);
            let text = std::fs::read_to_string(&file).unwrap();
            assert_eq!(text.lines().count(), count);
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(
            testing::config_error("log", &[("logfile", "/nonexistent/x")]),
            "open: /nonexistent/x: No such file or directory"
        );
    }

    #[test]
    fn a_script_is_told_in_variables() {
        let out = path("script");
        let disk = Arc::new(Disk::new(512));
        let script = format!(
            "echo $connection $type $id $act $offset $return \"$export\" >>{}",
            out.display()
        );
        let layer = testing::layer(&disk, &["log"], &[("logscript", &script)]);
        let backend = testing::try_open(&layer, "$(id) \"a b\"", false).unwrap();
        assert!(backend.try_pread(&mut [0], 0).is_none());
        backend.pread(&mut [0], 16).unwrap();
        assert_eq!(
            std::fs::read_to_string(&out).unwrap(),
            "PRINT Ready \n1 PRINT Connect $(id) \"a b\"\n\
             1 ENTER 1 Read 0x10 \n1 LEAVE 1 Read 0 \n"
        );
        std::fs::remove_file(&out).unwrap();
    }

    #[test]
    fn without_parameters_nothing_is_logged() {
        let disk = Arc::new(Disk::new(512));
        let backend = testing::backend(&disk, &["log"], &[]);
        assert!(backend.try_pread(&mut [0], 0).is_some());
    }
}
