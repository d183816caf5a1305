//! The privileges that a listener started by root drops: root's uid, which services on Unix sockets
//! trust, and all capabilities but CAP_KILL, by which it kills workers of another user.
//! capabilities(7), credentials(7).
//!
//! The spawner executes new templates. They get the capabilities that they need from its bounding
//! set, and drop them themselves. With `--sandbox=off` the listener executes them.

#![forbid(unsafe_code)]

use nbdkit_sandbox::capabilities::{self, Capability, CapsHashSet};
use nbdkit_sandbox::credentials::{Credentials, Refused};
use nbdkit_sandbox::process::forbid_dumps;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, geteuid};
use thiserror::Error;

use crate::system_error::SystemError;

/// The capability of a serving listener.
pub(crate) const KEPT: Capability = Capability::CAP_KILL;

/// The capabilities to become another user, and to empty the bounding set.
const TO_LEAVE: [Capability; 3] =
    [Capability::CAP_SETGID, Capability::CAP_SETPCAP, Capability::CAP_SETUID];

/// A user and its primary group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    /// Not root.
    pub(crate) user: Uid,
    /// Its primary group.
    pub(crate) group: Gid,
}

/// Why the listener keeps its user.
#[derive(Debug, Error)]
pub(crate) enum NotLeft {
    /// The ids mean nothing in this user namespace, or it lets nobody leave groups:
    /// user_namespaces(7). Nothing was changed but supplementary groups.
    #[error("{}", crate::strerror(*.0))]
    Unmapped(Errno),
    /// The user id did not change. From here on the credentials are not known.
    #[error("{0}")]
    User(Refused),
    /// Capabilities cannot be kept over the change, or not be dropped after it.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The change is not in force.
    #[error(transparent)]
    Check(#[from] nbdkit_sandbox::Error),
}

/// Drops what only start-up needs. `leaves`: [`leave_root`] and [`empty_bounding_set`] come later.
/// Does nothing for a process that has no capabilities.
///
/// # Errors
/// Those of the system calls, or a capability could be regained.
pub(crate) fn reduce(leaves: bool) -> nbdkit_sandbox::Result<()> {
    let later = if leaves { &TO_LEAVE[..] } else { &[] };
    let kept = later.iter().copied().chain([KEPT]);
    if prctl::get_no_new_privs() == Ok(true) || !geteuid().is_root() {
        // The permitted set limits what executed programs get: the command of --run, the spawner
        // and through it templates, or without a sandbox templates. If this process is not root,
        // they get its ambient capabilities, which the permitted set limits too. execve(2)
        return capabilities::lower_effective(kept);
    }
    capabilities::keep(kept).map(drop)
}

/// Drops all capabilities but [`KEPT`]. Must not yet be called while there are programs to execute,
/// which need more.
///
/// # Errors
/// As [`reduce`].
pub(crate) fn settle() -> nbdkit_sandbox::Result<()> {
    let kept = capabilities::keep([KEPT])?;
    if !geteuid().is_root() && !kept.is_empty() {
        // A user for listeners has others, which must not read or trace this one.
        forbid_dumps()?;
    }
    Ok(())
}

/// Empties the bounding set: programs that are executed as root from now on get no capabilities.
/// Does nothing where the process may not do that.
///
/// # Errors
/// The system's.
pub(crate) fn empty_bounding_set() -> nbdkit_sandbox::Result<()> {
    capabilities::limit_bounding_set(&CapsHashSet::new())
}

/// Becomes another user for good, with its primary group alone and [`KEPT`]. The caller has to set
/// PR_SET_PDEATHSIG again, which a change of credentials clears.
///
/// # Errors
/// [`NotLeft`].
pub(crate) fn leave_root(account: Account) -> Result<(), NotLeft> {
    let wanted = Credentials {
        user: Some(account.user),
        group: Some(account.group),
        groups: Some(Vec::new()),
    };
    let keep_capabilities =
        |kept| prctl::set_keepcaps(kept).map_err(SystemError::in_call("prctl: PR_SET_KEEPCAPS"));
    // setuid(2) would drop the capabilities.
    keep_capabilities(true)?;
    wanted.take().map_err(|refused| match refused {
        Refused::Groups(errno) | Refused::Group(_, errno) => NotLeft::Unmapped(errno),
        Refused::User(..) => NotLeft::User(refused),
    })?;
    keep_capabilities(false)?;
    settle()?;
    // Other processes of the user must not read or trace this one.
    forbid_dumps()?;
    Ok(wanted.check()?)
}
