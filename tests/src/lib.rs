//! What the end-to-end tests stand on: a server started as a child process, and an NBD client of
//! our own.
//!
//! The client is written from the protocol document alone and checks every rule that a server must
//! keep, so it serves as a second opinion on the server. The server is a real executable, ours or
//! Debian's nbdkit (see [`binary`]): the same test runs against both. Every wait has a deadline, so
//! that no test can hang.
#![forbid(unsafe_code)]

pub mod binary;
pub mod client;
pub mod command;
pub mod differential;
pub mod http;
pub mod processes;
pub mod red_team;
pub mod server;
pub mod single;
pub mod tempdir;
pub mod tls;
pub mod tools;
pub mod transcript;
pub mod uninterrupted;
pub mod workout;

pub use client::{Ask, Client};
pub use server::Server;
pub use single::Single;
pub use tempdir::TempDir;
pub use uninterrupted::uninterrupted;
