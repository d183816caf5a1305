//! The template in service: makes a worker for every client, and reaps workers.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nbdkit_api::paths::Kept;
use nbdkit_api::{Isolation, Layer, log::error as log_error, paths, strerror};
use nbdkit_ipc::messages::Serve;
use nbdkit_ipc::process::Process;
use nbdkit_ipc::{FromTemplate, Received, RecvError, StackId, ToTemplate};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use super::orphaned::Deadline;
use super::parked::ParkedClients;
use super::replaced::Replaced;
use super::{reap, shared, strays, unexpected, worker};
use crate::broker::Broker;
use crate::log::TemplateLink;
use crate::oom::OomScore;
use crate::process;
use crate::sandbox::Sandbox;
use crate::settings::Settings;
use crate::watcher::Watchers;

/// The template in service.
pub(super) struct Service {
    /// `None` before service, and in workers, which must not send messages of the template.
    pub(super) link: Option<Arc<TemplateLink>>,
    pub(super) layer: Arc<Layer>,
    pub(super) settings: Arc<Settings>,
    pub(super) isolation: Isolation,
    /// Whether there will be one client only (`-s`).
    pub(super) single: bool,
    pub(super) swap: bool,
    /// `None` if workers have the template's score, or there are none.
    pub(super) oom_score: Option<OomScore>,
    pub(super) sandbox: Sandbox,
    /// Processes that scripts have left, if the stack runs scripts.
    pub(super) strays: Option<strays::Strays>,
    pub(super) broker: Option<Broker>,
    /// Becomes readable when a file that is kept open may have been replaced.
    pub(super) replaced: Option<Replaced>,
    /// `None` in workers, which must not hear from them.
    pub(super) watchers: Option<Watchers>,
}

impl Service {
    /// Sends the listener a message. That the listener has ended is noticed when the link is read.
    pub(super) fn send(&self, message: &FromTemplate) {
        if let Some(link) = &self.link {
            let _ = link.send(message, &[]);
        }
    }

    /// Refuses a client whose descriptors were lost, because this process has no room for more.
    pub(super) fn has_no_room(&self, connection: u64) {
        log_error(&format!(
            "client {connection} is refused: its descriptors were lost ({})",
            strerror(Errno::EMFILE)
        ));
        self.send(&FromTemplate::Exited { connection, exit: nbdkit_ipc::WorkerExit::Failed });
    }

    pub(super) fn run(&mut self) {
        match self.isolation {
            Isolation::Connection => self.run_forking(),
            Isolation::Shared => shared::run(self),
        }
    }

    /// Forks a worker for every client until the listener sends `Quiesce` or ends, then waits for
    /// the workers to end.
    fn run_forking(&mut self) {
        // std allocates this on the first call: here once, and not in every worker.
        let _ = std::thread::current();
        let mut children = match reap::Children::new() {
            Ok(children) => children,
            Err(errno) => {
                log_error(&format!("signalfd: {}", strerror(errno)));
                return;
            }
        };
        let mut parked = ParkedClients::default();
        let mut serving = true;
        let mut listener_lives = true;
        // When workers are killed.
        let mut deadline: Option<Deadline> = None;
        while serving || !children.is_empty() {
            self.oom_score.iter_mut().for_each(OomScore::for_template);
            // A closed link would end each poll(2) at once.
            let link = self.link.as_ref().filter(|_| listener_lives).map(|link| link.as_fd());
            let replaced = self.replaced.as_ref().and_then(Replaced::fd);
            let watchers = self.watchers.iter().flat_map(Watchers::fds);
            let fds = [Some(children.as_fd()), link].into_iter().flatten().chain(watchers);
            let mut fds: Vec<PollFd<'_>> =
                fds.chain(replaced).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            let any_replaced = match poll(&mut fds, Deadline::left(deadline)) {
                Ok(_) => replaced.is_some() && fds.last().and_then(PollFd::any) == Some(true),
                Err(Errno::EINTR) => false,
                Err(errno) => {
                    log_error(&format!("poll: {}", strerror(errno)));
                    return;
                }
            };
            if let (Some(watchers), Some(link)) = (&mut self.watchers, &self.link) {
                watchers.handle(link);
            }
            if deadline.take_if(|deadline| deadline.has_passed()).is_some() {
                children.kill();
            }
            let (ended, any) = children.reap();
            let any_ended = !ended.is_empty();
            for (connection, exit) in ended {
                parked.ended(connection, exit);
                self.send(&FromTemplate::Exited { connection, exit });
                self.layer.worker_ended();
            }
            if any_replaced {
                let any_parked = parked.replaced(children.connections());
                self.replaced.iter().for_each(|replaced| replaced.take(any_parked));
            } else if any_ended && !parked.any() {
                paths::kept().into_iter().for_each(Kept::none_parked);
            }
            // A stray that has ended may have left children, too.
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
                        parked.served(&serve);
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
                        // Workers end by themselves, but not while they wait for the stack.
                        // Scripts must not outlive a server that was killed.
                        if self.strays.is_some() {
                            children.kill();
                        }
                        deadline = Some(Deadline::new());
                    }
                }
            }
        }
        // The scripts of `cleanup` and `unload` are reaped by those who start them.
        children.release();
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
                // Without a handle the listener looks the process up by its id.
                let process = Process::open(pid).ok();
                let fds: Vec<BorrowedFd<'_>> = process.iter().map(AsFd::as_fd).collect();
                if let Some(link) = &self.link {
                    let _ = link.send(&message, &fds);
                }
            }
            Ok(None) => {
                children.release();
                // The file is of the template's score.
                drop(self.oom_score.take());
                if let Some(kept) = kept {
                    kept.use_slot(slot);
                    // Descriptors that are kept for other clients. A client that was parked may
                    // need one of them, if its file was replaced.
                    let shares = serve.parked.is_some() && slot.is_none() && kept.has_replaced();
                    for range in kept.of_other_slots(slot).iter().filter(|_| !shares) {
                        let _ = process::close_range(*range.start(), *range.end());
                    }
                }
                let link = self.link.take();
                drop(self.watchers.take());
                process::exit_now(worker::run(self, link, serve, fds));
            }
            Err(errno) => {
                log_error(&format!("fork: {}", strerror(errno)));
                let exit = nbdkit_ipc::WorkerExit::Failed;
                self.send(&FromTemplate::Exited { connection, exit });
            }
        }
    }
}
