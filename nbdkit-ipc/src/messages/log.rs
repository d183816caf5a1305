//! Lines for the log, which every process but the spawner sends.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Longest text of a log record, bytes. The sender truncates longer ones, the receiver refuses
/// them.
pub const MAX_LOG_TEXT: usize = 16 * 1024;

/// Longest name of a layer, bytes.
const MAX_LAYER: usize = 256;

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

impl LogRecord {
    /// Whether it is within the bounds that senders keep.
    pub fn is_plausible(&self) -> bool {
        self.text.len() <= MAX_LOG_TEXT
            && self.layer.as_ref().is_none_or(|layer| layer.len() <= MAX_LAYER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_are_too_long_are_not_plausible() {
        let record = |layer: usize, text: usize| LogRecord {
            level: Level::Error,
            layer: Some("l".repeat(layer)),
            connection: 1,
            text: "t".repeat(text),
        };
        assert!(record(MAX_LAYER, MAX_LOG_TEXT).is_plausible());
        assert!(!record(MAX_LAYER + 1, 0).is_plausible());
        assert!(!record(0, MAX_LOG_TEXT + 1).is_plausible());
    }
}
