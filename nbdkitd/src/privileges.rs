//! The privileges that a listener started by root drops: root's uid, which Unix services take for
//! root, and all capabilities but CAP_KILL, the right to signal processes of another user, with
//! which it kills workers. capabilities(7), credentials(7).
//!
//! A new template is executed by the spawner, gets the capabilities that it needs from the
//! spawner's bounding set, and drops them itself. With `--sandbox=off` this process executes it.

#![forbid(unsafe_code)]

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, getresgid, getresuid, setgroups, setresgid, setresuid};

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
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotLeft {
    /// The ids mean nothing in this user namespace, or it lets nobody leave groups:
    /// user_namespaces(7). Nothing was changed but supplementary groups.
    Unmapped(Errno),
    /// Another error, after which the credentials are not known; one line for the user.
    Failed(String),
}

/// Drops what only start-up needs. `leaves`: [`leave_root`] and [`empty_bounding_set`] come later.
/// Does nothing for a process that has no capabilities.
///
/// # Errors
/// Those of the system calls, or a capability could be regained; one line for the user.
pub(crate) fn reduce(leaves: bool) -> Result<(), String> {
    let later = if leaves { &TO_LEAVE[..] } else { &[] };
    let kept = later.iter().copied().chain([KEPT]);
    if prctl::get_no_new_privs() == Ok(true) {
        // The permitted set limits what executed programs get: the command of --run, the spawner
        // and through it templates, or without a sandbox templates. execve(2)
        return held(kept)
            .and_then(|kept| caps::set(None, CapSet::Effective, &kept))
            .map_err(failed);
    }
    keep(kept)
}

/// Drops all capabilities but [`KEPT`]. Must not yet be called while there are programs to be
/// executed.
///
/// # Errors
/// As [`reduce`].
pub(crate) fn settle() -> Result<(), String> {
    keep([KEPT])
}

/// Empties the bounding set: programs that are executed as root from now on get no capabilities.
/// Does nothing where the process may not do that.
///
/// # Errors
/// The system's; one line for the user.
pub(crate) fn empty_bounding_set() -> Result<(), String> {
    let empty = || {
        if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
            caps::clear(None, CapSet::Bounding)?;
        }
        Ok(())
    };
    empty().map_err(failed)
}

/// Becomes another user for good, with its primary group alone and [`KEPT`]. The caller has to set
/// PR_SET_PDEATHSIG again, which a change of credentials clears.
///
/// # Errors
/// [`NotLeft`].
pub(crate) fn leave_root(account: Account) -> Result<(), NotLeft> {
    let Account { user, group } = account;
    let other = |call: &'static str| {
        move |errno: Errno| NotLeft::Failed(format!("{call}: {}", crate::strerror(errno)))
    };
    // setuid(2) would drop the capabilities.
    prctl::set_keepcaps(true).map_err(other("prctl: PR_SET_KEEPCAPS"))?;
    setgroups(&[]).map_err(NotLeft::Unmapped)?;
    setresgid(group, group, group).map_err(NotLeft::Unmapped)?;
    setresuid(user, user, user).map_err(other("setresuid"))?;
    prctl::set_keepcaps(false).map_err(other("prctl: PR_SET_KEEPCAPS"))?;
    settle().map_err(NotLeft::Failed)?;
    // Other processes of the user must not read or trace this one.
    prctl::set_dumpable(false).map_err(other("prctl: PR_SET_DUMPABLE"))?;
    check(account).map_err(NotLeft::Failed)
}

/// Checks that [`leave_root`] cannot be undone.
fn check(account: Account) -> Result<(), String> {
    let root = Uid::from_raw(0);
    if setresuid(root, root, root).is_ok() {
        return Err("root's user id could be regained".to_owned());
    }
    let (uids, gids) =
        getresuid().and_then(|uids| Ok((uids, getresgid()?))).map_err(crate::strerror)?;
    let is_other = [uids.real, uids.effective, uids.saved] == [account.user; 3]
        && [gids.real, gids.effective, gids.saved] == [account.group; 3]
        && prctl::get_dumpable() == Ok(false);
    if is_other { Ok(()) } else { Err("the user did not change as asked".to_owned()) }
}

/// Drops all capabilities but these, as far as the process has them, and checks that the others
/// cannot be regained.
fn keep(kept: impl IntoIterator<Item = Capability>) -> Result<(), String> {
    let reduce = || {
        let kept = held(kept)?;
        // Ambient capabilities go with the inheritable ones.
        caps::clear(None, CapSet::Inheritable)?;
        caps::set(None, CapSet::Effective, &kept)?;
        caps::set(None, CapSet::Permitted, &kept)
    };
    reduce().map_err(failed)?;
    if caps::raise(None, CapSet::Permitted, Capability::CAP_SYS_ADMIN).is_ok() {
        return Err("capabilities could be regained after dropping them".to_owned());
    }
    Ok(())
}

/// Those of these that this process has.
fn held(capabilities: impl IntoIterator<Item = Capability>) -> Result<CapsHashSet, CapsError> {
    let held = caps::read(None, CapSet::Permitted)?;
    Ok(capabilities.into_iter().filter(|capability| held.contains(capability)).collect())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: CapsError) -> String {
    format!("capabilities: {error}")
}
