//! The system calls that Rust calls unsafe, behind safe verbs. The listener's only unsafe code.
//!
//! - `process`: fork, handles on processes
//! - `resolve`: getaddrinfo(3)
//! - `socket`: adopting and accepting sockets, security labels of peers

pub(crate) mod process;
pub(crate) mod resolve;
pub(crate) mod socket;
