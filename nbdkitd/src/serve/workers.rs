//! Ending workers. The listener holds a handle on each worker's process, which the template has made right after the fork
//! and sent with `Forked`: killing needs neither /proc nor a free descriptor. The handle is the word of a confined process,
//! so before it is used the kernel is asked whose child the process is.
//!
//! A worker that is to end before the template has said which process it is, is killed as soon as that is said. An end that
//! was ordered and does not happen is an error line.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nbdkit_ipc::process::Process;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getsid};

use super::Server;
use crate::captive::Captive;
use crate::connections::Connection;
use crate::template::Template;

/// How long a killed worker may take until its end is known. One that waits for a disk inside of the kernel takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a process that the template has named gets no signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoSignal {
    /// It has ended and was reaped.
    Gone,
    /// It is no child of the template, and none of ours that was one.
    Stranger,
    /// The system did not let us find out.
    Failed(Errno),
}

impl From<Errno> for NoSignal {
    fn from(errno: Errno) -> NoSignal {
        match errno {
            Errno::ESRCH => NoSignal::Gone,
            Errno::EBADF => NoSignal::Stranger,
            errno => NoSignal::Failed(errno),
        }
    }
}

impl Server {
    /// Sends a signal to a child of the template, or ours because its template has ended; `None` only checks that there is
    /// such a process. `pid` and `handle` are the template's word, and are checked; `broker`, too, is another's.
    ///
    /// # Errors
    /// [`NoSignal`].
    pub(super) fn signal_child(
        &self,
        pid: i32,
        handle: Option<&Process>,
        broker: Option<Pid>,
        signal: Option<Signal>,
    ) -> Result<(), NoSignal> {
        let pid = Pid::from_raw(pid);
        let template = self.template.as_ref().map(Template::pid);
        let captive = self.captive.as_ref().map(Captive::pid);
        if [template, captive, self.spawner_pid(), broker].contains(&Some(pid)) {
            return Err(NoSignal::Stranger);
        }
        let is_parent = |parent| parent == Pid::this() || Some(parent) == template;
        if let Some(process) = handle {
            match process.identity() {
                Ok((its, parent)) if its == pid && is_parent(parent) => {
                    return Ok(process.signal(signal)?);
                }
                Ok(_) => return Err(NoSignal::Stranger),
                // Before Linux 6.13 a handle does not say whose it is: one of our own on the same number.
                Err(Errno::ENOTTY | Errno::EINVAL | Errno::ENOSYS) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let process = Process::open(pid)?;
        let parent = process.identity().ok().map(|(_, parent)| parent).or_else(|| parent_of(pid));
        let is_child = parent.map_or_else(|| is_relative(pid, template), is_parent);
        // It lives: so what was read was not about a later process of the same number.
        process.signal(None)?;
        if !is_child {
            return Err(NoSignal::Stranger);
        }
        Ok(process.signal(signal)?)
    }

    /// Whether a connection has a worker that lives or has yet to be reaped.
    pub(super) fn has_worker(&self, connection: &Connection) -> bool {
        connection.pid.is_some_and(|pid| {
            let handle = connection.process.as_ref();
            let found = self.signal_child(pid, handle, self.brokers.pid(), None);
            !matches!(found, Err(NoSignal::Gone | NoSignal::Stranger))
        })
    }

    /// Kills the worker of a connection: now, or as soon as the template says which process it is.
    pub(super) fn end_worker(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(number) else { return };
        if !std::mem::replace(&mut connection.doomed, true) {
            self.ends.push_back((Instant::now() + PATIENCE, number));
        }
        let Some(connection) = self.connections.get(number) else { return };
        let Some(pid) = connection.pid else { return };
        let handle = connection.process.as_ref();
        let signal = Some(Signal::SIGKILL);
        let why = match self.signal_child(pid, handle, self.brokers.pid(), signal) {
            Ok(()) | Err(NoSignal::Gone) => return,
            Err(NoSignal::Stranger) => {
                "the template has named a process that is not its child".to_owned()
            }
            Err(NoSignal::Failed(errno)) => crate::words(errno),
        };
        let text =
            format!("the worker (pid {pid}, {connection}) was to be killed and was not: {why}");
        self.connection_error(number, &text);
    }

    /// When the end of the worker that was killed first has to be known.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.ends.front().map(|(at, _)| *at)
    }

    /// Says which workers were killed, or were to be, and have not ended.
    pub(super) fn report_missing_ends(&mut self, now: Instant) {
        while let Some((at, number)) = self.ends.front().copied()
            && at <= now
        {
            self.ends.pop_front();
            let Some(connection) = self.connections.get(number) else { continue };
            let pid = connection.pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
            let text = format!(
                "the worker (pid {pid}, {connection}) was to be killed {} seconds ago and has not ended",
                PATIENCE.as_secs()
            );
            self.connection_error(number, &text);
        }
    }
}

/// The parent of a process. proc_pid_stat(5).
fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything; state and parent follow the last one.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(1)?.parse().ok().map(Pid::from_raw)
}

/// Without /proc, on a kernel that does not tell parents: a child of ours, or a process in the session of the template,
/// which only its descendants can be in if it leads one.
fn is_relative(pid: Pid, template: Option<Pid>) -> bool {
    let is_ours = || {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(pid), flags).is_ok()
    };
    let leads = |template| getsid(Some(template)) == Ok(template);
    template.is_some_and(|it| leads(it) && getsid(Some(pid)) == Ok(it)) || is_ours()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::serve::fuzz::Listener;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use std::os::fd::AsRawFd;
    use std::os::unix::process::ExitStatusExt;

    fn sleep() -> Child {
        Command::new("/bin/sleep").arg("60").spawn().unwrap()
    }

    fn pid(child: &Child) -> i32 {
        child.id().cast_signed()
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_child_knows_its_parent() {
        let child = sleep();
        let number = Pid::from_raw(pid(&child));
        assert_eq!(parent_of(number), Some(Pid::this()));
        assert!(is_relative(number, None));
        end(child);
        assert_eq!(parent_of(number), None);
        assert!(!is_relative(number, None));
    }

    /// The kernel says whose child the process behind a handle is; the number alone is not believed.
    #[test]
    fn a_handle_on_another_process_than_the_one_that_is_named_is_not_used() {
        let listener = Listener::new(1, false).unwrap();
        let server = &listener.server;
        let (ours, other) = (sleep(), sleep());
        let handle = Process::open(Pid::from_raw(pid(&ours))).unwrap();
        let wrong = Process::open(Pid::from_raw(pid(&other))).unwrap();
        let stranger = Process::open(Pid::from_raw(1)).unwrap();
        let null = Process::from_fd(std::fs::File::open("/dev/null").unwrap().into());
        assert_eq!(server.signal_child(pid(&ours), Some(&handle), None, None), Ok(()));
        assert_eq!(server.signal_child(pid(&ours), None, None, None), Ok(()));
        if wrong.identity().is_ok() {
            for wrong in [&wrong, &null] {
                let found = server.signal_child(pid(&ours), Some(wrong), None, None);
                assert_eq!(found, Err(NoSignal::Stranger));
            }
            let found = server.signal_child(1, Some(&stranger), None, None);
            assert!(found.is_err(), "{found:?}");
        }
        let number = pid(&ours);
        end(ours);
        end(other);
        let found = server.signal_child(number, Some(&handle), None, None);
        assert_eq!(found, Err(NoSignal::Gone));
    }

    #[test]
    fn a_worker_that_is_to_end_is_killed_when_it_is_known() {
        let mut listener = Listener::new(2, false).unwrap();
        let server = &mut listener.server;
        server.end_worker(1);
        assert!(server.next_end().is_some());
        let mut child = sleep();
        let handle = Process::open(Pid::from_raw(pid(&child))).unwrap();
        server.forked(1, pid(&child), Some(handle)).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        // Nobody has said that the connection is over.
        server.report_missing_ends(Instant::now() + PATIENCE);
        assert_eq!(server.next_end(), None);
    }

    /// In a process of its own, this test executed again, because the limit is the process's.
    #[test]
    fn a_worker_is_killed_where_no_descriptor_is_free() {
        const AGAIN: &str = "NBDKIT_TEST_NO_ROOM";
        let mut listener = Listener::new(1, false).unwrap();
        let mut child = sleep();
        let handle = Process::open(Pid::from_raw(pid(&child))).unwrap();
        if std::env::var_os(AGAIN).is_none() {
            let mut command = Command::new(std::env::current_exe().unwrap());
            let name = "serve::workers::tests::a_worker_is_killed_where_no_descriptor_is_free";
            let output = command.args(["--exact", name]).env(AGAIN, "1").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            return end(child);
        }
        let lowest = std::fs::File::open("/dev/null").unwrap();
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, lowest.as_raw_fd() as u64, most).unwrap();
        drop(lowest);
        assert_eq!(Process::open(Pid::this()).err(), Some(Errno::EMFILE));
        listener.server.forked(1, pid(&child), Some(handle)).unwrap();
        listener.server.end_worker(1);
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
