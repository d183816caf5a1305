//! The messages of a watcher, which does a filter's work beside the clients, to its template. The
//! template sends none, and ends the watcher by closing the channel.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::messages::LogRecord;

/// Sent by a watcher, a confined process, to the template: check before use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWatcher {
    /// A line for the log.
    Log(LogRecord),
    /// The sandbox refused a system call, and the watcher ends now. Sent by a signal handler: see
    /// [`refusal`](crate::refusal).
    Refused {
        /// The system call's number on this machine.
        syscall: u32,
    },
    /// The filter is to be told that its watcher has something to tell.
    Notify,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};

    /// If these bytes change, so must `VERSION`.
    #[test]
    fn messages_keep_their_bytes() {
        let refused = FromWatcher::Refused { syscall: 101 };
        assert_eq!(encode(&refused).unwrap(), [1, 0, 0, 0, 101, 0, 0, 0]);
        assert_eq!(encode(&FromWatcher::Notify).unwrap(), [2, 0, 0, 0]);
        assert_eq!(decode::<FromWatcher>(&[2, 0, 0, 0]), Some(FromWatcher::Notify));
        assert_eq!(decode::<FromWatcher>(&[3, 0, 0, 0]), None);
    }
}
