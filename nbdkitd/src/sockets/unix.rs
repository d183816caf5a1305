//! Unix sockets: `-U SOCKET` and `-U -`.

#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nbdkit_ipc::private;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, UnixAddr};
use nix::sys::stat::Mode;
use nix::unistd::{linkat, unlink};

use crate::system_error::SystemError;

/// The longest path that clients can connect to, bytes. unix(7).
const MAX_PATH: usize = 107;

/// The private directory of `-U -`. mkdtemp(3).
const TEMPLATE: &str = "/tmp/nbdkitXXXXXX";

/// Listens at `path`, which must not exist yet; who may connect is up to the umask. As in nbdkit,
/// the socket is left behind when the server ends.
///
/// Once the path appears a client can connect: the socket is bound beside it, listens, and then
/// gets its name by link(2), which replaces no file, as bind(2). The kernel goes on calling it by
/// its first name, in ss(8) for instance.
///
/// # Errors
/// One line with the path.
pub(super) fn listen(path: &Path) -> Result<OwnedFd, SystemError> {
    let listening = match listen_beside(path) {
        // Where files cannot be linked, or there is no room for another name, the path comes first.
        Ok(None) => UnixAddr::new(path).and_then(|address| listen_at(&address)),
        Ok(Some(fd)) => Ok(fd),
        Err(errno) => Err(errno),
    };
    listening.map_err(SystemError::on("bind", path.display()))
}

/// Listens in a private directory, which no client knows yet: the path may appear before the socket
/// listens.
///
/// # Errors
/// One line with the path.
pub(super) fn listen_in(directory: &PrivateDirectory) -> Result<OwnedFd, SystemError> {
    let path = directory.socket();
    UnixAddr::new(path)
        .and_then(|address| listen_at(&address))
        .map_err(SystemError::on("bind", path.display()))
}

/// As [`listen`], by link(2); `None` if that is not possible.
fn listen_beside(path: &Path) -> nix::Result<Option<OwnedFd>> {
    if path.as_os_str().len() > MAX_PATH {
        return Err(Errno::ENAMETOOLONG);
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    let mut beside = name.to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = directory.join(beside);
    // Two dozen bytes of a socket's path may be taken up by that; then the directory goes by its
    // number.
    let (_directory, address) = match UnixAddr::new(&beside) {
        Ok(address) => (None, address),
        Err(_) => {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let open = nix::fcntl::open(directory, flags, Mode::empty())?;
            let short = format!("/proc/self/fd/{}/.{}", open.as_raw_fd(), std::process::id());
            (Some(open), UnixAddr::new(short.as_str())?)
        }
    };
    let Some(bound) = address.path().map(Path::to_owned) else { return Ok(None) };
    let fd = match listen_at(&address) {
        Ok(fd) => fd,
        // Not ours to remove, whatever it is; or there is no /proc. The next attempt tells.
        Err(Errno::EADDRINUSE | Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let linked = linkat(AT_FDCWD, &bound, AT_FDCWD, path, AtFlags::empty());
    let _ = unlink(&bound);
    match linked {
        Ok(()) => Ok(Some(fd)),
        Err(Errno::EEXIST) => Err(Errno::EADDRINUSE),
        // Some file systems and security modules permit no links, or none to sockets.
        Err(_) => Ok(None),
    }
}

fn listen_at(address: &UnixAddr) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::bind(fd.as_raw_fd(), address as &dyn SockaddrLike)?;
    socket::listen(&fd, Backlog::MAXCONN)?;
    Ok(fd)
}

/// A directory that only this user can enter, for the socket of `-U -`. Removed when this is
/// dropped, unless the spawner removes it.
pub(crate) struct PrivateDirectory {
    directory: PathBuf,
    socket: PathBuf,
    left_to_spawner: bool,
}

impl PrivateDirectory {
    /// Creates the directory.
    ///
    /// # Errors
    /// mkdtemp's.
    pub(super) fn new() -> Result<PrivateDirectory, SystemError> {
        let directory =
            nix::unistd::mkdtemp(TEMPLATE).map_err(SystemError::on("mkdtemp", TEMPLATE))?;
        let socket = directory.join(private::SOCKET);
        Ok(PrivateDirectory { directory, socket, left_to_spawner: false })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }

    /// The spawner removes the directory from now on.
    pub(crate) fn leave_to_spawner(&mut self) {
        self.left_to_spawner = true;
    }

    /// The path of the socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        if !self.left_to_spawner {
            private::remove(&self.directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_socket_can_be_connected_to_and_is_gone_afterwards() {
        let directory = PrivateDirectory::new().unwrap();
        let path = directory.socket().to_owned();
        let _listener = listen_in(&directory).unwrap();
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        let again = listen(&path).unwrap_err().to_string();
        assert_eq!(again, format!("bind: {}: Address already in use", path.display()));
        drop(directory);
        assert!(!path.exists() && !path.parent().unwrap().exists());
    }

    /// The paths of a directory.
    fn entries(directory: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn the_longest_path_is_a_sockets_and_no_other_name_is_left() {
        let directory = PrivateDirectory::new().unwrap();
        let prefix = directory.path().join("").as_os_str().len();
        for length in [80, 107] {
            let path = directory.path().join("s".repeat(length - prefix));
            assert_eq!(path.as_os_str().len(), length);
            let _listener = listen(&path).unwrap();
            std::os::unix::net::UnixStream::connect(&path).unwrap();
            assert_eq!(entries(directory.path()), std::slice::from_ref(&path));
            std::fs::remove_file(&path).unwrap();
        }
        let long = directory.path().join("s".repeat(108 - prefix));
        assert!(listen(&long).is_err());
        assert!(entries(directory.path()).is_empty());
    }

    #[test]
    fn files_at_and_beside_the_path_are_kept() {
        let directory = PrivateDirectory::new().unwrap();
        let path = directory.path().join("sock");
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert_eq!(
            listen(&path).unwrap_err().to_string(),
            format!("bind: {}: Address already in use", path.display())
        );
        assert_eq!(entries(directory.path()), std::slice::from_ref(&path));
        std::fs::remove_file(&path).unwrap();
        let beside = directory.path().join(format!("sock.{}", std::process::id()));
        std::fs::write(&beside, "another's").unwrap();
        let _listener = listen(&path).unwrap();
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert_eq!(std::fs::read(&beside).unwrap(), b"another's");
        std::fs::remove_file(&beside).unwrap();
    }

    /// One thread opens the socket over and over, another connects as soon as there is something.
    #[test]
    fn a_client_that_sees_the_path_can_connect() {
        let directory = PrivateDirectory::new().unwrap();
        let path = directory.socket().to_owned();
        let rounds = 2000;
        let refused = std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                let connect = |_| {
                    let connected = loop {
                        match std::os::unix::net::UnixStream::connect(&path) {
                            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                            connected => break connected,
                        }
                    };
                    std::fs::remove_file(&path).unwrap();
                    connected.err()
                };
                (0..rounds).filter_map(connect).collect::<Vec<_>>()
            });
            for _ in 0..rounds {
                let _listener = listen(&path).unwrap();
                while path.exists() {
                    std::thread::yield_now();
                }
            }
            client.join().unwrap()
        });
        assert!(refused.is_empty(), "{} of {rounds}: {refused:?}", refused.len());
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = listen(Path::new("/no/such/s")).unwrap_err().to_string();
        assert_eq!(error, "bind: /no/such/s: No such file or directory");
    }
}
