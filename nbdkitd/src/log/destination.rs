//! `--log`: the destination of lines that are not debug lines.

#![forbid(unsafe_code)]

use std::io::Stderr;
use std::os::fd::AsRawFd;

use crate::cli::command_line::LogDestination;
use crate::sys::refusal;
use crate::system_error::SystemError;

use super::file::LogFile;
use super::format::Entry;
use super::journal::Journal;
use super::output::Output;
use super::syslog::Syslog;

/// A kind of destination, for which a line is formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Standard error.
    Terminal,
    /// A file.
    File,
    /// The system log, or the journal.
    Syslog,
}

/// The destination of lines that are not debug lines.
pub(super) enum Destination {
    Stderr,
    Null,
    File(LogFile),
    Syslog(Syslog),
    Journal(Journal),
}

impl Destination {
    /// Opens the destination of the option. The default is standard error until the server goes
    /// into the background.
    ///
    /// # Errors
    /// A file that cannot be opened, or a journal that is not there, for standard error.
    pub(super) fn open(wanted: &LogDestination) -> Result<Destination, SystemError> {
        Ok(match wanted {
            LogDestination::Default | LogDestination::Stderr => Destination::Stderr,
            LogDestination::Syslog => Destination::syslog(),
            LogDestination::Null => Destination::Null,
            LogDestination::Journal => Destination::Journal(Journal::connect()?),
            LogDestination::File(path) => Destination::File(LogFile::open(path)?),
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
            Destination::Journal(journal) => {
                let (fd, address, head) = journal.raw_output();
                refusal::log_to(fd.as_raw_fd(), address, &head);
            }
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
        entry: Entry<'_>,
        line: impl FnOnce(Kind) -> String,
        note: impl Fn(u64) -> String,
    ) {
        match self {
            Destination::Null => {}
            Destination::Stderr => stderr.write(line(Kind::Terminal), note),
            Destination::File(file) => file.write(&line(Kind::File), note),
            Destination::Syslog(syslog) => syslog.write(entry.level, &line(Kind::Syslog)),
            Destination::Journal(journal) => journal.write(entry, &line(Kind::Syslog)),
        }
    }

    /// The file, if it is one.
    pub(super) fn file(&mut self) -> Option<&mut LogFile> {
        match self {
            Destination::File(file) => Some(file),
            Destination::Stderr
            | Destination::Null
            | Destination::Syslog(_)
            | Destination::Journal(_) => None,
        }
    }
}
