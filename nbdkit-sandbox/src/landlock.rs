//! The paths that a process may open, the ports that it may connect to, and the processes that it
//! may signal. landlock(7).
//!
//! Everything that the kernel can restrict is denied, and each rule allows something. A rule is
//! about the file that has the path when the rule is made: not about one that gets the path later.
//! Descriptors that are open keep their rights, and stat(2) is not restricted.

mod version;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use landlock::{
    ABI, Access, AccessNet, NetPort, PathBeneath, PathFd, RestrictSelfAttr, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::sys::prctl;
use nix::sys::stat::{SFlag, fstat};

use crate::{Error, Result};
pub use landlock::{AccessFs, BitFlags};
pub use version::{lacks, version};

/// Opening to read, a file or a directory.
pub const READ: BitFlags<AccessFs> = landlock::make_bitflags!(AccessFs::{ReadFile | ReadDir});

/// The first version that restricts all threads at once, LANDLOCK_RESTRICT_SELF_TSYNC.
const ALL_THREADS: u32 = 8;

/// What is restricted besides paths.
#[derive(Debug, Clone, Copy, Default)]
pub struct Restricts {
    /// TCP ports that are bound and connected to.
    pub tcp: bool,
    /// Signals to processes outside, and abstract Unix sockets of theirs.
    pub scopes: bool,
}

/// Rules that are not yet in force.
#[derive(Debug)]
pub struct Rules {
    abi: ABI,
    /// `None` without Landlock.
    ruleset: Option<RulesetCreated>,
}

impl Rules {
    /// No rules yet: everything is denied that Landlock of `version` restricts. `version` is that
    /// of the kernel ([`version()`]), or an earlier one, to do what a process does on an older
    /// kernel.
    ///
    /// # Errors
    /// The kernel has Landlock and does not take the ruleset.
    pub fn new(version: u32, restricts: Restricts) -> Result<Rules> {
        // What later versions restrict is not asked for: `lacks` does not name it.
        let abi = ABI::from(version.cast_signed()).min(ABI::V6);
        if abi == ABI::Unsupported {
            return Ok(Rules { abi, ruleset: None });
        }
        let create = || {
            let mut ruleset = Ruleset::default().handle_access(AccessFs::from_all(abi))?;
            let (net, scopes) = (AccessNet::from_all(abi), Scope::from_all(abi));
            if restricts.tcp && !net.is_empty() {
                ruleset = ruleset.handle_access(net)?;
            }
            if restricts.scopes && !scopes.is_empty() {
                ruleset = ruleset.scope(scopes)?;
            }
            ruleset.create()
        };
        Ok(Rules { abi, ruleset: Some(create().map_err(broken)?) })
    }

    /// Allows `rights` to what is at `path` now, and to everything beneath it if it is a directory.
    /// Rights that its kind of file does not have, or this version, are left out. Returns false,
    /// and allows nothing, if this process cannot reach the path.
    ///
    /// # Errors
    /// The kernel does not take the rule.
    pub fn allow(&mut self, path: &Path, rights: BitFlags<AccessFs>) -> Result<bool> {
        let Ok(fd) = PathFd::new(path) else { return Ok(false) };
        let Some(ruleset) = &mut self.ruleset else { return Ok(true) };
        let is_directory = fstat(fd.as_fd()).is_ok_and(|stat| {
            SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
        });
        let of_kind =
            if is_directory { AccessFs::from_all(self.abi) } else { AccessFs::from_file(self.abi) };
        let rights = rights & of_kind;
        if !rights.is_empty() {
            ruleset.add_rule(PathBeneath::new(fd, rights)).map_err(broken)?;
        }
        Ok(true)
    }

    /// Allows connecting to a TCP port, where [`Restricts::tcp`].
    ///
    /// # Errors
    /// The kernel does not take the rule.
    pub fn allow_connect(&mut self, port: u16) -> Result<()> {
        let Some(ruleset) = &mut self.ruleset else { return Ok(()) };
        if !AccessNet::from_all(self.abi).is_empty() {
            let rule = NetPort::new(port, AccessNet::ConnectTcp);
            ruleset.add_rule(rule).map_err(broken)?;
        }
        Ok(())
    }

    /// Has [`Rules::restrict`] restrict all threads of the process. Where the kernel cannot, the
    /// descriptor of the rules is returned, for [`threads::confine`](crate::threads::confine).
    ///
    /// # Errors
    /// EMFILE.
    pub fn for_all_threads(&mut self, version: u32) -> Result<Option<OwnedFd>> {
        let Some(ruleset) = &mut self.ruleset else { return Ok(None) };
        // Asked for where it is not there, it would count as a restriction that is missing.
        if version >= ALL_THREADS {
            ruleset.all_threads(true).map_err(broken)?;
            return Ok(None);
        }
        ruleset.try_clone().map(Into::into).map_err(Error::of("landlock: dup"))
    }

    /// Restricts this thread, and what it starts, for good. There are no new privileges any more
    /// either. Returns whether Landlock is in force: not if the version is 0.
    ///
    /// # Errors
    /// The kernel has Landlock and does not put the rules in force.
    pub fn restrict(self) -> Result<bool> {
        let Some(ruleset) = self.ruleset else {
            prctl::set_no_new_privs().map_err(Error::os("prctl: PR_SET_NO_NEW_PRIVS"))?;
            return Ok(false);
        };
        match ruleset.restrict_self().map_err(broken)?.ruleset {
            RulesetStatus::NotEnforced => Err(Error::new("landlock: not in force")),
            RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(true),
        }
    }
}

fn broken(cause: RulesetError) -> Error {
    Error::of("landlock")(cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;

    /// Landlock holds for the thread that asks for it, here one of the test's own. Returns what
    /// opening a file and connecting to two ports led to, the first of which is allowed.
    fn restricted(version: u32) -> (Option<Errno>, Option<Errno>, [bool; 2]) {
        let listener = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = [listener(), listener()];
        let ports = listeners.each_ref().map(|it| it.local_addr().unwrap().port());
        std::thread::spawn(move || {
            let mut rules = Rules::new(version, Restricts { tcp: true, scopes: false }).unwrap();
            assert!(rules.allow(Path::new("/proc"), READ).unwrap());
            assert!(!rules.allow(Path::new("/no/such/path"), READ).unwrap());
            rules.allow_connect(ports[0]).unwrap();
            assert_eq!(rules.restrict().unwrap(), version > 0);
            assert_eq!(prctl::get_no_new_privs(), Ok(true));
            let opened = |path| open(path, OFlag::O_RDONLY, Mode::empty()).err();
            let connected = ports.map(|it| std::net::TcpStream::connect(("127.0.0.1", it)).is_ok());
            (opened("/proc/self/stat"), opened("/etc/passwd"), connected)
        })
        .join()
        .unwrap()
    }

    #[test]
    fn what_no_rule_allows_is_denied_as_far_as_the_version_has_it() {
        assert_eq!(restricted(0), (None, None, [true, true]));
        let kernel = version();
        for version in 1..=kernel {
            let connects = [true, version < 4];
            assert_eq!(restricted(version), (None, Some(Errno::EACCES), connects), "{version}");
        }
    }
}
