//! Namespaces of the template's own: no network, no System V IPC with others, a host name that is
//! not the machine's. namespaces(7).
//!
//! Mounts are the machine's. A namespace of them guards against mounting, which takes a capability
//! that is gone and system calls that every list refuses, and it hides no path, which Landlock
//! does. What it did was to hold a copy of each mount: where `/` is a private mount, as in many
//! containers, a file system that was unmounted outside stayed in use until the template ended,
//! with its USB disk, loop device or NFS server.
//!
//! Only where the process may make them, which means root. User namespaces would let anybody, but
//! they open more of the kernel than they close, and many systems refuse them. An ordinary user has
//! the filter against sockets instead.

#![forbid(unsafe_code)]

use nbdkit_api::{debug, strerror};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

/// Enters those of IPC and host name, as far as that is possible.
pub(super) fn enter() {
    own(CloneFlags::CLONE_NEWIPC, "IPC");
    own(CloneFlags::CLONE_NEWUTS, "UTS");
}

/// Enters one without a network. The sockets of clients, and those that the broker connects, stay
/// in the namespace that they were made in.
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
