//! The template in service: makes a worker for every client, and reaps workers.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nbdkit_api::{Isolation, Layer, log::error as log_error, paths, strerror};
use nbdkit_ipc::messages::Serve;
use nbdkit_ipc::process::Process;
use nbdkit_ipc::{FromTemplate, Received, RecvError, StackId, ToTemplate};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::replaced::Replaced;
use super::{reap, shared, strays, unexpected, worker};
use crate::broker::Broker;
use crate::log::TemplateLink;
use crate::oom::OomScore;
use crate::process;
use crate::sandbox::Sandbox;
use crate::settings::Settings;

/// The template in service.
pub(super) struct Service {
    /// `None` before service, and in workers, which must not speak as the template.
    pub(super) link: Option<Arc<TemplateLink>>,
    pub(super) layer: Arc<Layer>,
    pub(super) settings: Arc<Settings>,
    pub(super) isolation: Isolation,
    /// Whether there will be one client only (`-s`).
    pub(super) single: bool,
    pub(super) swap: bool,
    /// `None` where workers are no more likely to be killed than the template, or there are none.
    pub(super) oom_score: Option<OomScore>,
    pub(super) sandbox: Sandbox,
    /// What scripts leave behind, if the stack runs any.
    pub(super) strays: Option<strays::Strays>,
    pub(super) broker: Option<Broker>,
    /// Tells that what is kept open may have been replaced.
    pub(super) replaced: Option<Replaced>,
}

impl Service {
    /// Tells the listener. If it is gone, there is nobody to tell, which is noticed elsewhere.
    pub(super) fn say(&self, message: &FromTemplate) {
        if let Some(link) = &self.link {
            let _ = link.send(message, &[]);
        }
    }

    /// A client has come whose descriptors did not fit into this process. It is not served; others
    /// are.
    pub(super) fn has_no_room(&self, connection: u64) {
        log_error(&format!(
            "client {connection} is refused: its descriptors were lost ({})",
            strerror(Errno::EMFILE)
        ));
        self.say(&FromTemplate::Exited { connection, exit: nbdkit_ipc::WorkerExit::Failed });
    }

    pub(super) fn run(&mut self) {
        match self.isolation {
            Isolation::Connection => self.run_forking(),
            Isolation::Shared => shared::run(self),
        }
    }

    /// Makes a worker for every client until the listener says `Quiesce` or is gone, then waits for
    /// the workers to end.
    fn run_forking(&mut self) {
        // std makes this when it is asked for; made here, it is not made anew in every worker.
        let _ = std::thread::current();
        let mut children = match reap::Children::new() {
            Ok(children) => children,
            Err(errno) => {
                log_error(&format!("signalfd: {}", strerror(errno)));
                return;
            }
        };
        let mut serving = true;
        let mut listener_lives = true;
        while serving || !children.is_empty() {
            self.oom_score.iter_mut().for_each(OomScore::for_template);
            // A closed link must not wake us again and again.
            let link = self.link.as_ref().filter(|_| listener_lives).map(|link| link.as_fd());
            let replaced = self.replaced.as_ref().and_then(Replaced::fd);
            let fds = [Some(children.as_fd()), link, replaced].into_iter().flatten();
            let mut fds: Vec<PollFd<'_>> =
                fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {
                    if replaced.is_some() && fds.last().and_then(PollFd::any) == Some(true) {
                        self.replaced.iter().for_each(Replaced::take);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    log_error(&format!("poll: {}", strerror(errno)));
                    return;
                }
            }
            let (ended, any) = children.reap();
            for (connection, exit) in ended {
                self.say(&FromTemplate::Exited { connection, exit });
                self.layer.worker_ended();
            }
            // After the end of a stray, too: it has left its own children.
            if let Some(strays) = self.strays.as_ref().filter(|_| any) {
                strays.kill(|pid| children.is_worker(pid));
            }
            while listener_lives {
                match self.link.as_ref().map_or(Err(RecvError::Closed), |link| link.try_recv()) {
                    Ok(Received { message: ToTemplate::Serve(serve), lost: true, .. })
                        if serving && serve.stack == StackId::ONLY =>
                    {
                        self.has_no_room(serve.connection);
                    }
                    Ok(Received { message: ToTemplate::Serve(serve), fds, .. })
                        if serving && serve.stack == StackId::ONLY =>
                    {
                        self.fork_worker(&serve, fds, &mut children);
                    }
                    Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => break,
                    Ok(Received { message: ToTemplate::Quiesce, .. }) => serving = false,
                    Ok(_) if !serving => {}
                    Ok(other) => {
                        let _ = unexpected(&other.message);
                        serving = false;
                    }
                    Err(error) => {
                        if !matches!(error, RecvError::Closed) {
                            log_error(&format!("control channel: {error}"));
                        }
                        (serving, listener_lives) = (false, false);
                        // Workers end by themselves, but nobody is left to end one that waits for a
                        // script. And whoever kills the server does not expect that its scripts go
                        // on.
                        if self.strays.is_some() {
                            children.kill();
                        }
                    }
                }
            }
        }
        // The scripts of `cleanup` and `unload` wait for their own children.
        children.forget();
    }

    fn fork_worker(&mut self, serve: &Serve, fds: Vec<OwnedFd>, children: &mut reap::Children) {
        let connection = serve.connection;
        let kept = paths::kept();
        let slot = kept.and_then(|kept| children.free_slot(kept.slots()));
        self.oom_score.iter_mut().for_each(OomScore::for_worker);
        match process::fork() {
            Ok(Some(pid)) => {
                children.add(pid, connection, slot);
                let message = FromTemplate::Forked { connection, pid: pid.as_raw() };
                // Without one the listener looks for the process by its number.
                let process = Process::open(pid).ok();
                let fds: Vec<BorrowedFd<'_>> = process.iter().map(AsFd::as_fd).collect();
                if let Some(link) = &self.link {
                    let _ = link.send(&message, &fds);
                }
            }
            Ok(None) => {
                children.forget();
                // It is the template's.
                drop(self.oom_score.take());
                if let Some(kept) = kept {
                    kept.use_slot(slot);
                    // What is open for others is not this client's business.
                    for range in kept.of_other_slots(slot) {
                        let _ = process::close_range(*range.start(), *range.end());
                    }
                }
                let link = self.link.take();
                process::exit_now(worker::run(self, link, serve, fds));
            }
            Err(errno) => {
                log_error(&format!("fork: {}", strerror(errno)));
                let exit = nbdkit_ipc::WorkerExit::Failed;
                self.say(&FromTemplate::Exited { connection, exit });
            }
        }
    }
}
