//! Template and broker become the final user and drop privileges for good: which capabilities they
//! keep, and their limits. nbdkit(1), `-u`, `-g`, `--swap`; capabilities(7), setrlimit(2).
//!
//! Every step is verified by trying to undo it. It works for root, with and without `-u`, and for
//! ordinary users.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use nbdkit_api::{Access, Errno, Error, Result, ResultExt};
use nbdkit_ipc::messages::EnterService;
use nbdkit_sandbox::capabilities::{self, Capability, CapsHashSet};
use nbdkit_sandbox::credentials::Credentials;
use nbdkit_sandbox::process::{forbid_dumps, forbid_new_privileges};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::unistd::{AccessFlags, Gid, Uid, faccessat, fchownat, geteuid};

/// Takes the user and group of the command line for good, without supplementary groups.
///
/// # Errors
/// EPERM if the process may not, or if root's id could be regained.
pub(crate) fn become_user(service: &EnterService, swap: bool) -> Result<()> {
    if swap {
        // The final user locks as much as root may. mlockall(2) reports if that is not enough.
        let (_, hard) =
            getrlimit(Resource::RLIMIT_MEMLOCK).or_error(|| "getrlimit: RLIMIT_MEMLOCK")?;
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)
            .or_else(|_| setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard));
    }
    // Not only root changes groups: a service manager may give the capability (ambient). With -g
    // the supplementary groups are dropped, as in nbdkit; a user who may not change groups, and
    // names himself, keeps them.
    let may = || capabilities::has(Capability::CAP_SETGID).map_err(failed);
    let another = service.user.is_some() && (geteuid().is_root() || may()?);
    let group = service.group.map(Gid::from_raw);
    let wanted = Credentials {
        user: service.user.map(Uid::from_raw),
        group,
        groups: (group.is_some() || another).then(|| group.into_iter().collect()),
    };
    let was_root = geteuid().is_root();
    wanted.take().map_err(failed)?;
    if !was_root && service.user.is_some() {
        // A change of user takes root's capabilities away, and leaves those of any other user
        // (ambient ones). capabilities(7).
        capabilities::keep([]).map_err(failed)?;
    }
    wanted.check().map_err(failed)
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
    // Only this process can have made entries: others have no access to the directory.
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

/// Which files of other users root without `-u` may have to open.
#[derive(Debug, Clone)]
pub(crate) enum Files {
    /// These.
    Declared(Vec<(PathBuf, Access)>),
    /// It is not known which.
    Any,
    /// Whatever its programs open, create and chown(2).
    OfPrograms,
}

/// The capability that root's broker without `-u` keeps, to open the files of others: to read them,
/// or to write them too if the stack `writes`.
pub(crate) fn dac_override(writes: bool) -> [Capability; 1] {
    [if writes { Capability::CAP_DAC_OVERRIDE } else { Capability::CAP_DAC_READ_SEARCH }]
}

/// Capabilities that let root open the files of others.
const DAC_OVERRIDES: [Capability; 2] =
    [Capability::CAP_DAC_READ_SEARCH, Capability::CAP_DAC_OVERRIDE];

/// Capabilities that are about files and nothing else, which root's programs keep: chown(1),
/// chmod(1), cp -p, install(1) and tar(1) work as they do for root. capabilities(7).
const OF_PROGRAMS: [Capability; 5] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
];

/// Limits the capabilities that executed programs get: none, or, if this process stays root and
/// runs programs, those about files. Only where the process may change that. Called before it
/// becomes another user, who may not.
///
/// execve(2) gives root what is in the bounding set, and no more than the caller had
/// (no_new_privs): the programs of root have what their caller keeps in [`drop_capabilities`].
///
/// # Errors
/// The system's.
pub(crate) fn limit_bounding_set(service: &EnterService, files: &Files) -> Result<()> {
    let mut keep = CapsHashSet::new();
    if stays_root(service) && matches!(files, Files::OfPrograms) {
        keep.extend(OF_PROGRAMS);
    }
    capabilities::limit_bounding_set(&keep).map_err(failed)
}

fn stays_root(service: &EnterService) -> bool {
    geteuid().is_root() && service.user.is_none_or(|user| user == 0)
}

/// Drops all capabilities but those `besides`. Root without `-u` whose stack itself opens files
/// that their owner's rights do not open for root keeps CAP_DAC_READ_SEARCH for that, or
/// CAP_DAC_OVERRIDE if it may write them; both if it is not known which files; all about files if
/// it runs programs. With `--swap` (`locks`) and a limit on locked memory it keeps CAP_IPC_LOCK
/// too.
///
/// # Errors
/// EPERM if a capability is left or could be regained.
pub(crate) fn drop_capabilities(files: &Files, locks: bool, besides: &[Capability]) -> Result<()> {
    let paths = if let Files::Declared(paths) = files { &paths[..] } else { &[] };
    let with: Vec<bool> = each_entry(paths).map(|(path, access)| opens(&path, access)).collect();
    capabilities::lower_effective([]).map_err(failed)?;
    let mut keep: CapsHashSet = match files {
        Files::Declared(_) => [].into(),
        Files::Any => DAC_OVERRIDES.into(),
        Files::OfPrograms => OF_PROGRAMS.into(),
    };
    keep.extend(besides);
    for ((path, access), opened) in each_entry(paths).zip(with) {
        if opened && !opens(&path, access) {
            // For open(2), CAP_DAC_OVERRIDE permits all that CAP_DAC_READ_SEARCH does.
            keep.insert(match access {
                Access::Write => Capability::CAP_DAC_OVERRIDE,
                Access::Look | Access::Read | Access::RemoveDirs => Capability::CAP_DAC_READ_SEARCH,
            });
        }
    }
    if locks && getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft != RLIM_INFINITY) {
        keep.insert(Capability::CAP_IPC_LOCK);
    }
    let keep = capabilities::keep(keep).map_err(failed)?;
    for capability in keep.iter().filter(|it| !besides.contains(it)) {
        nbdkit_api::debug!(
            "sandbox: {capability} is kept, since the command line asks for what needs it"
        );
    }
    Ok(())
}

/// The declared paths, and what is in them if they are directories.
fn each_entry(paths: &[(PathBuf, Access)]) -> impl Iterator<Item = (PathBuf, Access)> {
    paths.iter().filter(|(_, access)| *access != Access::RemoveDirs).flat_map(|(path, access)| {
        let beneath = std::fs::read_dir(path).into_iter().flatten().flatten();
        let beneath = beneath.map(|entry| (entry.path(), *access));
        std::iter::once((path.clone(), *access)).chain(beneath)
    })
}

/// Whether this process can open a path with the capabilities that are in force.
fn opens(path: &PathBuf, access: Access) -> bool {
    let mode = match access {
        Access::Look => AccessFlags::F_OK,
        Access::Read | Access::RemoveDirs => AccessFlags::R_OK,
        Access::Write => AccessFlags::R_OK | AccessFlags::W_OK,
    };
    faccessat(AT_FDCWD, path, mode, AtFlags::AT_EACCESS).is_ok()
}

/// Bytes of data that this process has now, as RLIMIT_DATA counts them; 0 without /proc.
/// proc_pid_status(5).
pub(crate) fn data() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0).saturating_mul(1024)
}

/// For processes that write to no regular file: none can grow.
/// setrlimit(2), RLIMIT_FSIZE.
///
/// # Errors
/// The system's.
pub(crate) fn forbid_file_growth() -> Result<()> {
    setrlimit(Resource::RLIMIT_FSIZE, 0, 0).or_error(|| "setrlimit: RLIMIT_FSIZE")
}

/// Sets no_new_privs, makes this process undumpable, and lowers its limits. `descriptors`: most
/// that it may have open; `memory`: most bytes of data; `None` leaves the limit.
///
/// # Errors
/// The system's; EPERM if a limit could be raised again.
pub(crate) fn lock_down(descriptors: Option<u64>, memory: Option<u64>) -> Result<()> {
    forbid_new_privileges().map_err(failed)?;
    forbid_dumps().map_err(failed)?;
    lower(Resource::RLIMIT_CORE, Some(0), "RLIMIT_CORE")?;
    lower(Resource::RLIMIT_MSGQUEUE, Some(0), "RLIMIT_MSGQUEUE")?;
    lower(Resource::RLIMIT_NOFILE, descriptors, "RLIMIT_NOFILE")?;
    limit_memory(memory)
}

/// Lowers the most bytes of data that this process may have; `None` leaves the limit.
///
/// # Errors
/// The system's; EPERM if the limit could be raised again.
pub(crate) fn limit_memory(memory: Option<u64>) -> Result<()> {
    lower(Resource::RLIMIT_DATA, memory, "RLIMIT_DATA")
}

fn lower(resource: Resource, limit: Option<u64>, name: &str) -> Result<()> {
    let (_, hard) = getrlimit(resource).or_error(|| format!("getrlimit: {name}"))?;
    let limit = limit.unwrap_or(hard).min(hard);
    setrlimit(resource, limit, limit).or_error(|| format!("setrlimit: {name}"))?;
    // Raising it again takes CAP_SYS_RESOURCE.
    let more = limit.saturating_add(1);
    if more > limit && setrlimit(resource, more, more).is_ok() {
        return Err(Error::new(Errno::EPERM, format!("{name} could be raised again")));
    }
    Ok(())
}

/// The error of a layer, as one of the start.
pub(crate) fn failed(error: impl std::fmt::Display) -> Error {
    Error::new(Errno::EPERM, error.to_string())
}
