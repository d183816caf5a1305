//! The log: this process is the only one that writes it. Workers and template send records, which
//! are bounded and escaped here. nbdkit-service(1), "Logging".
//!
//! Errors, warnings and notices go to the destination of `--log`, but notices to standard error
//! only with `-v`; debug lines (`-v`) always to standard error. A line is one write(2), so that
//! lines of several programs with the same standard error do not mix. Without a system log
//! (`/dev/log`) lines for it are lost, as with syslog(3). If a system log is started later, it gets
//! the lines from then on.
//!
//! Lines on standard error are nbdkit's. Those in a file begin with the time; there, in the system
//! log and in the journal each line about a connection names the client.

#![forbid(unsafe_code)]

mod clock;
mod destination;
mod file;
mod format;
mod journal;
mod output;
mod quota;
mod quotas;
pub(crate) mod syscalls;
mod syslog;

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, IsTerminal, Stderr};
use std::path::PathBuf;
use std::time::Instant;

use nbdkit_ipc::messages::LogRecord;

use crate::cli::command_line::{LogDestination, Options};
use crate::peer_key::PeerKey;
use crate::system_error::SystemError;
use destination::Destination;
use format::Entry;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use format::line as format_line;
pub(crate) use format::{Speaker, Subject, escape};
pub(crate) use nbdkit_ipc::messages::Level;
use output::Output;
pub(crate) use quota::{Quota, Verdict};
use quotas::Quotas;

/// The log, with its destinations and quotas.
pub(crate) struct Log {
    prefix: String,
    verbose: bool,
    bold: bool,
    destination: RefCell<Destination>,
    stderr: RefCell<Output<Stderr>>,
    quotas: RefCell<Quotas>,
    default: bool,
    /// Notices from before the server leaves the terminal, for the log that is used from then on.
    kept: RefCell<Vec<String>>,
    /// The filters and the plugin, for the journal.
    stack: String,
}

/// Most notices that are kept; a start has two or three.
const MOST_KEPT: usize = 16;

impl Log {
    /// Opens the log that the options name, with `--log=FILE`.
    ///
    /// # Errors
    /// The file cannot be opened; the text is for standard error.
    pub(crate) fn new(program: &str, options: &Options) -> Result<Log, SystemError> {
        let destination = Destination::open(&options.log)?;
        Ok(Log {
            prefix: match &options.name {
                Some(name) => {
                    let mut prefix = format!("{program}[");
                    escape(&mut prefix, name);
                    prefix + "]"
                }
                None => program.to_owned(),
            },
            verbose: options.verbose,
            bold: io::stderr().is_terminal(),
            destination: RefCell::new(destination),
            stderr: RefCell::new(Output::new(io::stderr())),
            quotas: RefCell::new(Quotas::new(Instant::now())),
            default: options.log == LogDestination::Default && !options.foreground,
            kept: RefCell::default(),
            stack: String::new(),
        })
    }

    /// Sets the names of the filters and the plugin.
    pub(crate) fn set_stack(&mut self, stack: String) {
        self.stack = stack;
    }

    /// The file of `--log`, if it is one.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        Some(self.destination.borrow_mut().file()?.path().to_owned())
    }

    /// The file of `--log` was opened anew: lines go there from now on.
    pub(crate) fn reopened(&self, file: File) {
        if let Some(log) = self.destination.borrow_mut().file() {
            log.replace(file, |dropped| self.unread(dropped));
        }
        self.notice("the log file was opened anew");
    }

    /// The server leaves the terminal: the default destination becomes the system log.
    pub(crate) fn enter_background(&self) {
        if self.default {
            self.destination.replace(Destination::syslog());
            for text in self.kept.take() {
                self.notice(&text);
            }
        }
    }

    /// Prepares the line that the signal handler of a refused system call writes.
    pub(crate) fn prepare_refusal_line(&self) {
        let head = format::line(&self.prefix, Speaker::default(), Level::Error, "", false);
        self.destination.borrow().set_refusal_output(head.trim_end_matches('\n'));
    }

    /// Whether debug lines are written (`-v`).
    pub(crate) fn verbose(&self) -> bool {
        self.verbose
    }

    /// An error of the listener's own.
    pub(crate) fn error(&self, text: &str) {
        self.write(Speaker::default(), Level::Error, text);
    }

    /// A line worth keeping in a log, but not worth a line on a terminal.
    pub(crate) fn notice(&self, text: &str) {
        self.write(Speaker::default(), Level::Notice, text);
    }

    /// An error that keeps the server from starting. It goes to standard error too, whatever the
    /// destination.
    pub(crate) fn fatal(&self, text: &str) {
        if !matches!(*self.destination.borrow(), Destination::Stderr) {
            let line = format::line(&self.prefix, Speaker::default(), Level::Error, text, false);
            self.stderr.borrow_mut().write(line, |dropped| self.unread(dropped));
        }
        self.error(text);
    }

    /// A debug line of the listener's own.
    pub(crate) fn debug(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            self.write(Speaker::default(), Level::Debug, &text());
        }
    }

    /// Writes text to standard error that is no line of the log.
    pub(crate) fn print(&self, text: String) {
        self.stderr.borrow_mut().write(text, |dropped| self.unread(dropped));
    }

    /// Whether standard error has not taken all that was written to it.
    pub(crate) fn is_behind(&self) -> bool {
        self.stderr.borrow().is_behind()
    }

    /// Writes a line. Errors are ignored, since there is no other log for them.
    pub(crate) fn write(&self, speaker: Speaker<'_>, level: Level, text: &str) {
        self.put(speaker, level, text, false);
    }

    /// `demanded`: the user has asked for this notice, which appears on a terminal, too.
    fn put(&self, speaker: Speaker<'_>, level: Level, text: &str, demanded: bool) {
        match level {
            Level::Debug if self.verbose => {
                let line = format::line(&self.prefix, speaker, level, text, self.bold);
                self.stderr.borrow_mut().write(line, |dropped| self.unread(dropped));
            }
            Level::Debug => {}
            Level::Notice
                if !self.verbose && !demanded && self.destination.borrow().is_terminal() =>
            {
                let mut kept = self.kept.borrow_mut();
                if self.default && speaker == Speaker::default() && kept.len() < MOST_KEPT {
                    kept.push(text.to_owned());
                }
            }
            Level::Error | Level::Warning | Level::Notice => {
                let line = |kind| match kind {
                    destination::Kind::Terminal => {
                        format::line(&self.prefix, speaker, level, text, self.bold)
                    }
                    destination::Kind::File => {
                        format::file_line(&self.prefix, speaker, level, text)
                    }
                    destination::Kind::Syslog => format::syslog_line(speaker, text),
                };
                let note = |dropped| self.unread(dropped);
                let stderr = &mut self.stderr.borrow_mut();
                let entry = Entry { level, speaker, stack: &self.stack };
                self.destination.borrow_mut().write(stderr, entry, line, note);
            }
        }
    }

    /// The line that replaces lines that were dropped, since nobody has read them.
    fn unread(&self, dropped: u64) -> String {
        let text = format!("{dropped} lines were dropped, nobody was reading the log");
        format::line(&self.prefix, Speaker::default(), Level::Error, &text, false)
    }

    /// Writes queued lines, as far as that is possible without waiting. Returns when to retry, if
    /// lines are left.
    pub(crate) fn flush(&self, now: Instant) -> Option<Instant> {
        let note = |dropped| self.unread(dropped);
        let stderr = self.stderr.borrow_mut().catch_up(&note);
        let mut destination = self.destination.borrow_mut();
        let file = destination.file().and_then(|file| file.catch_up(note));
        let pause = stderr.into_iter().chain(file).min()?;
        Some(now + pause)
    }

    /// Writes a line about a client, if the quotas of the connection, of its peer and of all
    /// clients permit it.
    pub(crate) fn about(
        &self,
        peer: PeerKey,
        own: Option<&mut Quota>,
        speaker: Speaker<'_>,
        level: Level,
        text: &str,
    ) {
        if level == Level::Debug {
            return self.write(speaker, level, text);
        }
        self.within_quota(peer, own, text.len(), || self.write(speaker, level, text));
    }

    /// Writes the notice about a connection that has ended (`--log-connections`), within the
    /// quotas.
    pub(crate) fn connection_ended(&self, peer: PeerKey, speaker: Speaker<'_>, text: &str) {
        self.within_quota(peer, None, text.len(), || self.put(speaker, Level::Notice, text, true));
    }

    fn within_quota(
        &self,
        peer: PeerKey,
        own: Option<&mut Quota>,
        length: usize,
        write: impl FnOnce(),
    ) {
        let verdict = self.quotas.borrow_mut().take(peer, own, length, Instant::now());
        if let Verdict::Write { dropped } = verdict {
            self.left_out(dropped);
            write();
        }
    }

    fn left_out(&self, dropped: u64) {
        if dropped != 0 {
            self.error(&format!(
                "{dropped} messages about clients were dropped, they came too fast"
            ));
        }
    }

    /// Writes a record of a process that serves several clients, if its quota permits it. Debug
    /// lines are not counted: with `-v` all are written.
    pub(crate) fn record(&self, record: &LogRecord, speaker: Speaker<'_>, quota: &mut Quota) {
        if record.level == Level::Debug {
            return self.write(speaker, Level::Debug, &record.text);
        }
        match quota.take(Instant::now()) {
            Verdict::Drop => {}
            Verdict::Write { dropped } => {
                if dropped != 0 {
                    let text = format!("{dropped} messages were dropped, they came too fast");
                    self.write(speaker, Level::Error, &text);
                }
                self.write(speaker, record.level, &record.text);
            }
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let rest = self.quotas.get_mut().rest();
        self.left_out(rest);
        let note = |dropped| self.unread(dropped);
        self.stderr.borrow_mut().finish(&note);
        if let Some(file) = self.destination.borrow_mut().file() {
            file.finish(note);
        }
    }
}
