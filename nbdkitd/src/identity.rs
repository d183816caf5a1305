//! `-u` and `-g`: who serves. Looked up before anything else is done, so that a typing error costs nothing; the
//! template changes to it, this process does not.
//!
//! Unlike nbdkit, which changes only the user id with `-u` and keeps root's group, the primary group of the user comes
//! with it unless `-g` names another.

#![forbid(unsafe_code)]

use std::ffi::OsStr;

use caps::{CapSet, Capability};
use nix::unistd::{Gid, Group, Uid, User, getgroups, getresgid, getresuid};

/// The ids that the template is to take; `None` keeps what it has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User id.
    pub(crate) user: Option<u32>,
    /// Group id.
    pub(crate) group: Option<u32>,
}

/// Looks up the arguments of `-u` and `-g`.
///
/// # Errors
/// One line: not a name or number, or this process may not change to it.
pub(crate) fn identity(user: Option<&OsStr>, group: Option<&OsStr>) -> Result<Identity, String> {
    let mut wanted = Identity::default();
    if let Some(name) = user {
        let (user, primary) = find_user(name).ok_or_else(|| {
            format!("-u option: {} is not a valid user name or uid", name.to_string_lossy())
        })?;
        wanted = Identity { user: Some(user), group: primary };
    }
    if let Some(name) = group {
        wanted.group = Some(find_group(name).ok_or_else(|| {
            format!("-g option: {} is not a valid group name or gid", name.to_string_lossy())
        })?);
    }
    if is_all_of_us(wanted) && !has(Capability::CAP_SETGID) {
        // An ordinary user who names himself, and may not touch his supplementary groups. With -g alone there is something
        // to be done if he has any: nobody who asks for a group expects others besides.
        return match wanted.group.filter(|_| group.is_some()) {
            Some(group) if has_other_groups(group) => Err(format!(
                "-g option: setgroups: Operation not permitted (to leave the other groups takes root or {})",
                Capability::CAP_SETGID
            )),
            _ => Ok(Identity::default()),
        };
    }
    for (id, capability, option, what) in [
        (wanted.user, Capability::CAP_SETUID, "-u", "user"),
        (wanted.group, Capability::CAP_SETGID, if group.is_some() { "-g" } else { "-u" }, "group"),
    ] {
        if let Some(id) = id
            && !has(capability)
        {
            return Err(format!(
                "{option} option: cannot change to {what} {id}: Operation not permitted (it takes root or {capability})"
            ));
        }
    }
    Ok(wanted)
}

fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
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

/// User id, and the primary group of a user that the system knows. Names come before numbers.
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
    fn names_and_numbers_are_users_and_nonsense_is_not() {
        assert_eq!(find_user("root".as_ref()), Some((0, Some(0))));
        assert_eq!(find_user("0".as_ref()), Some((0, Some(0))));
        assert_eq!(find_user("123456789".as_ref()), Some((123_456_789, None)));
        for bad in ["", "no such user", "-1", "+1", "4294967295", "4294967296", "1x"] {
            assert_eq!(find_user(bad.as_ref()), None, "{bad}");
            assert_eq!(find_group(bad.as_ref()), None, "{bad}");
        }
    }

    #[test]
    fn errors_are_those_of_nbdkit() {
        assert_eq!(
            identity(Some("nosuchuser".as_ref()), None),
            Err("-u option: nosuchuser is not a valid user name or uid".to_owned())
        );
        assert_eq!(
            identity(None, Some("nosuchgroup".as_ref())),
            Err("-g option: nosuchgroup is not a valid group name or gid".to_owned())
        );
    }
}
