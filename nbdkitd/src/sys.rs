//! Safe functions for system calls that take unsafe code in Rust. The listener's only unsafe code.
//!
//! - `hijacked`, in builds for the red team: calls that no listener makes
//! - `refusal`: the log line of a listener whose system call the sandbox has refused
//! - `resolve`: getaddrinfo(3)
//! - `socket`: adopting and accepting sockets, security labels of peers

#[cfg(feature = "red-team")]
pub(crate) mod hijacked;
pub(crate) mod refusal;
pub(crate) mod resolve;
pub(crate) mod socket;
