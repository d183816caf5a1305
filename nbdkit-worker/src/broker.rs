//! The broker: opens declared paths for workers, which open none themselves, so that what a path leads to is decided when
//! a client comes, and a read-only stack has nothing that could be written to.
//!
//! A fork of the template, made before its sandbox closes. It holds the final user's rights over files and no client's
//! socket, and runs no code of plugins or filters. It believes the listener; every message of a worker is hostile, and
//! what it answers is decided from the stack's needs alone.
//!
//! - [`ask`]: the other side, in workers; `desk`: questions and answers; `rate`: how many
//! - `confine`: what it may do itself, with its list of system calls in `policy`
//!
//! It ends when the listener is gone, or when the template is and no worker can ask any more.

#![forbid(unsafe_code)]

pub(crate) mod ask;
mod confine;
pub(crate) mod desk;
mod policy;
mod rate;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nbdkit_api::{Needs, ResultExt};
use nbdkit_ipc::{
    Channel, FromBroker, FromBrokerLink, FromTemplate, Received, RecvError, ToBroker, ToBrokerLink,
    title,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid, getppid};

use crate::log::{self, BrokerLink, TemplateLink};
use crate::process;
use desk::Desk;

/// The kernel sends it when the template has ended.
const TEMPLATE_ENDED: Signal = Signal::SIGUSR1;

/// How long the template waits for its broker before it ends, milliseconds.
const PATIENCE: u16 = 2000;

/// A running broker, as its template knows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Broker(Pid);

/// What a broker is made for.
pub(crate) struct Plan<'a> {
    /// The plugin's name, for its title.
    pub(crate) plugin: &'static str,
    /// What the stack has declared.
    pub(crate) needs: &'a Needs,
    /// One process serves all clients, and has a channel from the beginning.
    pub(crate) shared: bool,
    /// `--swap`
    pub(crate) swap: bool,
}

/// Makes the broker and tells the listener. Returns the channel of a template that serves all clients.
///
/// # Errors
/// EMFILE, ENOMEM, EAGAIN.
pub(crate) fn start(
    link: &TemplateLink,
    plan: &Plan<'_>,
) -> nbdkit_api::Result<(Broker, Option<ask::Link>)> {
    let (listeners, ours) = Channel::pair().or_error(|| "broker: socketpair")?;
    let (asking, answering) = match plan.shared {
        true => Channel::short_pair().map(|(asking, answering)| (Some(asking), Some(answering))),
        false => Ok((None, None)),
    }
    .or_error(|| "broker: socketpair")?;
    let template = getpid();
    match process::fork().or_error(|| "broker: fork")? {
        Some(pid) => {
            let listeners: ListenersEnd = listeners;
            // Files are kept open, those of a directory are not.
            let always = plan.needs.declared.iter().any(|declared| declared.children);
            let message = FromTemplate::Broker { pid: pid.as_raw(), always };
            let _ = link.send(&message, &[listeners.as_fd()]);
            Ok((Broker(pid), asking))
        }
        // Nothing of the template may be dropped here.
        None => process::exit_now(run(ours, answering, template, plan)),
    }
}

type ListenersEnd = Channel<ToBrokerLink, FromBrokerLink>;

impl Broker {
    /// Waits for its end, which the listener has asked for by closing its channel, so that nobody else has to. Not for
    /// long: it may hang in a file system.
    pub(crate) fn reap(self) {
        process::wait_for(self.0, PATIENCE);
    }
}

/// Runs the broker until the listener or the template is gone. Returns an exit status.
fn run(
    link: BrokerLink,
    template: Option<Channel<FromBroker, ToBroker>>,
    parent: Pid,
    plan: &Plan<'_>,
) -> i32 {
    let link = Arc::new(link);
    process::set_broker_channel(&*link);
    log::use_broker(Arc::clone(&link));
    let kept: Vec<BorrowedFd<'_>> =
        [Some(link.as_fd()), template.as_ref().map(AsFd::as_fd)].into_iter().flatten().collect();
    // The directories that were open before the start are asked for by name.
    let directories = plan.needs.declared.iter().filter_map(|it| it.directory.as_ref());
    let kept: Vec<_> = kept.into_iter().chain(directories.map(|it| it.as_fd())).collect();
    if let Err(errno) = process::close_all_but(&kept) {
        nbdkit_api::error!("broker: close_range: {}", nbdkit_api::strerror(errno));
        return 1;
    }
    match prepare(parent, plan) {
        Ok(ended) => {
            let mut desk = Desk::new(plan.needs.declared.clone()).at_most(confine::channels(plan));
            if let Some(template) = template {
                desk.admit(0, template);
            }
            serve(&link, &ended, getppid() != parent, desk);
            0
        }
        Err(error) => {
            nbdkit_api::error!("broker: {error}");
            1
        }
    }
}

/// Confines the process, and has it told when the template ends.
fn prepare(parent: Pid, plan: &Plan<'_>) -> nbdkit_api::Result<SignalFd> {
    let _ = prctl::set_name(c"nbdkit:broker");
    title::set(&format!("broker {}", title::name(plan.plugin)));
    let mut signals = SigSet::empty();
    signals.add(TEMPLATE_ENDED);
    signals.thread_block().or_error(|| "sigprocmask")?;
    let ended = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .or_error(|| "signalfd")?;
    confine::give_up_privileges(plan)?;
    // Later than a change of capabilities, which takes it back.
    prctl::set_pdeathsig(TEMPLATE_ENDED).or_error(|| "prctl: PR_SET_PDEATHSIG")?;
    confine::close(plan)?;
    nbdkit_api::debug!(
        "broker (pid {}) of the template (pid {parent}): {} paths",
        getpid(),
        plan.needs.declared.len()
    );
    Ok(ended)
}

/// Answers until nobody is left who asks.
fn serve(link: &BrokerLink, ended: &SignalFd, mut orphan: bool, mut desk: Desk) {
    let mut more = true;
    loop {
        // First who may ask, then whether anybody may.
        while more {
            match link.try_recv() {
                Ok(Received { message: ToBrokerLink::Channel { connection }, fds, .. }) => {
                    // If its descriptor was one too many, the worker finds its channel closed, and asks for another.
                    if let Ok([fd]) = <[_; 1]>::try_from(fds) {
                        desk.admit(connection, Channel::from_fd(fd));
                    }
                }
                Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => more = false,
                Err(RecvError::Violation(_)) => {}
                Err(RecvError::Closed | RecvError::Io(_)) => return,
            }
        }
        desk.answer();
        if orphan && desk.is_empty() {
            return;
        }
        let (readable, wait) = desk.poll();
        let ours = [link.as_fd(), ended.as_fd()];
        let mut fds: Vec<PollFd<'_>> =
            ours.into_iter().chain(readable).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = wait.map_or(PollTimeout::NONE, |wait| {
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        });
        let ready = poll(&mut fds, timeout);
        if ready.is_err_and(|errno| errno != Errno::EINTR) {
            return;
        }
        // At the end, whoever was on the way is to be heard.
        let has_ended = fds[1].any().unwrap_or(false);
        more = has_ended || fds[0].any().unwrap_or(true);
        let ready: Vec<bool> = fds[ours.len()..].iter().map(|fd| fd.any() == Some(true)).collect();
        desk.mark(&ready);
        if has_ended {
            let _ = ended.read_signal();
            orphan = true;
        }
    }
}
