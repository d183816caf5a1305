//! Safe functions for system calls that take unsafe code in Rust. The listener's only unsafe code.
//!
//! - `process`: SIGXFSZ, which must not kill this process
//! - `refusal`: the log line of a listener whose system call the sandbox has refused
//! - `resolve`: getaddrinfo(3)
//! - `socket`: adopting and accepting sockets, security labels of peers

pub(crate) mod process;
pub(crate) mod refusal;
pub(crate) mod resolve;
pub(crate) mod socket;
