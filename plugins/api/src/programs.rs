//! Programs that layers run: the scripts of sh and eval, of the log and exportname filters.
//!
//! Each run leads a process group of its own, is waited for by the thread that has started it, and
//! is killed with all of its group when its call is given up ([`give_up`]). What a script has left
//! in the background is adopted by the process that ran it (PR_SET_CHILD_SUBREAPER), and when that
//! ends, however it ends, the script and all of that come to the next process up, the template or
//! the listener, which kills it.
//!
//! Not PR_SET_PDEATHSIG, which a script would have to set for itself between fork and exec: with
//! that std cannot use posix_spawn(3), and a call of a script takes a quarter more time.
//!
//! Runs in the template and in workers.

#![forbid(unsafe_code)]

mod refusal;

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpgid, getpgrp};

pub use refusal::{confined_strictly, explain_refusal, looks_refused, set_confined_strictly};

/// What is running in this process, and for whom.
struct Running {
    /// Connection and process group.
    groups: Vec<(u64, Pid)>,
    /// Programs that are being started and not yet in `groups`.
    starting: usize,
    /// Connections that run nothing any more.
    given_up: Vec<u64>,
}

static RUNNING: Mutex<Running> =
    Mutex::new(Running { groups: Vec::new(), starting: 0, given_up: Vec::new() });

/// The process that has become an adopter of orphans. A fork has to become one itself.
static ADOPTER: AtomicU32 = AtomicU32::new(0);

fn running() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program that runs.
#[derive(Debug)]
pub struct Program {
    /// Its pipes.
    pub child: Child,
    connection: u64,
    group: Pid,
}

/// Starts a program for the current connection, [`log::speaker`](crate::log::speaker).
///
/// # Errors
/// Those of fork(2) and execve(2); ESHUTDOWN if the connection was given up.
pub fn start(command: &mut Command) -> io::Result<Program> {
    let connection = crate::log::speaker().connection;
    if is_given_up(connection) {
        return Err(Errno::ESHUTDOWN.into());
    }
    adopt_orphans()?;
    command.process_group(0);
    // Not locked while the program is loaded, which takes most of the time.
    running().starting += 1;
    let spawned = command.spawn();
    let mut running = running();
    running.starting -= 1;
    let child = spawned?;
    let group = Pid::from_raw(child.id().cast_signed());
    running.groups.push((connection, group));
    if running.given_up.contains(&connection) {
        let _ = killpg(group, Signal::SIGKILL);
    }
    Ok(Program { child, connection, group })
}

impl Program {
    /// Whether the call is given up, and its output dropped.
    pub fn is_given_up(&self) -> bool {
        is_given_up(self.connection)
    }

    /// Kills it, with all of its group.
    pub fn kill(&self) {
        // Under the lock, and still listed: it has not been reaped, so the number is its group's.
        let running = running();
        if running.groups.contains(&(self.connection, self.group)) {
            let _ = killpg(self.group, Signal::SIGKILL);
        }
    }

    /// Waits for its end. What it has left in the background goes on.
    ///
    /// # Errors
    /// None that wait(2) has for a child of ours.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(self.group), flags) == Err(Errno::EINTR) {}
        let status = {
            let mut running = running();
            running.groups.retain(|entry| *entry != (self.connection, self.group));
            self.child.wait()
        };
        reap_adopted();
        status
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let listed = running().groups.contains(&(self.connection, self.group));
        if listed {
            self.kill();
            let _ = self.wait();
        }
    }
}

fn is_given_up(connection: u64) -> bool {
    running().given_up.contains(&connection)
}

/// Ends a connection's programs, and refuses it new ones until [`forget`].
pub fn give_up(connection: u64) {
    let mut running = running();
    if !running.given_up.contains(&connection) {
        running.given_up.push(connection);
    }
    for (_, group) in running.groups.iter().filter(|(of, _)| *of == connection) {
        let _ = killpg(*group, Signal::SIGKILL);
    }
}

/// The connection has ended.
pub fn forget(connection: u64) {
    running().given_up.retain(|given_up| *given_up != connection);
}

/// Has what scripts leave in the background come to this process and not to another one, which
/// would not know whose it is.
fn adopt_orphans() -> io::Result<()> {
    let own = std::process::id();
    if ADOPTER.swap(own, Ordering::Relaxed) != own {
        set_child_subreaper(true)?;
    }
    Ok(())
}

/// Reaps adopted processes that have ended. Not those that are waited for by threads of ours, nor
/// children of code that knows nothing of this, which are in our own group.
fn reap_adopted() {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) =
        waitid(Id::All, flags)
    {
        let running = running();
        let waited_for = running.groups.iter().any(|(_, group)| *group == pid);
        if running.starting > 0 || waited_for || getpgid(Some(pid)) == Ok(getpgrp()) {
            return;
        }
        if waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Speaker, enter};
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    fn sh(script: &str) -> Program {
        start(Command::new("/bin/sh").arg("-c").arg(script).stdout(Stdio::piped())).unwrap()
    }

    #[test]
    fn giving_up_kills_the_group_and_refuses_the_next() {
        let _speaker = enter(Speaker { layer: None, connection: 77 });
        let began = Instant::now();
        let mut program = sh("sleep 60 & wait; echo survived");
        let other = {
            let _speaker = enter(Speaker { layer: None, connection: 78 });
            sh("sleep 60")
        };
        give_up(77);
        assert!(program.is_given_up());
        assert!(!program.wait().unwrap().success());
        assert!(began.elapsed() < Duration::from_secs(50));
        let refused = start(&mut Command::new("/bin/true")).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ESHUTDOWN));
        assert!(!other.is_given_up());
        forget(77);
        assert!(sh("exit 0").wait().unwrap().success());
    }

    #[test]
    fn a_program_that_is_dropped_is_killed_and_reaped() {
        let program = sh("sleep 60");
        let pid = program.group;
        drop(program);
        assert_eq!(nix::sys::signal::kill(pid, None), Err(Errno::ESRCH));
    }

    /// There is no telling when it ends, but it must not stay a zombie for ever.
    #[test]
    fn what_a_script_leaves_behind_is_adopted_and_reaped() {
        let mut program = sh("sleep 0.1 >/dev/null & echo $!");
        let mut line = String::new();
        let mut output = program.child.stdout.take().unwrap();
        io::Read::read_to_string(&mut output, &mut line).unwrap();
        program.wait().unwrap();
        let orphan = Pid::from_raw(line.trim().parse().unwrap());
        let end = Instant::now() + Duration::from_secs(20);
        while nix::sys::signal::kill(orphan, None).is_ok() {
            assert!(Instant::now() < end, "{orphan} is still there");
            std::thread::sleep(Duration::from_millis(10));
            sh("exit 0").wait().unwrap();
        }
    }
}
