//! Becoming the user that serves. nbdkit(1), `-u`, `-g`, `--swap`.

#![forbid(unsafe_code)]

use nbdkit_api::{Errno, Error, Result, ResultExt};
use std::path::Path;

use nbdkit_ipc::messages::EnterService;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::unistd::{
    Gid, Uid, fchownat, geteuid, getresgid, getresuid, setgroups, setresgid, setresuid,
};

/// Takes the user and group of the command line for good; supplementary groups go.
///
/// # Errors
/// EPERM if the process may not; EPERM too if root could be had back afterwards.
pub(crate) fn become_user(service: &EnterService, swap: bool) -> Result<()> {
    if swap {
        // The user that we become has to lock what root may lock. Whether it is enough shows when it is tried.
        let (_, hard) =
            getrlimit(Resource::RLIMIT_MEMLOCK).or_error(|| "getrlimit: RLIMIT_MEMLOCK")?;
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)
            .or_else(|_| setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard));
    }
    if (service.user.is_some() || service.group.is_some()) && geteuid().is_root() {
        let only: Vec<Gid> = service.group.map(Gid::from_raw).into_iter().collect();
        setgroups(&only).or_error(|| "setgroups")?;
    }
    if let Some(group) = service.group {
        let gid = Gid::from_raw(group);
        setresgid(gid, gid, gid).or_error(|| format!("setgid: {group}"))?;
    }
    if let Some(user) = service.user {
        let uid = Uid::from_raw(user);
        setresuid(uid, uid, uid).or_error(|| format!("setuid: {user}"))?;
        if user != 0 && (setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok()) {
            return Err(Error::new(Errno::EPERM, "root privileges could be regained after setuid"));
        }
    }
    let (uids, gids) =
        (getresuid().or_error(|| "getresuid")?, getresgid().or_error(|| "getresgid")?);
    let kept = |want: Option<u32>, have: [u32; 3]| want.is_none_or(|want| have == [want; 3]);
    if !kept(service.user, [uids.real, uids.effective, uids.saved].map(Uid::as_raw))
        || !kept(service.group, [gids.real, gids.effective, gids.saved].map(Gid::as_raw))
    {
        return Err(Error::new(Errno::EPERM, "user and group did not change as asked"));
    }
    Ok(())
}

/// Gives a temporary file, or a directory and what is in it, to the user that the server becomes.
///
/// # Errors
/// EPERM, with the path.
pub(crate) fn hand_down(path: &Path, service: &EnterService) -> Result<()> {
    let (user, group) = (service.user.map(Uid::from_raw), service.group.map(Gid::from_raw));
    let give = |path: &Path| {
        fchownat(AT_FDCWD, path, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)
            .or_error(|| format!("chown: {}", path.display()))
    };
    // Nobody but us can have put anything there: it is ours, and not accessible for others.
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        give(&entry.path())?;
    }
    give(path)
}

/// `--swap`: keeps all memory of this process, now and later, out of the swap.
///
/// # Errors
/// ENOMEM, EPERM: RLIMIT_MEMLOCK is too low.
pub(crate) fn lock_memory() -> Result<()> {
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)
        .or_error(|| "mlockall (for --swap; raise RLIMIT_MEMLOCK, see ulimit -l)")
}
