//! Unix sockets: `-U SOCKET` and `-U -`.

#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, UnixAddr};

/// Listens at `path`, which must not exist yet; who may connect is up to the umask. As in nbdkit, the
/// socket is left behind when the server ends.
///
/// # Errors
/// One line with the path.
pub(super) fn listen(path: &Path) -> Result<OwnedFd, String> {
    try_listen(path).map_err(|errno| format!("bind: {}: {}", path.display(), crate::words(errno)))
}

fn try_listen(path: &Path) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::bind(fd.as_raw_fd(), &UnixAddr::new(path)? as &dyn SockaddrLike)?;
    socket::listen(&fd, Backlog::MAXCONN)?;
    Ok(fd)
}

/// A directory that only we can enter, for the socket of `-U -`. Goes when this is dropped.
pub(crate) struct PrivateDirectory {
    directory: PathBuf,
    socket: PathBuf,
}

impl PrivateDirectory {
    /// Makes it.
    ///
    /// # Errors
    /// mkdtemp's.
    pub(super) fn new() -> Result<PrivateDirectory, String> {
        let directory = nix::unistd::mkdtemp("/tmp/nbdkitXXXXXX")
            .map_err(|errno| format!("mkdtemp: /tmp/nbdkitXXXXXX: {}", crate::words(errno)))?;
        let socket = directory.join("socket");
        Ok(PrivateDirectory { directory, socket })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }

    /// Where the socket is.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_dir(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_socket_can_be_connected_to_and_is_gone_afterwards() {
        let directory = PrivateDirectory::new().unwrap();
        let path = directory.socket().to_owned();
        let _listener = listen(&path).unwrap();
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        let again = listen(&path).unwrap_err();
        assert_eq!(again, format!("bind: {}: Address already in use", path.display()));
        drop(directory);
        assert!(!path.exists() && !path.parent().unwrap().exists());
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = listen(Path::new("/no/such/s")).unwrap_err();
        assert_eq!(error, "bind: /no/such/s: No such file or directory");
    }
}
