//! `-u` and `-g`: the user of template and workers; `--listener-user`: the user of the listener.
//! Those of the command line are looked up first, so that a mistyped name is reported before
//! anything is started. A listener that changes its user never takes the workers' user, who must
//! not be able to signal it.
//!
//! Unlike nbdkit, which changes only the user id with `-u` and keeps root's group, the primary
//! group of the user comes with it unless `-g` names another.

#![forbid(unsafe_code)]

use std::ffi::OsStr;

use nbdkit_sandbox::capabilities::{self, Capability};
use nix::unistd::{Gid, Group, Uid, User, geteuid, getgroups, getresgid, getresuid};
use thiserror::Error;

use crate::cli::build_info::LISTENER_USER;
use crate::privileges::{self, Account};

/// The ids that the template is to take; `None` keeps what it has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User id.
    pub(crate) user: Option<u32>,
    /// Group id.
    pub(crate) group: Option<u32>,
}

/// The user of the listener once it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListenerUser {
    /// The user that has started it: an ordinary one, or root with `--listener-user=root` or
    /// without a sandbox.
    Same,
    /// Another user. `demanded`: the command line names it.
    Other { account: Account, name: String, demanded: bool },
    /// Root, since there is no other user; why, one line for the log.
    Root(String),
}

/// Why a user or group of the command line cannot be had.
#[derive(Debug, Error)]
#[cfg_attr(test, derive(PartialEq, Eq))]
pub(crate) enum IdentityError {
    /// No user of that name, and no number.
    #[error("{option} option: {name} is not a valid user name or uid")]
    NoUser { option: &'static str, name: String },
    /// No group of that name, and no number.
    #[error("-g option: {0} is not a valid group name or gid")]
    NoGroup(String),
    /// `--listener-user` without root.
    #[error("--listener-user option: only a server that root has started changes its user")]
    NotRoot,
    /// `--listener-user` with the user of `-u`.
    #[error("--listener-user option: {0} is the user that serves (-u)")]
    Serves(String),
    /// A capability that becoming the listener's user takes is missing.
    #[error("--listener-user option: cannot change to {name}: it takes {lacking}")]
    Lacks { name: String, lacking: Capability },
    /// An id that this process may not change to.
    #[error(
        "{option} option: cannot change to {kind} {id}: Operation not permitted \
         (it takes root or {takes})"
    )]
    Forbidden { option: &'static str, kind: &'static str, id: u32, takes: Capability },
    /// `-g` would keep supplementary groups.
    #[error(
        "-g option: setgroups: Operation not permitted (to leave the other groups takes root or {})",
        Capability::CAP_SETGID
    )]
    OtherGroups,
}

/// Looks up the argument of `--listener-user`, or the user of this build. `sandboxed`: false with
/// `--sandbox=off`. `serving`: see [`identity`].
///
/// # Errors
/// The argument is not a name or number, or this process may not change to it.
pub(crate) fn listener_user(
    given: Option<&OsStr>,
    sandboxed: bool,
    serving: Identity,
) -> Result<ListenerUser, IdentityError> {
    let default = OsStr::new(LISTENER_USER);
    let name = given.unwrap_or(default);
    if given.is_none() && (!geteuid().is_root() || !sandboxed || name.is_empty()) {
        return Ok(ListenerUser::Same);
    }
    let shown = name.to_string_lossy().into_owned();
    let found = find_user(name);
    if given.is_some() {
        if found.is_none() {
            return Err(IdentityError::NoUser { option: "--listener-user", name: shown });
        }
        if !geteuid().is_root() {
            return Err(IdentityError::NotRoot);
        }
    }
    if !sandboxed {
        return Ok(ListenerUser::Same);
    }
    let Some((user, group)) = found else {
        return Ok(ListenerUser::Root(format!(
            "there is no user {shown}: the listener stays root (see --listener-user)"
        )));
    };
    if user == 0 {
        return Ok(ListenerUser::Same);
    }
    if serving.user == Some(user) {
        return match given {
            Some(_) => Err(IdentityError::Serves(shown)),
            None => Ok(ListenerUser::Root(format!(
                "the user that serves (-u) is {shown}: the listener stays root"
            ))),
        };
    }
    let takes = [Capability::CAP_SETUID, Capability::CAP_SETGID, privileges::KEPT];
    if let Some(lacking) = takes.into_iter().find(|capability| !has(*capability)) {
        return match given {
            Some(_) => Err(IdentityError::Lacks { name: shown, lacking }),
            None => Ok(ListenerUser::Root(format!(
                "without {lacking} the listener cannot become {shown}: it stays root"
            ))),
        };
    }
    // A number that no user has gives the group, too: otherwise root's group would stay.
    let group = Gid::from_raw(group.unwrap_or(user));
    let account = Account { user: Uid::from_raw(user), group };
    Ok(ListenerUser::Other { account, name: shown, demanded: given.is_some() })
}

/// Looks up the arguments of `-u` and `-g`.
///
/// # Errors
/// Not a name or number, or this process may not change to it.
pub(crate) fn identity(
    user: Option<&OsStr>,
    group: Option<&OsStr>,
) -> Result<Identity, IdentityError> {
    let mut wanted = Identity::default();
    if let Some(name) = user {
        let (user, primary) = find_user(name).ok_or_else(|| {
            let name = name.to_string_lossy().into_owned();
            IdentityError::NoUser { option: "-u", name }
        })?;
        wanted = Identity { user: Some(user), group: primary };
    }
    if let Some(name) = group {
        let group = find_group(name);
        wanted.group =
            Some(group.ok_or_else(|| IdentityError::NoGroup(name.to_string_lossy().into_owned()))?);
    }
    if is_all_of_us(wanted) && !has(Capability::CAP_SETGID) {
        // An ordinary user who names himself, and may not change supplementary groups. -g drops
        // them, so it fails if there are any.
        return match wanted.group.filter(|_| group.is_some()) {
            Some(group) if has_other_groups(group) => Err(IdentityError::OtherGroups),
            _ => Ok(Identity::default()),
        };
    }
    for (id, takes, option, kind) in [
        (wanted.user, Capability::CAP_SETUID, "-u", "user"),
        (wanted.group, Capability::CAP_SETGID, if group.is_some() { "-g" } else { "-u" }, "group"),
    ] {
        if let Some(id) = id
            && !has(takes)
        {
            return Err(IdentityError::Forbidden { option, kind, id, takes });
        }
    }
    Ok(wanted)
}

fn has(capability: Capability) -> bool {
    capabilities::has(capability).unwrap_or(false)
}

/// Whether this process has supplementary groups that are not this one.
fn has_other_groups(group: u32) -> bool {
    !getgroups().is_ok_and(|groups| groups.into_iter().all(|its| its == Gid::from_raw(group)))
}

/// Whether the real, effective and saved ids of this process are the wanted ones already.
fn is_all_of_us(wanted: Identity) -> bool {
    let user = wanted.user.is_none_or(|user| {
        getresuid()
            .is_ok_and(|ids| [ids.real, ids.effective, ids.saved] == [Uid::from_raw(user); 3])
    });
    let group = wanted.group.is_none_or(|group| {
        getresgid()
            .is_ok_and(|ids| [ids.real, ids.effective, ids.saved] == [Gid::from_raw(group); 3])
    });
    user && group
}

/// User id and primary group of a user that the system knows. Names come before numbers.
fn find_user(name: &OsStr) -> Option<(u32, Option<u32>)> {
    let name = name.to_str()?;
    let known = |user: User| (user.uid.as_raw(), Some(user.gid.as_raw()));
    if let Ok(Some(user)) = User::from_name(name) {
        return Some(known(user));
    }
    let id = number(name)?;
    match User::from_uid(Uid::from_raw(id)) {
        Ok(Some(user)) => Some(known(user)),
        Ok(None) | Err(_) => Some((id, None)),
    }
}

fn find_group(name: &OsStr) -> Option<u32> {
    let name = name.to_str()?;
    match Group::from_name(name) {
        Ok(Some(group)) => Some(group.gid.as_raw()),
        Ok(None) | Err(_) => number(name),
    }
}

/// A decimal id. The largest means "no change" to setuid(2), so it is none.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_users_and_other_text_is_not() {
        assert_eq!(find_user("root".as_ref()), Some((0, Some(0))));
        assert_eq!(find_user("0".as_ref()), Some((0, Some(0))));
        assert_eq!(find_user("123456789".as_ref()), Some((123_456_789, None)));
        for bad in ["", "no such user", "-1", "+1", "4294967295", "4294967296", "1x"] {
            assert_eq!(find_user(bad.as_ref()), None, "{bad}");
            assert_eq!(find_group(bad.as_ref()), None, "{bad}");
        }
    }

    #[test]
    fn the_listener_changes_its_user_only_if_root_has_started_it() {
        let nobody = Identity::default();
        let of = |name: &str, sandboxed| listener_user(Some(name.as_ref()), sandboxed, nobody);
        let error = of("no such user", true).unwrap_err().to_string();
        assert_eq!(error, "--listener-user option: no such user is not a valid user name or uid");
        if !geteuid().is_root() {
            assert_eq!(of("root", true), Err(IdentityError::NotRoot));
            assert_eq!(listener_user(None, true, nobody), Ok(ListenerUser::Same));
            return;
        }
        assert_eq!(of("root", true), Ok(ListenerUser::Same));
        assert_eq!(of("0", true), Ok(ListenerUser::Same));
        assert_eq!(of("123456789", false), Ok(ListenerUser::Same));
        if has(Capability::CAP_SETUID) && has(privileges::KEPT) {
            let id = 123_456_789;
            let account = Account { user: Uid::from_raw(id), group: Gid::from_raw(id) };
            let name = id.to_string();
            let other = ListenerUser::Other { account, name, demanded: true };
            assert_eq!(of("123456789", true), Ok(other));
            let serving = Identity { user: Some(id), group: None };
            let error = listener_user(Some("123456789".as_ref()), true, serving).unwrap_err();
            assert_eq!(error, IdentityError::Serves("123456789".to_owned()));
        }
    }

    #[test]
    fn errors_are_those_of_nbdkit() {
        assert_eq!(
            identity(Some("nosuchuser".as_ref()), None).unwrap_err().to_string(),
            "-u option: nosuchuser is not a valid user name or uid"
        );
        assert_eq!(
            identity(None, Some("nosuchgroup".as_ref())).unwrap_err().to_string(),
            "-g option: nosuchgroup is not a valid group name or gid"
        );
    }
}
