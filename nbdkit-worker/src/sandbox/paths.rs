//! Which paths may be opened: those that the stack has declared. Landlock, landlock(7).
//!
//! Open descriptors stay usable, and stat(2) is not restricted. A rule is about the file that
//! exists now: a file that is renamed to its path later is not covered. So a broker opens what a
//! stack declares, where that is possible, and those paths get no rule. Paths that do not exist, or
//! that this user cannot reach, get no rule either.

#![forbid(unsafe_code)]

mod system;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nbdkit_api::exports::MAX_EXPORTS;
use nbdkit_api::needs::Network;
use nbdkit_api::paths::Declared;
use nbdkit_api::{Access, Needs, Result, debug};
use nbdkit_sandbox::landlock::{self, AccessFs, BitFlags, READ, Restricts};

use crate::privileges::failed;

/// The TCP port of name servers. RFC 7766.
const DNS: u16 = 53;

/// The rules of a stack, not yet in force.
pub(super) struct Rules {
    rules: landlock::Rules,
    /// How many paths they are for.
    paths: usize,
    /// For the other threads, where the kernel restricts only the one that calls it.
    others: Option<OwnedFd>,
}

impl Rules {
    /// # Errors
    /// EPERM: the kernel has Landlock and does not take the rules.
    pub(super) fn new(needs: &Needs) -> Result<Rules> {
        let version = super::landlock();
        let restricts = Restricts { tcp: needs.network < Network::Inet, scopes: true };
        let mut rules = landlock::Rules::new(version, restricts).map_err(failed)?;
        for (path, rights) in allowed(needs) {
            if !rules.allow(&path, rights).map_err(failed)? {
                debug!("sandbox: no rule for {}, which cannot be opened", path.display());
            }
        }
        if needs.network == Network::Ports {
            // Long answers of name servers come by TCP.
            for port in needs.tcp_ports.iter().copied().chain([DNS]) {
                rules.allow_connect(port).map_err(failed)?;
            }
        }
        let others = rules.for_all_threads(version).map_err(failed)?;
        Ok(Rules { rules, paths: needs.paths.len(), others })
    }

    /// The rules for [`threads::confine`](nbdkit_sandbox::threads::confine), where every other
    /// thread has to put them in force before [`Rules::restrict`] is called.
    pub(super) fn of_others(&self) -> Option<BorrowedFd<'_>> {
        self.others.as_ref().map(AsFd::as_fd)
    }

    /// Restricts this thread and what it starts.
    ///
    /// # Errors
    /// EPERM: the kernel does not put the rules in force.
    pub(super) fn restrict(self) -> Result<()> {
        self.rules.restrict().map_err(failed)?;
        debug!("sandbox: Landlock, {} paths", self.paths);
        Ok(())
    }
}

/// The paths that this stack may open, and how.
fn allowed(needs: &Needs) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let mut allowed = Vec::new();
    // Without a broker, what it would have opened is opened here.
    let declared: &[_] = if needs.paths_are_brokered() { &[] } else { &needs.declared };
    for declared in declared {
        let rights = if declared.writable { open_for_writing() } else { READ };
        let paths = std::iter::once(declared.path.clone()).chain(link_targets(declared));
        allowed.extend(paths.map(|path| (path, rights | AccessFs::IoctlDev)));
    }
    // A script is a path to be read, and what it puts into its directory may be a program too.
    let run = if needs.programs { AccessFs::Execute.into() } else { BitFlags::EMPTY };
    for (path, access) in &needs.paths {
        let rights = match access {
            Access::Look => continue,
            Access::RemoveDirs => AccessFs::RemoveDir.into(),
            Access::Read => READ | run,
            Access::Write => write() | run,
        };
        allowed.push((path.to_path_buf(), rights));
    }
    let mut of_system = |list, rights| {
        allowed.extend(existing(list).map(|path| (path.to_path_buf(), rights)));
    };
    if needs.programs {
        of_system(system::PROGRAMS, READ | AccessFs::Execute);
        of_system(system::READABLE, READ);
        of_system(system::TLS, READ);
        let written = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
        of_system(system::DEVICES, written);
    }
    if needs.network >= Network::Ports {
        of_system(system::RESOLVER, READ);
    }
    if needs.network == Network::Inet || needs.trust_roots {
        of_system(system::TLS, READ);
    }
    if needs.programs {
        allowed.extend(versioned().into_iter().map(|path| (path, READ)));
    }
    allowed
}

/// The paths of a list that this machine has.
fn existing(list: &'static [&'static str]) -> impl Iterator<Item = &'static Path> {
    list.iter().map(Path::new).filter(|path| path.exists())
}

/// The directories of [`system::VERSIONED`].
fn versioned() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/etc").into_iter().flatten().flatten();
    let begins = |name: &str| system::VERSIONED.iter().any(|wanted| name.starts_with(wanted));
    let wanted = entries.filter(|entry| entry.file_name().to_str().is_some_and(begins));
    wanted.map(|entry| entry.path()).collect()
}

/// Where the symbolic links in a directory lead that is opened without a broker. Links that are
/// made later cannot be followed.
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
    READ | AccessFs::WriteFile | AccessFs::Truncate
}

/// Everything but making devices, which no stack needs.
fn write() -> BitFlags<AccessFs> {
    READ | AccessFs::WriteFile
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
