//! Becoming another user and group for good. credentials(7).

#![forbid(unsafe_code)]

use std::fmt;

use nbdkit_common::strerror;
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, getresgid, getresuid, setgroups, setresgid, setresuid};

use crate::{Error, Result};

/// The ids that a process is to have, real, effective and saved. `None` leaves what it has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User id.
    pub user: Option<Uid>,
    /// Group id.
    pub group: Option<Gid>,
    /// Supplementary groups.
    pub groups: Option<Vec<Gid>>,
}

/// Which change the kernel has refused. Those before it have been made, in the order of the
/// variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Supplementary groups.
    Groups(Errno),
    /// The group id.
    Group(Gid, Errno),
    /// The user id.
    User(Uid, Errno),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Groups(errno) => write!(f, "setgroups: {}", strerror(*errno)),
            Refused::Group(group, errno) => write!(f, "setgid: {group}: {}", strerror(*errno)),
            Refused::User(user, errno) => write!(f, "setuid: {user}: {}", strerror(*errno)),
        }
    }
}

impl Credentials {
    /// Takes them: groups first, since the right to change them goes with root's user id.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn take(&self) -> std::result::Result<(), Refused> {
        if let Some(groups) = &self.groups {
            setgroups(groups).map_err(Refused::Groups)?;
        }
        if let Some(group) = self.group {
            setresgid(group, group, group).map_err(|errno| Refused::Group(group, errno))?;
        }
        if let Some(user) = self.user {
            setresuid(user, user, user).map_err(|errno| Refused::User(user, errno))?;
        }
        Ok(())
    }

    /// Checks that this process has them, and that a user other than root cannot become root again.
    /// To be called when the process has dropped the capabilities that it does not keep.
    ///
    /// # Errors
    /// It has others, or root's could be regained.
    pub fn check(&self) -> Result<()> {
        let root = Uid::from_raw(0);
        if self.user.is_some_and(|user| !user.is_root()) && setresuid(root, root, root).is_ok() {
            return Err(Error::new("root privileges could be regained after setuid"));
        }
        let uids = getresuid().map_err(Error::os("getresuid"))?;
        let gids = getresgid().map_err(Error::os("getresgid"))?;
        let user = self.user.is_none_or(|it| [uids.real, uids.effective, uids.saved] == [it; 3]);
        let group = self.group.is_none_or(|it| [gids.real, gids.effective, gids.saved] == [it; 3]);
        if user && group {
            return Ok(());
        }
        Err(Error::new("user and group did not change as asked"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{getgid, getuid};

    #[test]
    fn ids_that_a_process_has_are_taken_and_others_are_noticed() {
        let own = Credentials { user: Some(getuid()), group: Some(getgid()), groups: None };
        assert_eq!(own.take(), Ok(()));
        assert_eq!(own.check(), Ok(()));
        let group = Gid::from_raw(getgid().as_raw() + 1);
        let other = Credentials { group: Some(group), ..own };
        assert_eq!(other.check(), Err(Error::new("user and group did not change as asked")));
    }

    #[test]
    fn a_refusal_names_the_call_and_the_id() {
        let refused = Refused::User(Uid::from_raw(7), Errno::EPERM);
        assert_eq!(refused.to_string(), "setuid: 7: Operation not permitted");
    }
}
