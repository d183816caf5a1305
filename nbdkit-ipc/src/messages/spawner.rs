//! The messages between listener and spawner, which starts new templates and opens the log file
//! anew.

#![forbid(unsafe_code)]

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use crate::ids::StackId;
use crate::messages::{Hello, ToTemplate};

/// Sent by the listener to its spawner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSpawner {
    /// Start a template, which enters service at once. Only if the setup has `replaces`. Answer:
    /// `Started` or `Failed`.
    Start {
        /// The stack that the template is to configure.
        stack: StackId,
    },
    /// First.
    Setup(SpawnerSetup),
    /// One of the messages that a template is configured with, up to `EnterService`, in order.
    /// After `Setup`.
    Know(Box<ToTemplate>),
    /// The set-up is complete. After it only `Start`, `Follow` and `OpenLog`.
    SetupEnd,
    /// The listener was moved into another control group: move the other processes, too.
    Follow {
        /// The template's process id.
        template: i32,
    },
    /// Open the log file of the set-up. Only if the setup has one. Answer: `Log` or `NoLog`.
    OpenLog,
}

/// What the spawner has to know to start templates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnerSetup {
    /// The listener's: the spawner ends if it is of another build.
    pub hello: Hello,
    /// The listener's process id. The spawner ends with it.
    pub listener: i32,
    /// The directory of `-U -`: see [`private`](crate::private). Removed when the listener closes
    /// the channel or ends.
    pub private: Option<OsString>,
    /// The absolute path of `--log`, if that is a file: see [`log_file`](crate::log_file).
    pub log: Option<OsString>,
    /// Whether programs that a stack executes while it starts may gain privileges: the stack runs
    /// programs, or has code that declares nothing.
    pub gains: bool,
    /// Whether there will be another template at all. If not, no `Know` follows, and `Start` is a
    /// violation.
    pub replaces: bool,
    /// The template's program.
    pub program: OsString,
    /// Its working directory.
    pub directory: Option<OsString>,
    /// Its title: see [`title`](crate::title).
    pub title: String,
    /// Whether systemd is not to kill it: see
    /// [`title::ROOT_STORAGE_DAEMON`](crate::title::ROOT_STORAGE_DAEMON).
    pub spared: bool,
}

/// Sent by the spawner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromSpawner {
    /// A template was started and sent everything up to `EnterService`. Descriptor: the listener's
    /// end of its control channel.
    Started {
        /// The stack that it configures.
        stack: StackId,
        /// Its process id.
        pid: i32,
    },
    /// No template could be started.
    Failed {
        /// The stack that was asked for.
        stack: StackId,
        /// Why.
        errno: i32,
    },
    /// Descriptor: the log file, opened anew.
    Log,
    /// The log file could not be opened.
    NoLog {
        /// Why.
        errno: i32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::encode;

    /// If these bytes change, so must `VERSION`.
    #[test]
    fn messages_keep_their_bytes() {
        let first = |bytes: Option<Vec<u8>>| bytes.unwrap()[0];
        let stack = StackId(7);
        assert_eq!(encode(&ToSpawner::Start { stack }).unwrap(), [0, 0, 0, 0, 7, 0, 0, 0]);
        let started = FromSpawner::Started { stack, pid: 2 };
        assert_eq!(encode(&started).unwrap(), [0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(first(encode(&ToSpawner::Know(Box::new(ToTemplate::ConfigureEnd)))), 2);
        assert_eq!(first(encode(&ToSpawner::SetupEnd)), 3);
        assert_eq!(first(encode(&ToSpawner::Follow { template: 1 })), 4);
        assert_eq!(encode(&ToSpawner::OpenLog).unwrap(), [5, 0, 0, 0]);
        assert_eq!(first(encode(&FromSpawner::Failed { stack: StackId::ONLY, errno: 1 })), 1);
        assert_eq!(encode(&FromSpawner::Log).unwrap(), [2, 0, 0, 0]);
        let none = FromSpawner::NoLog { errno: 13 };
        assert_eq!(encode(&none).unwrap(), [3, 0, 0, 0, 13, 0, 0, 0]);
    }

    /// A spawner of another build has to find the listener's `Hello` where it expects it.
    #[test]
    fn the_setup_begins_with_the_hello() {
        let setup = SpawnerSetup {
            hello: Hello { version: 1, build: "b".to_owned() },
            listener: 2,
            private: None,
            log: Some("/l".into()),
            gains: false,
            replaces: true,
            program: "p".into(),
            directory: None,
            title: String::new(),
            spared: false,
        };
        let bytes = [
            &[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'b', 2, 0, 0, 0, 0][..],
            // OsString on Unix.
            &[1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, b'/', b'l'],
        ]
        .concat();
        assert!(encode(&ToSpawner::Setup(setup)).unwrap().starts_with(&bytes));
    }
}
