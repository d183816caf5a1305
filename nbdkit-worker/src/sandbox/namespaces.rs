//! Namespaces of the template's own: no network, no System V IPC with others, a host name and mounts that are not the
//! machine's. namespaces(7).
//!
//! Only where the process may make them, which means root. User namespaces would let anybody, but they open more of the
//! kernel than they close, and many systems refuse them. An ordinary user has the filter against sockets instead.

#![forbid(unsafe_code)]

use nbdkit_api::needs::Network;
use nbdkit_api::{Needs, debug, strerror};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Enters what can be entered. `confine_network`: without a need for it there is no network.
pub(super) fn enter(needs: &Needs, confine_network: bool) {
    let mut wanted = vec![
        (CloneFlags::CLONE_NEWIPC, "IPC"),
        (CloneFlags::CLONE_NEWUTS, "UTS"),
        (CloneFlags::CLONE_NEWNS, "mount"),
    ];
    // The sockets of clients stay in the namespace that they were made in.
    if confine_network && needs.network == Network::None {
        wanted.push((CloneFlags::CLONE_NEWNET, "network"));
    }
    for (flag, name) in wanted {
        match unshare(flag) {
            Ok(()) => debug!("sandbox: own {name} namespace"),
            Err(Errno::EPERM) => debug!("sandbox: no {name} namespace without CAP_SYS_ADMIN"),
            Err(errno) => debug!("sandbox: no {name} namespace: {}", strerror(errno)),
        }
        if flag == CloneFlags::CLONE_NEWNS {
            keep_mounts();
        }
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
