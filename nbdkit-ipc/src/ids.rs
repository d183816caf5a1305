//! Numbers that name a stack or a key in messages.
//!
//! A server has one of each today. The numbers are on the wire so that a server with several
//! stacks, or one that replaces its key, needs no other messages. The receiver refuses a number
//! that it does not know.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// A stack: a plugin with its filters, as a template has configured it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackId(pub u32);

impl StackId {
    /// The stack of the command line.
    pub const ONLY: StackId = StackId(0);

    /// Checks that there is such a stack.
    ///
    /// # Errors
    /// The violation, for the log.
    pub fn check(self) -> Result<(), &'static str> {
        if self == StackId::ONLY { Ok(()) } else { Err("a stack that does not exist") }
    }
}

/// A private key of the listener's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyId(pub u32);

impl KeyId {
    /// The key of `--tls-certificates`.
    pub const ONLY: KeyId = KeyId(0);

    /// Checks that there is such a key.
    ///
    /// # Errors
    /// The violation, for the log.
    pub fn check(self) -> Result<(), &'static str> {
        if self == KeyId::ONLY { Ok(()) } else { Err("a key that does not exist") }
    }
}
