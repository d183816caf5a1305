//! The control socket, which the watcher serves: one connection at a time, a byte for each command
//! and each answer. nbdkit-pause-filter(1), "Control socket".

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbdkit_api::watcher::{Server, WatcherNeeds};
use nbdkit_api::{Errno, Error, Result, Watcher, debug};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::Shared;

/// The control socket.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
    shared: Arc<Shared>,
}

/// Removes a socket that an earlier server has left. Anything else at the path stays.
pub(super) fn remove_socket(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        let _ = fs::remove_file(path);
    }
}

impl Control {
    pub(super) fn new(listener: UnixListener, path: PathBuf, shared: Arc<Shared>) -> Control {
        Control { listener, path, shared }
    }

    /// Serves a connection until it or the server ends; `None` if the server has.
    fn serve(&self, mut connection: &UnixStream, server: &Server<'_>) -> Option<()> {
        let mut commands = [0; 64];
        loop {
            wait_to(PollFlags::POLLIN, connection, server)?;
            let Ok(count @ 1..) = connection.read(&mut commands) else { return Some(()) };
            for command in commands.iter().take(count).filter(|byte| !byte.is_ascii_whitespace()) {
                let answer = self.carry_out(*command, server)?;
                // One that does not read its answers is not waited for.
                wait_to(PollFlags::POLLOUT, connection, server)?;
                if connection.write_all(&[answer]).is_err() {
                    return Some(());
                }
            }
        }
    }

    /// Carries out a command. `None` if the server has ended.
    fn carry_out(&self, command: u8, server: &Server<'_>) -> Option<u8> {
        match command {
            b'p' => {
                debug!("pause: pausing, waiting for requests to complete");
                self.shared.set_paused(true);
                let idle = || match server.wait(&[], PollTimeout::ZERO) {
                    Some(_) => Ok(self.shared.is_idle()?.then_some(())),
                    None => Err(Error::silent(Errno::ESHUTDOWN)),
                };
                let waited: Result<()> = self.shared.changed.wait_until(None, idle);
                if let Err(mut error) = waited {
                    if error.errno() == Errno::ESHUTDOWN {
                        return None;
                    }
                    if error.take_for_log() {
                        nbdkit_api::error!("pause: {}", error.message());
                    }
                    return Some(b'X');
                }
                debug!("pause: paused");
                Some(b'P')
            }
            b'r' => {
                self.shared.set_paused(false);
                debug!("pause: resumed");
                Some(b'R')
            }
            _ => Some(b'X'),
        }
    }
}

/// Waits until something can be read, or written. `None` if the server has ended.
fn wait_to(flags: PollFlags, fd: &impl AsFd, server: &Server<'_>) -> Option<()> {
    while !server.wait(&[PollFd::new(fd.as_fd(), flags)], PollTimeout::NONE)?[0] {}
    Some(())
}

impl Watcher for Control {
    fn needs(&self) -> WatcherNeeds {
        WatcherNeeds { accepts: true, removes: Some(self.path.clone()), ..WatcherNeeds::default() }
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.listener.as_fd(), self.shared.places.as_fd()]
    }

    fn run(&self, server: &Server<'_>) {
        while wait_to(PollFlags::POLLIN, &self.listener, server).is_some() {
            if let Ok((connection, _)) = self.listener.accept()
                && self.serve(&connection, server).is_none()
            {
                break;
            }
        }
        let _ = fs::remove_file(&self.path);
    }
}
