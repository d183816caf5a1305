//! Watchers: what filters do beside the clients, each in a process of its own.
//!
//! A watcher is a fork of the template from before its sandbox closes. It keeps the descriptors
//! that its filter names and nothing else, has a sandbox for what it does ([`confine`]), and ends
//! with the template. The template forwards its log lines and calls
//! [`Filter::notified`](nbdkit_api::Filter::notified) for it; every message is checked.

#![forbid(unsafe_code)]

mod confine;
mod policy;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nbdkit_api::watcher::Server;
use nbdkit_api::{Layer, ResultExt, Watcher, log::error as log_error};
use nbdkit_ipc::messages::EnterService;
use nbdkit_ipc::{Channel, FromTemplate, FromWatcher, Received, RecvError, title};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::unistd::{Pid, getpid, pipe2};

use crate::log::{self, TemplateLink, WatcherLink};
use crate::process;

/// How long the template waits for a watcher before it ends, milliseconds.
const PATIENCE: u16 = 2000;

/// The watchers of a stack, as its template knows them.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Vec<Running>);

#[derive(Debug)]
struct Running {
    layer: Arc<Layer>,
    pid: Pid,
    /// `None` once it has ended.
    link: Option<Channel<(), FromWatcher>>,
}

/// What watchers are made for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'a> {
    /// Whom they become.
    pub(crate) service: &'a EnterService,
    /// Whether they are confined (not with `--sandbox=off`).
    pub(crate) confined: bool,
}

impl Watchers {
    /// Starts the watchers of a stack. Called while the process may still become another user, and
    /// is in the machine's network namespace.
    ///
    /// # Errors
    /// EMFILE, ENOMEM, EAGAIN.
    pub(crate) fn start(
        all: Vec<(Arc<Layer>, Box<dyn Watcher>)>,
        plan: Plan<'_>,
    ) -> nbdkit_api::Result<Watchers> {
        let mut watchers = Watchers::default();
        for (layer, watcher) in all {
            let (link, theirs) = Channel::pair().or_error(|| "watcher: socketpair")?;
            match process::fork().or_error(|| "watcher: fork")? {
                Some(pid) => watchers.0.push(Running { layer, pid, link: Some(link) }),
                // Nothing of the template may be dropped here.
                None => process::exit_now(run(theirs, &layer, &*watcher, plan)),
            }
        }
        Ok(watchers)
    }

    /// Readable when a watcher has something to tell, or has ended.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().filter_map(|running| running.link.as_ref().map(AsFd::as_fd))
    }

    /// Handles the messages that there are.
    pub(crate) fn handle(&mut self, template: &TemplateLink) {
        for running in &mut self.0 {
            running.handle(template);
        }
    }

    /// Runs `body`, and handles messages on a thread meanwhile.
    pub(crate) fn handled_while(
        mut self,
        template: &TemplateLink,
        body: impl FnOnce(),
    ) -> Watchers {
        if self.0.is_empty() {
            body();
            return self;
        }
        let (over, end) = match pipe2(OFlag::O_CLOEXEC) {
            Ok(pipe) => pipe,
            Err(errno) => {
                log_error(&format!("pipe: {}", nbdkit_api::strerror(errno)));
                return self;
            }
        };
        std::thread::scope(|scope| {
            let watchers = &mut self;
            let thread = std::thread::Builder::new().name("watchers".to_owned());
            let started = thread.spawn_scoped(scope, move || {
                loop {
                    let mut fds = vec![PollFd::new(over.as_fd(), PollFlags::POLLIN)];
                    fds.extend(watchers.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
                    let _ = poll(&mut fds, PollTimeout::NONE);
                    if fds[0].any() == Some(true) {
                        return;
                    }
                    watchers.handle(template);
                }
            });
            match started {
                Ok(_) => body(),
                Err(error) => log_error(&format!("thread: {error}")),
            }
            drop(end);
        });
        self
    }

    /// Ends the watchers, and waits for them.
    pub(crate) fn end(mut self) {
        self.0.iter_mut().for_each(|running| running.link = None);
        for Running { pid, .. } in self.0 {
            process::wait_for(pid, PATIENCE);
        }
    }
}

impl Running {
    fn handle(&mut self, template: &TemplateLink) {
        let mut notified = false;
        while let Some(link) = &self.link {
            match link.try_recv() {
                Ok(Received { message: FromWatcher::Log(record), .. }) if record.is_plausible() => {
                    let _ = template.send(&FromTemplate::Log(record), &[]);
                }
                Ok(Received { message: FromWatcher::Log(_), .. }) => {
                    self.lost("sent a log record that is too long");
                }
                Ok(Received { message: FromWatcher::Refused { syscall }, .. }) => {
                    self.lost(&format!("was refused system call {syscall} by the sandbox"));
                }
                Ok(Received { message: FromWatcher::Notify, .. }) => notified = true,
                Err(RecvError::Empty) => break,
                Err(RecvError::Io(Errno::EINTR)) => {}
                // It has nothing more to watch, or was killed.
                Err(RecvError::Closed | RecvError::Io(_)) => self.lost("has ended"),
                Err(RecvError::Violation(what)) => self.lost(&format!("violation: {what}")),
            }
        }
        if notified {
            self.layer.notified();
        }
    }

    /// Logs why there will be no more messages of it.
    fn lost(&mut self, why: &str) {
        let (name, pid) = (self.layer.name(), self.pid);
        log_error(&format!("the watcher of the {name} filter (pid {pid}) {why}"));
        self.link = None;
    }
}

/// Runs a watcher until the template has ended. Returns an exit status.
fn run(link: WatcherLink, layer: &Layer, watcher: &dyn Watcher, plan: Plan<'_>) -> i32 {
    let link = Arc::new(link);
    process::set_watcher_channel(&*link);
    log::use_watcher(Arc::clone(&link));
    let kept: Vec<BorrowedFd<'_>> =
        std::iter::once(link.as_fd()).chain(watcher.descriptors()).collect();
    if let Err(errno) = process::close_all_but(&kept) {
        nbdkit_api::error!("watcher: close_range: {}", nbdkit_api::strerror(errno));
        return 1;
    }
    let _ = prctl::set_name(c"nbdkit:watcher");
    title::set(&format!("watcher {}", title::name(layer.name())));
    let needs = watcher.needs();
    let confined = confine::give_up_privileges(&needs, plan).and_then(|()| match plan.confined {
        true => confine::close(&needs),
        false => Ok(()),
    });
    if let Err(error) = confined {
        nbdkit_api::error!("watcher: {error}");
        return 1;
    }
    nbdkit_api::debug!("watcher (pid {}) of the {} filter", getpid(), layer.name());
    let notify = || drop(link.send(&FromWatcher::Notify, &[]));
    layer.watch(watcher, &Server::new(link.as_fd(), &notify));
    0
}
