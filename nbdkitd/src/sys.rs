//! The system calls that Rust calls unsafe, behind safe verbs. The listener's only unsafe code.
//!
//! - `process`: a limit that is not to end this process
//! - `refusal`: the last words of a listener that the sandbox refused something
//! - `resolve`: getaddrinfo(3)
//! - `socket`: adopting and accepting sockets, security labels of peers

pub(crate) mod process;
pub(crate) mod refusal;
pub(crate) mod resolve;
pub(crate) mod socket;
