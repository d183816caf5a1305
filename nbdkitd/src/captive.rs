//! `--run`: a shell command that lives with the server. nbdkit-captive(1).

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use nbdkit_ipc::oom;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use crate::notify;

/// The caller's standard input and output, for the command; the server's own become the null
/// device.
pub(crate) struct Streams {
    input: OwnedFd,
    output: OwnedFd,
}

impl Streams {
    /// Duplicates standard input and output.
    ///
    /// # Errors
    /// EMFILE.
    pub(crate) fn keep() -> io::Result<Streams> {
        Ok(Streams {
            input: io::stdin().as_fd().try_clone_to_owned()?,
            output: io::stdout().as_fd().try_clone_to_owned()?,
        })
    }

    /// Both, as descriptors of a client (`-s`).
    pub(crate) fn into_client(self) -> Vec<OwnedFd> {
        vec![self.input, self.output]
    }
}

/// The running command.
#[derive(Debug)]
pub(crate) struct Captive {
    pid: Pid,
}

impl Captive {
    /// Starts `script` under a shell, as the user that started the server. `oom_score`: the
    /// command's own, if the server is protected, see [`oom`].
    ///
    /// # Errors
    /// Those of fork(2) and execve(2).
    pub(crate) fn start(
        script: &OsStr,
        streams: Streams,
        oom_score: Option<i32>,
    ) -> io::Result<Captive> {
        let child = Command::new("/bin/sh")
            .arg("-c")
            .arg(OsString::from(script))
            .env_remove(notify::NOTIFY_SOCKET)
            .env_remove(notify::WATCHDOG_PID)
            .env_remove(notify::WATCHDOG_USEC)
            .stdin(Stdio::from(streams.input))
            .stdout(Stdio::from(streams.output))
            .spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        // Fails if the command has ended already.
        let _ = oom_score.map(|score| oom::set(pid, score));
        Ok(Captive { pid })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends the command a signal. It has not been reaped, so no other process has its id.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill(self.pid, signal);
    }
}

/// The server's exit status for that of the command, and a line for the user.
pub(crate) fn outcome(status: WaitStatus) -> (u8, Option<String>) {
    match status {
        // An exit status has eight bits.
        WaitStatus::Exited(_, code) => ((code & 0xff) as u8, None),
        WaitStatus::Signaled(_, signal, _) => {
            let number = signal as i32;
            let text = format!("external command was killed by signal {number}");
            ((number + 128) as u8, Some(text))
        }
        _ => (1, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_nbdkit() {
        let pid = Pid::from_raw(1);
        assert_eq!(outcome(WaitStatus::Exited(pid, 0)), (0, None));
        assert_eq!(outcome(WaitStatus::Exited(pid, 7)), (7, None));
        assert_eq!(
            outcome(WaitStatus::Signaled(pid, Signal::SIGKILL, false)),
            (137, Some("external command was killed by signal 9".to_owned()))
        );
    }
}
