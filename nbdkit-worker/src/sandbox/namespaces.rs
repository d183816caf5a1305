//! Namespaces of the template's own: no network, no System V IPC with others, a host name that is
//! not the machine's. namespaces(7).
//!
//! Not a mount namespace. It would guard against mounting, which takes a capability that is dropped
//! and system calls that every list denies, and it would hide no path. But it has a copy of each
//! mount: where `/` is a private mount, as in many containers, a file system that is unmounted
//! outside stays in use until the template ends, with its USB disk, loop device or NFS server.
//!
//! Only root makes them. In a user namespace anybody could, but user namespaces expose more of the
//! kernel than they protect, and many systems deny them. For an ordinary user the filter denies
//! sockets.

#![forbid(unsafe_code)]

use nbdkit_api::{debug, strerror};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

/// Unshares IPC and host name, as far as the process may.
pub(super) fn enter() {
    own(CloneFlags::CLONE_NEWIPC, "IPC");
    own(CloneFlags::CLONE_NEWUTS, "UTS");
}

/// Unshares the network. The sockets of clients, and those that the broker connects, stay in the
/// namespace that they were made in.
pub(super) fn enter_network() {
    own(CloneFlags::CLONE_NEWNET, "network");
}

fn own(flag: CloneFlags, name: &str) {
    match unshare(flag) {
        Ok(()) => debug!("sandbox: own {name} namespace"),
        Err(Errno::EPERM) => debug!("sandbox: no {name} namespace without CAP_SYS_ADMIN"),
        Err(errno) => debug!("sandbox: no {name} namespace: {}", strerror(errno)),
    }
}
