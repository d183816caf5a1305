//! Namespaces of the template's own: no network, no System V IPC with others, a host name and mounts that are not the
//! machine's. namespaces(7).
//!
//! Only where the process may make them, which means root. User namespaces would let anybody, but they open more of the
//! kernel than they close, and many systems refuse them. An ordinary user has the filter against sockets instead.

#![forbid(unsafe_code)]

use nbdkit_api::{debug, strerror};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Enters those of IPC, host name and mounts, as far as that is possible.
pub(super) fn enter() {
    own(CloneFlags::CLONE_NEWIPC, "IPC");
    own(CloneFlags::CLONE_NEWUTS, "UTS");
    own(CloneFlags::CLONE_NEWNS, "mount");
    keep_mounts();
}

/// Enters one without a network. The sockets of clients, and those that the broker connects, stay in the namespace that they
/// were made in.
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

/// What is mounted here stays here; what is unmounted outside goes here too, so that nothing is kept busy.
fn keep_mounts() {
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    let none = None::<&str>;
    match mount(none, "/", none, flags, none) {
        Ok(()) | Err(Errno::EPERM) => {}
        Err(errno) => debug!("sandbox: mount: /: MS_SLAVE: {}", strerror(errno)),
    }
}
