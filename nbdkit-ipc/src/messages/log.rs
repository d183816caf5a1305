//! Lines for the log, which every process but the spawner sends.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Longest text of a log record, bytes. The sender truncates longer ones, the receiver refuses
/// them.
pub const MAX_LOG_TEXT: usize = 16 * 1024;

/// How serious a line of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// An error. Always logged.
    Error,
    /// Probably not what the user meant. Always logged.
    Warning,
    /// Worth keeping in a log, not worth a line on the terminal, where it needs `-v`.
    Notice,
    /// Only with `-v`.
    Debug,
}

/// A line for the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// How serious it is.
    pub level: Level,
    /// The plugin or filter that logs; `None` for the server itself.
    pub layer: Option<String>,
    /// The connection that it concerns; 0 for none.
    pub connection: u64,
    /// Without prefix and newline. May contain anything: the listener escapes control characters.
    pub text: String,
}
