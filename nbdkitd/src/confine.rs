//! Confines the listener once it serves: the paths that it may open (Landlock) and the system calls
//! that it may make (seccomp). All capabilities but one were dropped before
//! ([`crate::privileges`]). `--sandbox=off` leaves both out.
//!
//! A confined listener forks no process and executes no program: the command of `--run` runs
//! already, and the spawner starts templates ([`crate::spawner`]).

#![forbid(unsafe_code)]

mod policy;

use std::path::Path;

use nbdkit_sandbox::landlock::{self, Restricts, Rules};
use nbdkit_sandbox::seccomp::{Action, are_supported, compile, install};
use thiserror::Error;

use crate::log::Log;
use crate::preflight::ParentError;
use crate::privileges::NotLeft;
use crate::sys::refusal;
use crate::system_error::SystemError;

/// The paths that may be opened for reading: /proc for the parents of processes, and the time zone
/// for the system log.
const READABLE: [&str; 3] = ["/proc", "/etc/localtime", "/usr/share/zoneinfo"];

/// Why the listener is not confined.
#[derive(Debug, Error)]
pub(crate) enum ConfineError {
    /// A layer, or a capability that was to be dropped.
    #[error(transparent)]
    Layer(#[from] nbdkit_sandbox::Error),
    /// A system call that was to be refused would not be reported.
    #[error(transparent)]
    Report(#[from] SystemError),
    /// `--listener-user`: the command line names a user that the process cannot become.
    #[error("--listener-user option: cannot change to {name}: {why}")]
    Demanded { name: String, why: NotLeft },
    /// The change to that user has failed half-way.
    #[error("the listener cannot become user {name}: {why}")]
    HalfWay { name: String, why: NotLeft },
    /// `--exit-with-parent`, which a change of user clears.
    #[error(transparent)]
    Parent(#[from] ParentError),
}

/// Confines the listener.
///
/// # Errors
/// The kernel supports a layer and refuses to install it.
pub(crate) fn confine(log: &Log) -> Result<(), ConfineError> {
    restrict_paths(log)?;
    if !are_supported() {
        log.notice(
            "this kernel has no seccomp filters: system calls of the listener are not restricted",
        );
        return Ok(());
    }
    log.prepare_refusal_line();
    refusal::report().map_err(SystemError::on("sigaction", "SIGSYS"))?;
    let filter = compile(&[policy::LISTENER], Action::Trap, Action::Allow)?;
    Ok(install(&filter)?)
}

fn restrict_paths(log: &Log) -> nbdkit_sandbox::Result<()> {
    // Neither signals nor abstract sockets are scoped: the listener kills workers, and a service
    // manager may use an abstract socket.
    let mut rules = Rules::new(landlock::version(), Restricts { tcp: true, scopes: false })?;
    for path in READABLE {
        // A path that does not exist needs no rule.
        rules.allow(Path::new(path), landlock::READ)?;
    }
    if !rules.restrict()? {
        log.notice("this kernel has no Landlock: paths of the listener are not restricted");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use nix::fcntl::{OFlag, open};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use nix::sys::stat::Mode;

    fn opened(path: &str, flags: OFlag) -> Option<Errno> {
        open(path, flags | OFlag::O_CLOEXEC, Mode::empty()).err()
    }

    fn socket_of(family: AddressFamily) -> Option<Errno> {
        socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).err()
    }

    /// A filter holds for the thread that installs it, here one of the test's own. Only the filter
    /// fails with EDOM.
    #[test]
    fn a_serving_listener_reads_proc_and_makes_no_process_file_or_network_socket() {
        let refused = Some(Errno::EDOM);
        std::thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            // The listener has one thread; this one has to end.
            let end = [nbdkit_sandbox::seccomp::any(libc::SYS_exit)];
            let lists = [policy::LISTENER, &end];
            install(&compile(&lists, Action::Fail(libc::EDOM), Action::Allow).unwrap()).unwrap();
            assert!(std::fs::read_to_string("/proc/self/stat").is_ok());
            for family in [AddressFamily::Unix, AddressFamily::Inet, AddressFamily::Netlink] {
                assert_eq!(socket_of(family), refused, "{family:?}");
            }
            let pair = |kind| {
                let flags = SockFlag::SOCK_CLOEXEC;
                nix::sys::socket::socketpair(AddressFamily::Unix, kind, None, flags).err()
            };
            assert_eq!((pair(SockType::SeqPacket), pair(SockType::Datagram)), (None, refused));
            assert_eq!(opened("/dev/null", OFlag::O_RDONLY), None);
            let memfd = |flags| memfd_create(c"x", flags).map(drop).err();
            let of_the_journal = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
            assert_eq!((memfd(of_the_journal), memfd(MFdFlags::empty())), (None, refused));
            for flags in [OFlag::O_WRONLY, OFlag::O_RDWR, OFlag::O_CREAT, OFlag::O_PATH] {
                assert_eq!(opened("/dev/null", flags), refused, "{flags:?}");
            }
            let nothing: [&std::ffi::CStr; 0] = [];
            assert_eq!(nix::unistd::execve(c"/bin/true", &nothing, &nothing).err(), refused);
            let thread = std::thread::Builder::new().spawn(|| {});
            assert_eq!(thread.err().and_then(|error| error.raw_os_error()), Some(libc::EDOM));
            let namespace = nix::sched::CloneFlags::CLONE_NEWUTS;
            assert_eq!(nix::sched::unshare(namespace).err(), refused);
            let uid = nix::unistd::getuid();
            assert_eq!(nix::unistd::setresuid(uid, uid, uid).err(), refused);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_serving_listener_opens_proc_and_nothing_of_the_machines_files() {
        let log = Log::new("test", &crate::cli::command_line::Options::default()).unwrap();
        std::thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            restrict_paths(&log).unwrap();
            assert!(std::fs::read_to_string("/proc/self/stat").is_ok());
            // On a kernel without Landlock nothing is restricted, which was logged.
            if open("/etc/passwd", OFlag::O_RDONLY, Mode::empty()).is_err() {
                assert_eq!(opened("/etc/passwd", OFlag::O_RDONLY), Some(Errno::EACCES));
                assert!(std::process::Command::new("/bin/true").status().is_err());
            }
        })
        .join()
        .unwrap();
    }
}
