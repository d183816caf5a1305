//! Which paths may be opened: those that the stack has declared. Landlock, landlock(7).
//!
//! What is open already stays open, and looking (stat) is not restricted. A rule is about the file
//! that is there now: one that takes its name later is not covered. So what a stack declares is
//! opened by a broker, where that is possible, and gets no rule here. Paths that do not exist, or
//! that this user cannot reach, could not be opened anyway and get no rule.

#![forbid(unsafe_code)]

mod system;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd,
    RestrictSelfAttr, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope,
};
use nbdkit_api::exports::MAX_EXPORTS;
use nbdkit_api::needs::Network;
use nbdkit_api::paths::Declared;
use nbdkit_api::{Access, Errno, Error, Needs, Result, ResultExt, debug};
use nix::sys::stat::{SFlag, fstat};

/// The rules of a stack, not yet in force.
pub(super) struct Rules {
    rules: RulesetCreated,
    /// How many paths they are for.
    paths: usize,
    /// For the threads that the kernel does not restrict with the one that asks for it.
    others: Option<OwnedFd>,
}

impl Rules {
    /// # Errors
    /// EPERM: the kernel has Landlock and does not take the rules.
    pub(super) fn new(needs: &Needs) -> Result<Rules> {
        /// The first version that has LANDLOCK_RESTRICT_SELF_TSYNC.
        const ALL_THREADS: u32 = 8;
        let version = super::landlock();
        let abi = ABI::from(version.cast_signed());
        let mut rules = ruleset(needs, abi).map_err(failed)?;
        let mut others = None;
        // Asked for where it is not there, it would count as a restriction that is missing.
        if version >= ALL_THREADS {
            rules = rules.all_threads(true).map_err(failed)?;
        } else {
            others = rules.try_clone().or_error(|| "landlock: dup")?.into();
        }
        Ok(Rules { rules, paths: needs.paths.len(), others })
    }

    /// What every other thread has to put in force before [`Rules::restrict`] is called.
    pub(super) fn of_others(&self) -> Option<BorrowedFd<'_>> {
        self.others.as_ref().map(AsFd::as_fd)
    }

    /// Restricts this thread and all that come from it.
    ///
    /// # Errors
    /// EPERM: the kernel does not let us.
    pub(super) fn restrict(self) -> Result<()> {
        let status = self.rules.restrict_self().map_err(failed)?;
        match status.ruleset {
            RulesetStatus::NotEnforced => Err(Error::new(Errno::EPERM, "landlock: not in force")),
            _ => {
                debug!("sandbox: Landlock, {} paths", self.paths);
                Ok(())
            }
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: RulesetError) -> Error {
    Error::new(Errno::EPERM, format!("landlock: {error}"))
}

/// The TCP port of name servers. RFC 7766.
const DNS: u16 = 53;

/// What to restrict is asked for as far as `abi` has it, of what we know ([`ABI::V6`]).
fn ruleset(needs: &Needs, abi: ABI) -> std::result::Result<RulesetCreated, RulesetError> {
    let abi = abi.min(ABI::V6);
    let mut ruleset = Ruleset::default().handle_access(AccessFs::from_all(abi))?;
    let (scope, net) = (Scope::from_all(abi), AccessNet::from_all(abi));
    if !scope.is_empty() {
        ruleset = ruleset.scope(scope)?;
    }
    if needs.network < Network::Inet && !net.is_empty() {
        ruleset = ruleset.handle_access(net)?;
    }
    let mut ruleset = ruleset.create()?;
    let allow = |ruleset, path: &Path, rights| allow(ruleset, path, rights, abi);
    // A script is a path to be read, and what it puts into its directory may be a program too.
    let run = if needs.programs { AccessFs::Execute.into() } else { BitFlags::EMPTY };
    // Without a broker, what it would have opened is opened here.
    let declared: &[_] = if needs.paths_are_brokered() { &[] } else { &needs.declared };
    for declared in declared {
        let rights = if declared.writable { open_for_writing() } else { read() };
        ruleset = allow(ruleset, &declared.path, rights | AccessFs::IoctlDev)?;
        for target in link_targets(declared) {
            ruleset = allow(ruleset, &target, rights | AccessFs::IoctlDev)?;
        }
    }
    for (path, access) in &needs.paths {
        let rights = match access {
            Access::Look => continue,
            Access::RemoveDirs => AccessFs::RemoveDir.into(),
            Access::Read => read() | run,
            Access::Write => write() | run,
        };
        ruleset = allow(ruleset, path, rights)?;
    }
    if needs.programs {
        for path in there(system::PROGRAMS) {
            ruleset = allow(ruleset, path, read() | AccessFs::Execute)?;
        }
        for path in there(system::READABLE).chain(there(system::TLS)) {
            ruleset = allow(ruleset, path, read())?;
        }
        for path in versioned() {
            ruleset = allow(ruleset, &path, read())?;
        }
        for path in there(system::DEVICES) {
            let rights = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
            ruleset = allow(ruleset, path, rights)?;
        }
    }
    if needs.network >= Network::Ports {
        for path in there(system::RESOLVER) {
            ruleset = allow(ruleset, path, read())?;
        }
    }
    if needs.network == Network::Inet || needs.trust_roots {
        for path in there(system::TLS) {
            ruleset = allow(ruleset, path, read())?;
        }
    }
    if needs.network == Network::Ports && !net.is_empty() {
        // Long answers of name servers come by TCP.
        for port in needs.tcp_ports.iter().copied().chain([DNS]) {
            ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
        }
    }
    Ok(ruleset)
}

fn read() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

/// Those of a list that this machine has.
fn there(list: &'static [&'static str]) -> impl Iterator<Item = &'static Path> {
    list.iter().map(Path::new).filter(|path| path.exists())
}

/// The directories of [`system::VERSIONED`].
fn versioned() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/etc").into_iter().flatten().flatten();
    let begins = |name: &str| system::VERSIONED.iter().any(|wanted| name.starts_with(wanted));
    let wanted = entries.filter(|entry| entry.file_name().to_str().is_some_and(begins));
    wanted.map(|entry| entry.path()).collect()
}

/// Where symbolic links in a directory lead that is opened without a broker. Later ones cannot be
/// followed.
fn link_targets(declared: &Declared) -> Vec<PathBuf> {
    let wanted = declared.children && declared.links;
    let entries = wanted.then(|| std::fs::read_dir(&declared.path).ok()).flatten();
    let links = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    let targets = links.filter_map(|link| std::fs::canonicalize(link.path()).ok());
    targets.filter(|target| !target.is_dir()).take(MAX_EXPORTS).collect()
}

fn open_for_writing() -> BitFlags<AccessFs> {
    read() | AccessFs::WriteFile | AccessFs::Truncate
}

/// All but devices: nobody needs to make those.
fn write() -> BitFlags<AccessFs> {
    read()
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::IoctlDev
        | AccessFs::RemoveDir
        | AccessFs::RemoveFile
        | AccessFs::MakeDir
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::MakeFifo
        | AccessFs::MakeSym
        | AccessFs::Refer
}

fn allow(
    ruleset: RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
    abi: ABI,
) -> std::result::Result<RulesetCreated, RulesetError> {
    let Ok(fd) = PathFd::new(path) else {
        debug!("sandbox: no rule for {}, which cannot be opened", path.display());
        return Ok(ruleset);
    };
    let is_directory = fstat(fd.as_fd()).is_ok_and(|stat| {
        SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
    });
    let of_kind = if is_directory { AccessFs::from_all(abi) } else { AccessFs::from_file(abi) };
    let rights = rights & of_kind;
    if rights.is_empty() {
        return Ok(ruleset);
    }
    ruleset.add_rule(PathBeneath::new(fd, rights))
}
