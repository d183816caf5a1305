//! What scripts have left behind. With the worker that ran them, or the server, it is over.
//!
//! The template adopts what its workers leave when they end. What a script of the configuration
//! phase has put into the background serves all clients and ends with the template.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use nbdkit_api::{Result, ResultExt};
use nbdkit_ipc::strays;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Processes that scripts have left behind.
pub(super) struct Strays {
    /// Process groups that there were before the first client.
    kept: HashSet<Pid>,
}

impl Strays {
    /// Called before the first client: has orphans of workers come to this process from now on.
    ///
    /// # Errors
    /// None that a kernel has for this.
    pub(super) fn new() -> Result<Strays> {
        set_child_subreaper(true).or_error(|| "prctl: PR_SET_CHILD_SUBREAPER")?;
        Ok(Strays { kept: strays::children().into_iter().filter_map(strays::group).collect() })
    }

    /// Kills what ended workers have left. Called whenever children have ended.
    pub(super) fn kill(&self, is_worker: impl Fn(Pid) -> bool) {
        strays::kill_unknown(is_worker, |group| self.kept.contains(&group));
    }

    /// Kills all that any script has left, and waits until it is gone: after the server's end
    /// nothing is written.
    pub(super) fn kill_all(&self) {
        /// One that is inside of the kernel, waiting for a disk, cannot be waited for.
        const PATIENCE: Duration = Duration::from_secs(2);
        let end = Instant::now() + PATIENCE;
        while strays::kill_unknown(|_| false, |_| false) && Instant::now() < end {
            let mut reaped = false;
            while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                if status.pid().is_none() {
                    break;
                }
                reaped = true;
            }
            if !reaped {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
