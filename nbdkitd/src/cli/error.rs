//! Errors of the command line, with the text and prefix of nbdkit's.
//!
//! Used by the listener before it has opened anything. Trusts nothing; the text may quote
//! arguments.

#![forbid(unsafe_code)]

use std::fmt;

/// The exit status of a refused command line: C's `EXIT_FAILURE`.
pub(crate) const EXIT_FAILURE: u8 = 1;

/// How nbdkit introduces a message on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prefix {
    /// The whole of `argv[0]`, as getopt does.
    Argv0,
    /// The program's name: `nbdkit: `.
    Program,
    /// The program's name and the word error, as `nbdkit_error` does: `nbdkit: error: `.
    ProgramError,
}

/// One refusal, still without the name of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    messages: Vec<(Prefix, String)>,
    usage: bool,
}

impl Fault {
    /// A token that getopt refuses; the usage summary goes to standard output as well.
    pub(crate) fn getopt(message: impl Into<String>) -> Self {
        Self { messages: vec![(Prefix::Argv0, message.into())], usage: true }
    }

    /// A message introduced by `nbdkit: `.
    pub(crate) fn plain(message: impl Into<String>) -> Self {
        Self { messages: vec![(Prefix::Program, message.into())], usage: false }
    }

    /// A message introduced by `nbdkit: error: `.
    pub(crate) fn error(message: impl Into<String>) -> Self {
        Self { messages: vec![(Prefix::ProgramError, message.into())], usage: false }
    }

    /// Adds a second message, introduced by `nbdkit: `.
    pub(crate) fn followed_by(mut self, message: impl Into<String>) -> Self {
        self.messages.push((Prefix::Program, message.into()));
        self
    }

    /// Puts the names in front of the messages. `argv0` is as the caller gave it, `program` is its
    /// last component.
    pub(crate) fn named(self, argv0: &str, program: &str) -> CliError {
        let lines: Vec<String> = self
            .messages
            .into_iter()
            .map(|(prefix, message)| match prefix {
                Prefix::Argv0 => format!("{argv0}: {message}"),
                Prefix::Program => format!("{program}: {message}"),
                Prefix::ProgramError => format!("{program}: error: {message}"),
            })
            .collect();
        CliError { text: lines.join("\n"), usage: self.usage }
    }
}

/// A refused command line. `Display` gives the text for standard error, without the last newline.
///
/// The process ends with [`EXIT_FAILURE`]. If [`wants_usage`](Self::wants_usage), the usage summary
/// is printed to standard output too, which is where nbdkit prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CliError {
    text: String,
    usage: bool,
}

impl CliError {
    /// Puts lines in front that were to be printed in any case.
    pub(crate) fn after(mut self, notices: &[String]) -> Self {
        if !notices.is_empty() {
            self.text = format!("{}\n{}", notices.join("\n"), self.text);
        }
        self
    }

    /// Whether the usage summary belongs to the answer (a token that getopt refuses).
    pub(crate) fn wants_usage(&self) -> bool {
        self.usage
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for CliError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn getopt_messages_carry_argv0_and_the_others_its_last_component() {
        let getopt = Fault::getopt("invalid option -- 'Z'").named("/usr/sbin/nbdkit", "nbdkit");
        assert_eq!(getopt.to_string(), "/usr/sbin/nbdkit: invalid option -- 'Z'");
        assert!(getopt.wants_usage());
        let two = Fault::error("flag: bad").followed_by("-D").named("/usr/sbin/nbdkit", "nbdkit");
        assert_eq!(two.to_string(), "nbdkit: error: flag: bad\nnbdkit: -D");
        assert!(!two.wants_usage());
    }
}
