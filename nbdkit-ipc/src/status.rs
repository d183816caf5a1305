//! Exit statuses of workers, which the listener logs and acts on. A worker that was taken over can
//! choose its status, which affects nothing but the log.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// How a worker, or a connection in a shared worker, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerExit {
    /// The client disconnected between requests. Status 0.
    Clean,
    /// The client violated the NBD protocol. Status 3.
    Protocol,
    /// The client did not finish the handshake in time. Status 4.
    Deadline,
    /// The plugin or a filter refused the client. Status 5.
    Refused,
    /// The connection broke: the client vanished or a reply could not be sent. Status 6.
    Broken,
    /// An error of the server's, already logged. Status 7.
    Failed,
    /// A panic. Status 101, which is Rust's.
    Panicked,
    /// Killed by this signal.
    Killed(i32),
    /// A status that workers do not use.
    Unknown(i32),
    /// The sandbox refused a system call, reported by `Refused`. Status 8.
    Forbidden,
    /// The plugin or a filter has disconnected the client, `nbdkit_disconnect`. Status 9.
    Disconnected,
    /// The client is idle, and `Park` has handed it back to the listener. Status 10.
    Parked,
}

impl WorkerExit {
    /// The exit status of a process that ends this way. Signals and unknown statuses are observed,
    /// never used.
    pub fn code(self) -> i32 {
        match self {
            WorkerExit::Clean => 0,
            WorkerExit::Protocol => 3,
            WorkerExit::Deadline => 4,
            WorkerExit::Refused => 5,
            WorkerExit::Broken => 6,
            WorkerExit::Failed => 7,
            WorkerExit::Forbidden => 8,
            WorkerExit::Disconnected => 9,
            WorkerExit::Parked => 10,
            WorkerExit::Panicked => 101,
            WorkerExit::Killed(_) => 128,
            WorkerExit::Unknown(status) => status,
        }
    }

    /// What exit status `code` means.
    pub fn from_code(code: i32) -> WorkerExit {
        match code {
            0 => WorkerExit::Clean,
            3 => WorkerExit::Protocol,
            4 => WorkerExit::Deadline,
            5 => WorkerExit::Refused,
            6 => WorkerExit::Broken,
            7 => WorkerExit::Failed,
            8 => WorkerExit::Forbidden,
            9 => WorkerExit::Disconnected,
            10 => WorkerExit::Parked,
            101 => WorkerExit::Panicked,
            other => WorkerExit::Unknown(other),
        }
    }

    /// The line for the log; `None` for ordinary ends.
    pub fn report(self) -> Option<String> {
        match self {
            WorkerExit::Clean
            | WorkerExit::Protocol
            | WorkerExit::Refused
            | WorkerExit::Broken
            | WorkerExit::Disconnected
            | WorkerExit::Parked => None,
            WorkerExit::Deadline => {
                Some("handshake not finished in time, client disconnected".to_owned())
            }
            // A message has reported the cause.
            WorkerExit::Failed | WorkerExit::Forbidden => None,
            WorkerExit::Panicked => Some("worker panicked".to_owned()),
            WorkerExit::Killed(signal) => Some(format!("worker killed by signal {signal}")),
            WorkerExit::Unknown(status) => Some(format!("worker exited with status {status}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_survives_the_exit() {
        for exit in [
            WorkerExit::Clean,
            WorkerExit::Protocol,
            WorkerExit::Deadline,
            WorkerExit::Refused,
            WorkerExit::Broken,
            WorkerExit::Failed,
            WorkerExit::Forbidden,
            WorkerExit::Disconnected,
            WorkerExit::Parked,
            WorkerExit::Panicked,
        ] {
            assert_eq!(WorkerExit::from_code(exit.code()), exit);
        }
        assert_eq!(WorkerExit::from_code(42), WorkerExit::Unknown(42));
    }
}
