//! The file of `--log`: each line begins with the time, and the file can be replaced by one that
//! was opened anew.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nbdkit_ipc::log_file;

use super::clock::Clock;
use super::output::Output;
use crate::sys::refusal;
use crate::system_error::SystemError;

/// A log file.
pub(super) struct LogFile {
    output: Output<File>,
    path: PathBuf,
    clock: Clock,
}

impl LogFile {
    /// Opens the file.
    ///
    /// # Errors
    /// It cannot be opened; the text is for standard error.
    pub(super) fn open(path: &Path) -> Result<LogFile, SystemError> {
        let file = log_file::open(path).map_err(SystemError::on("--log", path.display()))?;
        Ok(LogFile { output: Output::new(file), path: path.to_owned(), clock: Clock::new() })
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its descriptor.
    pub(super) fn fd(&self) -> &File {
        self.output.fd()
    }

    /// Writes a line with its newline, behind the time. `note`: see [`Output`].
    pub(super) fn write(&mut self, line: &str, note: impl Fn(u64) -> String) {
        let LogFile { output, clock, .. } = self;
        output.write(timed(clock, line), |dropped| timed(clock, &note(dropped)));
    }

    /// As [`Output::catch_up`].
    pub(super) fn catch_up(&mut self, note: impl Fn(u64) -> String) -> Option<Duration> {
        let LogFile { output, clock, .. } = self;
        output.catch_up(&|dropped| timed(clock, &note(dropped)))
    }

    /// As [`Output::finish`].
    pub(super) fn finish(&mut self, note: impl Fn(u64) -> String) {
        let LogFile { output, clock, .. } = self;
        output.finish(&|dropped| timed(clock, &note(dropped)));
    }

    /// Writes to `file` from now on, also what is still queued.
    pub(super) fn replace(&mut self, file: File, note: impl Fn(u64) -> String) {
        let LogFile { output, clock, .. } = self;
        // The number of the descriptor may soon be that of a client's socket.
        refusal::redirect(file.as_raw_fd());
        drop(output.replace(file, &|dropped| timed(clock, &note(dropped))));
    }
}

fn timed(clock: &Clock, line: &str) -> String {
    format!("{} {line}", clock.now())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines without the time, which is checked.
    fn lines(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        let lines = text.lines().map(|line| {
            let (time, line) = line.split_once(' ').unwrap();
            assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
            line.to_owned()
        });
        lines.collect()
    }

    #[test]
    fn files_are_appended_to_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("nbdkitd-log-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        for text in ["one\n", "two\n"] {
            LogFile::open(&path).unwrap().write(text, |_| String::new());
        }
        assert_eq!(lines(&path), ["one", "two"]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_that_was_opened_anew_gets_the_next_line() {
        let [path, renamed] = ["now", "old"].map(|name| {
            std::env::temp_dir().join(format!("nbdkitd-log-{name}-{}", std::process::id()))
        });
        let _ = std::fs::remove_file(&path);
        let mut log = LogFile::open(&path).unwrap();
        log.write("one\n", |_| String::new());
        std::fs::rename(&path, &renamed).unwrap();
        log.write("two\n", |_| String::new());
        log.replace(log_file::open(&path).unwrap(), |_| String::new());
        log.write("three\n", |_| String::new());
        assert_eq!(
            (lines(&renamed), lines(&path)),
            (vec!["one".into(), "two".into()], vec!["three".into()])
        );
        for path in [path, renamed] {
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let error = LogFile::open(Path::new("/no/such/dir/log")).err().unwrap();
        assert_eq!(error.to_string(), "--log: /no/such/dir/log: No such file or directory");
    }
}
