//! What a listener that was started by root gives up: root's uid, which Unix services take for root, and all capabilities but
//! CAP_KILL, the right to signal processes of another user, which is how it ends workers. capabilities(7), credentials(7).
//!
//! A template that is made anew is executed by the spawner, and so gets what it needs from the bounding set of that, to drop it
//! itself. With `--sandbox=off` this process executes it.

#![forbid(unsafe_code)]

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, getresgid, getresuid, setgroups, setresgid, setresuid};

/// The capability of a serving listener.
pub(crate) const KEPT: Capability = Capability::CAP_KILL;

/// What it takes to become another user, and to empty the bounding set.
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
    /// The ids mean nothing in this user namespace, or it lets nobody leave groups: user_namespaces(7). Nothing was changed
    /// but supplementary groups.
    Unmapped(Errno),
    /// Something else, and it is not known what was changed; one line for the user.
    Failed(String),
}

/// Gives up what was for start-up alone. `leaves`: [`leave_root`] and [`empty_bounding_set`] come later. Does nothing for a
/// process that has no capabilities.
///
/// # Errors
/// The system's, or that a capability could be had back; one line for the user.
pub(crate) fn reduce(leaves: bool) -> Result<(), String> {
    let later = if leaves { &TO_LEAVE[..] } else { &[] };
    let kept = later.iter().copied().chain([KEPT]);
    if prctl::get_no_new_privs() == Ok(true) {
        // Programs get no more than their caller may have: the command of --run, the spawner and through it templates, or
        // without a sandbox templates. execve(2)
        return held(kept)
            .and_then(|kept| caps::set(None, CapSet::Effective, &kept))
            .map_err(failed);
    }
    keep(kept)
}

/// Gives up all capabilities but [`KEPT`]. Nothing is executed any more.
///
/// # Errors
/// As [`reduce`].
pub(crate) fn settle() -> Result<(), String> {
    keep([KEPT])
}

/// Nothing that is executed from now on gets capabilities by being root's. Does nothing where the process may not do that.
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

/// Becomes another user for good, with its primary group alone and [`KEPT`]. What a change of credentials undoes is the
/// caller's to do again: PR_SET_PDEATHSIG.
///
/// # Errors
/// [`NotLeft`].
pub(crate) fn leave_root(account: Account) -> Result<(), NotLeft> {
    let Account { user, group } = account;
    let other = |call: &'static str| {
        move |errno: Errno| NotLeft::Failed(format!("{call}: {}", crate::strerror(errno)))
    };
    // Capabilities would go with the uid.
    prctl::set_keepcaps(true).map_err(other("prctl: PR_SET_KEEPCAPS"))?;
    setgroups(&[]).map_err(NotLeft::Unmapped)?;
    setresgid(group, group, group).map_err(NotLeft::Unmapped)?;
    setresuid(user, user, user).map_err(other("setresuid"))?;
    prctl::set_keepcaps(false).map_err(other("prctl: PR_SET_KEEPCAPS"))?;
    settle().map_err(NotLeft::Failed)?;
    // Processes of the same user are strangers.
    prctl::set_dumpable(false).map_err(other("prctl: PR_SET_DUMPABLE"))?;
    check(account).map_err(NotLeft::Failed)
}

/// Makes sure of what [`leave_root`] has done.
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

/// Gives up all capabilities but those of these that there are, and makes sure that the others are gone.
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
