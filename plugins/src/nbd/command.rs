//! `command=`: an NBD server that this one runs and has to itself.
//! nbd_connect_systemd_socket_activation(3).
//!
//! Its socket is made, and connected to, while the server starts; the program runs once the sandbox
//! is closed, so that it is confined as other programs of the stack are: it may be qemu-nbd(8),
//! which reads images that are hostile.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use nbdkit_api::programs::{self, Program};
use nbdkit_api::{Result, ResultExt};

/// Passes the socket, which is its standard input, on as descriptor 3. sd_listen_fds(3): the
/// variable has to have the number of the process that executes the program.
const ACTIVATE: &str = "exec 3<&0 </dev/null
LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=unknown
export LISTEN_PID LISTEN_FDS LISTEN_FDNAMES
exec \"$@\"";

/// A socket that is listened on, and its only connection.
pub(super) struct Sockets {
    listener: UnixListener,
    stream: UnixStream,
}

impl Sockets {
    /// Makes them; no path leads to them afterwards.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn new() -> Result<Sockets> {
        let directory =
            nix::unistd::mkdtemp("/tmp/nbdkitXXXXXX").or_error(|| "mkdtemp: /tmp/nbdkitXXXXXX")?;
        let path = directory.join("socket");
        let sockets = Sockets::at(&path);
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_dir(&directory);
        sockets
    }

    fn at(path: &Path) -> Result<Sockets> {
        let listener = UnixListener::bind(path).or_error(|| format!("bind: {}", path.display()))?;
        let stream =
            UnixStream::connect(path).or_error(|| format!("connect: {}", path.display()))?;
        Ok(Sockets { listener, stream })
    }

    /// Starts the program on the socket that is listened on; the other end.
    ///
    /// # Errors
    /// The kernel's. That there is no such program is noticed at the other end, and is on standard
    /// error.
    pub(super) fn start(self, program: &OsString, args: &[OsString]) -> Result<(Program, OwnedFd)> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(ACTIVATE).arg("nbdkit").arg(program).args(args);
        command.stdin(Stdio::from(OwnedFd::from(self.listener))).stdout(Stdio::null());
        let program = programs::start(&mut command).or_error(|| "command: /bin/sh")?;
        Ok((program, self.stream.into()))
    }
}
