//! `--log`: the destination of lines that are not debug lines.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Stderr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use nbdkit_ipc::messages::Level;

use crate::cli::command_line::LogDestination;
use crate::sys::refusal;
use crate::system_error::SystemError;

use super::output::Output;
use super::syslog::Syslog;

/// A kind of destination, for which a line is formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Standard error.
    Terminal,
    /// A file.
    File,
    /// The system log.
    Syslog,
}

/// The destination of lines that are not debug lines.
pub(super) enum Destination {
    Stderr,
    Null,
    File(Output<File>),
    Syslog(Syslog),
}

impl Destination {
    /// Opens the destination of the option. The default is standard error until the server goes
    /// into the background.
    ///
    /// # Errors
    /// A file that cannot be opened, for standard error.
    pub(super) fn open(wanted: &LogDestination) -> Result<Destination, SystemError> {
        Ok(match wanted {
            LogDestination::Default | LogDestination::Stderr => Destination::Stderr,
            LogDestination::Syslog => Destination::syslog(),
            LogDestination::Null => Destination::Null,
            LogDestination::File(path) => {
                // A log may name clients and files: only its owner may read it.
                let mut options = File::options();
                options.append(true).create(true).mode(0o600);
                // A FIFO without a reader is an error, and one with a slow reader does not stop the
                // server.
                options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
                let file = options.open(path).map_err(SystemError::on("--log", path.display()))?;
                Destination::File(Output::new(file))
            }
        })
    }

    /// The system log.
    pub(super) fn syslog() -> Destination {
        Destination::Syslog(Syslog::new())
    }

    /// Tells the signal handler of a refused system call where to write. `head`: how a line begins
    /// that is not for the system log.
    pub(super) fn set_refusal_output(&self, head: &str) {
        /// No descriptor: the line is lost, as with `--log=null`.
        const NOWHERE: i32 = -1;
        match self {
            Destination::Stderr => refusal::log_to(libc::STDERR_FILENO, None, head),
            Destination::Null => refusal::log_to(NOWHERE, None, head),
            Destination::File(file) => refusal::log_to(file.fd().as_raw_fd(), None, head),
            Destination::Syslog(syslog) => match syslog.raw_output() {
                Some((fd, address, head)) => refusal::log_to(fd.as_raw_fd(), address, &head),
                None => refusal::log_to(NOWHERE, None, head),
            },
        }
    }

    /// Whether it is standard error, which a user may read.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Destination::Stderr)
    }

    /// Writes a line made by `line` for this kind of destination. `note`: see [`Output`].
    pub(super) fn write(
        &mut self,
        stderr: &mut Output<Stderr>,
        level: Level,
        line: impl FnOnce(Kind) -> String,
        note: impl Fn(u64) -> String,
    ) {
        match self {
            Destination::Null => {}
            Destination::Stderr => stderr.write(line(Kind::Terminal), note),
            Destination::File(file) => file.write(line(Kind::File), note),
            Destination::Syslog(syslog) => syslog.write(level, &line(Kind::Syslog)),
        }
    }

    /// The file, if it is one.
    pub(super) fn file(&mut self) -> Option<&mut Output<File>> {
        match self {
            Destination::File(file) => Some(file),
            Destination::Stderr | Destination::Null | Destination::Syslog(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_appended_to_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("nbdkitd-log-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        for text in ["one\n", "two\n"] {
            let mut log = Destination::open(&LogDestination::File(path.clone())).unwrap();
            let line = |kind| {
                assert_eq!(kind, Kind::File);
                text.to_owned()
            };
            let mut stderr = Output::new(std::io::stderr());
            log.write(&mut stderr, Level::Error, line, |_| String::new());
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let path = std::path::PathBuf::from("/no/such/dir/log");
        let error = Destination::open(&LogDestination::File(path)).err().unwrap();
        assert_eq!(error.to_string(), "--log: /no/such/dir/log: No such file or directory");
    }
}
