//! The workers that this template made and how they end.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use nbdkit_ipc::WorkerExit;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The template's workers, by process id.
pub(super) struct Children {
    /// Readable when a child has ended.
    signals: SignalFd,
    connections: HashMap<Pid, (u64, Option<u32>)>,
    /// Bits of the slots of kept files that workers have.
    slots: u64,
    /// Whether children may have ended that were not asked for.
    any_signal: bool,
}

fn child_signal() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set
}

impl Children {
    pub(super) fn new() -> nix::Result<Children> {
        child_signal().thread_block()?;
        let signals =
            SignalFd::with_flags(&child_signal(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        // A child may have ended before the signal was blocked.
        Ok(Children { signals, connections: HashMap::new(), slots: 0, any_signal: true })
    }

    /// A slot that no worker has, of so many. The lowest, so that few are ever used.
    pub(super) fn free_slot(&self, slots: usize) -> Option<u32> {
        let slot = (!self.slots).trailing_zeros();
        (slot < u32::try_from(slots).unwrap_or(u64::BITS).min(u64::BITS)).then_some(slot)
    }

    /// A worker was made, for a connection, and has this slot.
    pub(super) fn add(&mut self, pid: Pid, connection: u64, slot: Option<u32>) {
        self.slots |= slot.map_or(0, |slot| 1 << slot);
        self.connections.insert(pid, (connection, slot));
    }

    pub(super) fn is_worker(&self, pid: Pid) -> bool {
        self.connections.contains_key(&pid)
    }

    /// Kills all workers. None of them has been reaped, so the numbers are theirs.
    pub(super) fn kill(&self) {
        for pid in self.connections.keys() {
            let _ = kill(*pid, Signal::SIGKILL);
        }
    }

    /// The connections that have workers.
    pub(super) fn connections(&self) -> impl Iterator<Item = u64> {
        self.connections.values().map(|(connection, _)| *connection)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// In the child: its siblings are not its children, and it takes signals as usual.
    pub(super) fn release(&mut self) {
        // Not cleared: that would touch memory, of which the child then needs its own.
        std::mem::forget(std::mem::take(&mut self.connections));
        let _ = child_signal().thread_unblock();
    }

    /// The connections whose workers have ended since the last call, and whether any child has.
    ///
    /// Where all children are asked for, the kernel looks at each that lives, 512 times with 512
    /// idle clients: it is asked once after a signal, and not in every turn of the loop.
    pub(super) fn reap(&mut self) -> (Vec<(u64, WorkerExit)>, bool) {
        let (mut ended, mut any) = (Vec::new(), false);
        while let Ok(Some(signal)) = self.signals.read_signal() {
            self.any_signal = true;
            // The kernel says 0 if it had no memory for more than the fact.
            let pid = signal.ssi_pid.cast_signed();
            if pid > 0 {
                any |= self.reap_one(Some(Pid::from_raw(pid)), &mut ended);
            }
        }
        // One signal may stand for several children, but none ends without any.
        if std::mem::take(&mut self.any_signal) {
            while self.reap_one(None, &mut ended) {
                any = true;
            }
        }
        (ended, any)
    }

    /// Reaps this child, or any. Returns whether one had ended.
    fn reap_one(&mut self, pid: Option<Pid>, ended: &mut Vec<(u64, WorkerExit)>) -> bool {
        let (pid, exit) = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, WorkerExit::from_code(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, WorkerExit::Killed(signal as i32)),
            // No others are asked for.
            Ok(_) | Err(_) => return false,
        };
        // What is no worker: the broker, a program that a plugin ran while it was configured, what
        // scripts have left behind.
        if let Some((connection, slot)) = self.connections.remove(&pid) {
            self.slots &= !slot.map_or(0, |slot| 1 << slot);
            ended.push((connection, exit));
        }
        true
    }
}

impl AsFd for Children {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}
