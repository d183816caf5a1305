//! The file of `--log`: each line begins with the time.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::clock::Clock;
use super::output::Output;
use crate::system_error::SystemError;

/// A log file.
pub(super) struct LogFile {
    output: Output<File>,
    clock: Clock,
}

impl LogFile {
    /// Opens the file.
    ///
    /// # Errors
    /// It cannot be opened; the text is for standard error.
    pub(super) fn open(path: &Path) -> Result<LogFile, SystemError> {
        // A log may name clients and files: only its owner may read it.
        let mut options = File::options();
        options.append(true).create(true).mode(0o600);
        // A FIFO without a reader is an error, and one with a slow reader does not stop the
        // server.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = options.open(path).map_err(SystemError::on("--log", path.display()))?;
        Ok(LogFile { output: Output::new(file), clock: Clock::new() })
    }

    /// Its descriptor.
    pub(super) fn fd(&self) -> &File {
        self.output.fd()
    }

    /// Writes a line with its newline, behind the time. `note`: see [`Output`].
    pub(super) fn write(&mut self, line: &str, note: impl Fn(u64) -> String) {
        let LogFile { output, clock } = self;
        output.write(timed(clock, line), |dropped| timed(clock, &note(dropped)));
    }

    /// As [`Output::catch_up`].
    pub(super) fn catch_up(&mut self, note: impl Fn(u64) -> String) -> Option<Duration> {
        let LogFile { output, clock } = self;
        output.catch_up(&|dropped| timed(clock, &note(dropped)))
    }

    /// As [`Output::finish`].
    pub(super) fn finish(&mut self, note: impl Fn(u64) -> String) {
        let LogFile { output, clock } = self;
        output.finish(&|dropped| timed(clock, &note(dropped)));
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
    fn a_file_that_cannot_be_opened_is_named() {
        let error = LogFile::open(Path::new("/no/such/dir/log")).err().unwrap();
        assert_eq!(error.to_string(), "--log: /no/such/dir/log: No such file or directory");
    }
}
