//! Ending workers. The listener has a handle (pidfd) on each worker's process, which the template
//! has opened right after the fork and sent with `Forked`: killing needs neither /proc nor a free
//! descriptor. The handle comes from a confined process, so before it is used the kernel is asked
//! whose child the process is.
//!
//! If a worker is to be killed before the template has named its process, it is killed when
//! `Forked` arrives. A worker that was to be killed and has not ended in time is an error line.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nbdkit_ipc::process::Process;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getsid};

use super::Workers;
use crate::serve::context::Context;

/// How long it may take until the end of a killed worker is known. One that waits for a disk inside
/// the kernel takes longer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a process that the template has named gets no signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::serve) enum NoSignal {
    /// The process has ended and was reaped.
    Gone,
    /// The process is no child of the template, and none of ours that was one.
    Stranger,
    /// A system call failed.
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

/// Processes of this server that are no workers.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::serve) struct OwnProcesses {
    /// The parent of workers.
    pub(in crate::serve) template: Option<Pid>,
    /// The command of `--run`.
    pub(in crate::serve) captive: Option<Pid>,
    pub(in crate::serve) spawner: Option<Pid>,
    /// As the template has named it.
    pub(in crate::serve) broker: Option<Pid>,
}

/// Sends a signal to a child of the template, or of the listener because its template has ended;
/// `None` only checks that there is such a process. `pid` and `handle` come from the template and
/// are checked.
///
/// # Errors
/// [`NoSignal`].
pub(in crate::serve) fn signal_child(
    pid: i32,
    handle: Option<&Process>,
    own: &OwnProcesses,
    signal: Option<Signal>,
) -> Result<(), NoSignal> {
    let pid = Pid::from_raw(pid);
    let OwnProcesses { template, captive, spawner, broker } = *own;
    if [template, captive, spawner, broker].contains(&Some(pid)) {
        return Err(NoSignal::Stranger);
    }
    let is_parent = |parent| parent == Pid::this() || Some(parent) == template;
    if let Some(process) = handle {
        match process.identity() {
            Ok((its, parent)) if its == pid && is_parent(parent) => {
                return Ok(process.signal(signal)?);
            }
            Ok(_) => return Err(NoSignal::Stranger),
            // Before Linux 6.13 a handle does not tell its process: the listener opens one of its
            // own by the process id.
            Err(Errno::ENOTTY | Errno::EINVAL | Errno::ENOSYS) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let process = Process::open(pid)?;
    let parent = process.identity().ok().map(|(_, parent)| parent).or_else(|| parent_of(pid));
    let is_child = parent.map_or_else(|| is_relative(pid, template), is_parent);
    // The process lives: so what was read was not about a later process with the same id.
    process.signal(None)?;
    if !is_child {
        return Err(NoSignal::Stranger);
    }
    Ok(process.signal(signal)?)
}

impl Workers {
    /// Whether a connection has a worker that lives or has yet to be reaped.
    pub(super) fn has_process(&self, number: u64, own: &OwnProcesses) -> bool {
        let Some(connection) = self.connections.get(number) else { return false };
        connection.pid.is_some_and(|pid| {
            let found = signal_child(pid, connection.process.as_ref(), own, None);
            !matches!(found, Err(NoSignal::Gone | NoSignal::Stranger))
        })
    }

    /// Kills the worker of a connection: now, or as soon as the template names its process.
    pub(in crate::serve) fn kill(&mut self, number: u64, own: &OwnProcesses, context: &Context) {
        let Some(connection) = self.connections.get_mut(number) else { return };
        if !std::mem::replace(&mut connection.kill_requested, true) {
            self.kills.push_back((Instant::now() + TIMEOUT, number));
        }
        let Some(pid) = connection.pid else { return };
        let handle = connection.process.as_ref();
        let why = match signal_child(pid, handle, own, Some(Signal::SIGKILL)) {
            Ok(()) | Err(NoSignal::Gone) => return,
            Err(NoSignal::Stranger) => {
                "the template has named a process that is not its child".to_owned()
            }
            Err(NoSignal::Failed(errno)) => crate::strerror(errno),
        };
        let text = format!("cannot kill worker {pid} ({connection}): {why}");
        self.error(number, &text, context);
    }

    /// Whether the worker of a connection is to be killed.
    pub(in crate::serve) fn is_kill_requested(&self, number: u64) -> bool {
        self.connections.get(number).is_some_and(|it| it.kill_requested)
    }

    /// When the end of the worker that was killed first has to be known.
    pub(in crate::serve) fn next_kill_timeout(&self) -> Option<Instant> {
        self.kills.front().map(|(at, _)| *at)
    }

    /// Logs which workers were killed, or were to be, and have not ended.
    pub(in crate::serve) fn report_survivors(&mut self, now: Instant, context: &Context) {
        while let Some((at, number)) = self.kills.front().copied()
            && at <= now
        {
            self.kills.pop_front();
            if let Some(worker) = self.name(number) {
                let text = format!(
                    "{worker} has not ended {} seconds after it was to be killed",
                    TIMEOUT.as_secs()
                );
                self.error(number, &text, context);
            }
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

/// Whether a process descends from the template, or is a child of the listener. Used without /proc
/// on a kernel that does not tell the parent of a handle's process: only the template's descendants
/// are in a session that it leads.
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

    /// The kernel reports the parent of a handle's process; the process id alone proves
    /// nothing.
    #[test]
    fn a_handle_on_another_process_than_the_one_that_is_named_is_not_used() {
        let own = OwnProcesses::default();
        let (ours, other) = (sleep(), sleep());
        let handle = Process::open(Pid::from_raw(pid(&ours))).unwrap();
        let wrong = Process::open(Pid::from_raw(pid(&other))).unwrap();
        let stranger = Process::open(Pid::from_raw(1)).unwrap();
        let null = Process::from_fd(std::fs::File::open("/dev/null").unwrap().into());
        assert_eq!(signal_child(pid(&ours), Some(&handle), &own, None), Ok(()));
        assert_eq!(signal_child(pid(&ours), None, &own, None), Ok(()));
        if wrong.identity().is_ok() {
            for wrong in [&wrong, &null] {
                let found = signal_child(pid(&ours), Some(wrong), &own, None);
                assert_eq!(found, Err(NoSignal::Stranger));
            }
            let found = signal_child(1, Some(&stranger), &own, None);
            assert!(found.is_err(), "{found:?}");
        }
        let number = pid(&ours);
        end(ours);
        end(other);
        let found = signal_child(number, Some(&handle), &own, None);
        assert_eq!(found, Err(NoSignal::Gone));
    }

    #[test]
    fn a_kill_before_forked_is_made_up_for_when_forked_arrives() {
        let mut listener = Listener::new(2, false).unwrap();
        let server = &mut listener.server;
        server.kill_worker(1);
        assert!(server.workers.next_kill_timeout().is_some());
        let mut child = sleep();
        let handle = Process::open(Pid::from_raw(pid(&child))).unwrap();
        server.forked(1, pid(&child), Some(handle)).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        // The template has not reported the end.
        server.workers.report_survivors(Instant::now() + TIMEOUT, &server.context);
        assert_eq!(server.workers.next_kill_timeout(), None);
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
            let name =
                "serve::workers::kill::tests::a_worker_is_killed_where_no_descriptor_is_free";
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
        listener.server.kill_worker(1);
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
