//! Where the entries of the log go: a file, a script, or both. Made in the template, used there
//! and in the workers, whose sandbox it leaves nothing to open: the file is open, the time zone
//! is known.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering;

use jiff::tz::TimeZone;
use nbdkit_api::shared::SharedWords;
use nbdkit_api::{Result, ResultExt, debug};

use super::line::Entry;
use crate::shell::{self, Variable};

/// What is counted over all clients.
#[derive(Debug, Clone, Copy)]
pub(super) enum Counter {
    Connection,
    Preconnect,
    ListExports,
}

/// What `logscript=` gives, and the shell for it.
#[derive(Debug)]
struct Script {
    bash: &'static Path,
    text: String,
}

/// Where the log filter's lines go.
#[derive(Debug)]
pub(super) struct Sink {
    /// Open for appending, so that lines of several workers do not overwrite each other.
    file: Option<File>,
    script: Option<Script>,
    zone: TimeZone,
    counters: SharedWords,
}

impl Sink {
    /// # Errors
    /// The file cannot be opened for writing; there is no bash for the script.
    pub(super) fn new(path: Option<&Path>, append: bool, script: Option<String>) -> Result<Sink> {
        let script = match script {
            Some(text) => {
                let bash = shell::bash().map_err(|why| why.context("logscript is for bash"))?;
                Some(Script { bash, text })
            }
            None => None,
        };
        let file = path.map(|path| open(path, append)).transpose()?;
        Ok(Sink { file, script, zone: TimeZone::system(), counters: SharedWords::new(3)? })
    }

    /// The next number, from 1.
    pub(super) fn count(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    pub(super) fn runs_script(&self) -> bool {
        self.script.is_some()
    }

    /// Logs an entry. A log that cannot be written does not make requests fail.
    #[expect(clippy::needless_pass_by_value, reason = "an entry is logged once")]
    pub(super) fn put(&self, entry: Entry) {
        if let Some(mut file) = self.file.as_ref() {
            let time = entry.time.to_zoned(self.zone.clone());
            let line = format!("{} {}\n", time.strftime("%Y-%m-%d %H:%M:%S%.6f"), entry.text());
            if let Err(error) = file.write_all(line.as_bytes()) {
                debug!("write to log file: {error}");
            }
        }
        if let Some(script) = &self.script {
            let (connection, id);
            let mut variables = vec![
                Variable::Scalar("act", entry.action),
                Variable::Scalar("type", entry.kind.as_str()),
            ];
            if let Some(number) = entry.connection {
                connection = number.to_string();
                variables.push(Variable::Scalar("connection", &connection));
            }
            if let Some(number) = entry.id {
                id = number.to_string();
                variables.push(Variable::Scalar("id", &id));
            }
            variables.extend(entry.fields.iter().map(|field| match &field.list {
                Some(items) => Variable::Array(field.key, items),
                None => Variable::Scalar(field.key, &field.value),
            }));
            if let Err(error) = shell::run(script.bash, &script.text, &variables) {
                debug!("log script: {error}");
            }
        }
    }
}

fn open(path: &Path, append: bool) -> Result<File> {
    let error = || format!("open: {}", path.display());
    let file = OpenOptions::new().append(true).create(true).open(path).or_error(error)?;
    if !append && file.metadata().or_error(error)?.is_file() {
        file.set_len(0).or_error(|| format!("ftruncate: {}", path.display()))?;
    }
    Ok(file)
}
