//! What each option of the command line does, seen from outside: by clients, by the process table,
//! by the caller's shell.
//!
//! The differential tests compare words; these start servers and look at what came of the option.
//! The same tests run against Debian's nbdkit (`NBDKIT_UNDER_TEST=debian`), which skips, with the
//! reason, what it does not have.
#![expect(clippy::unwrap_used, reason = "a file that cannot be prepared is a failed test")]

mod build;
mod captive;
mod cgroup;
mod daemon;
mod endings;
mod failed_start;
mod identity;
mod information;
mod isolation;
mod listener_user;
mod log;
mod log_connections;
mod log_file;
mod log_journal;
mod negotiation;
mod oom;
mod parameters;
mod refusals;
mod signals;
mod single;
mod support;
mod systemd;
mod tcp;
mod threads;
mod timeout;
mod titles;
mod trace;
mod unix_socket;
mod uri;
