//! Plugins that make their disks by programs: linuxdisk and iso when the server starts, tmpdisk and
//! ondemand when a client comes.
#![expect(clippy::unwrap_used, reason = "a file that cannot be prepared is a failed test")]

mod iso;
mod linuxdisk;
mod ondemand;
mod support;
mod tmpdisk;
