//! The broker: opens declared paths and connects to declared endpoints for workers, which do
//! neither themselves, so that what a path or a name leads to is decided when a client comes, and a
//! read-only stack has nothing that could be written to.
//!
//! A fork of the template, made before its sandbox closes and, if the broker connects, while it is
//! still in the machine's network namespace. It holds the final user's rights over files and no
//! client's socket, and runs no code of plugins or filters. It believes the listener; every message
//! of a worker is hostile, and what it answers is decided from the stack's needs alone.
//!
//! - [`ask`]: the other side, in workers; `desk`: questions and answers; `rate`: how many;
//!   `connecting`: those that take long
//! - `confine`: what it may do itself, with its list of system calls in `policy`
//!
//! Names are resolved by glibc's own code, from the files that resolver(3) reads and by DNS. Once
//! the broker is confined it loads no code, so other services of nsswitch.conf(5) that are modules
//! (mdns, sss, resolve, ldap) are as if they were not there, and the next one is asked; and before
//! glibc 2.34, whose `files` and `dns` are modules too, only literal addresses can be connected to.
//!
//! It ends when the listener is gone, or when the template is and no worker can ask any more.

#![forbid(unsafe_code)]

pub(crate) mod ask;
mod confine;
pub(crate) mod connecting;
pub(crate) mod desk;
mod policy;
mod rate;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nbdkit_api::paths::Declared;
use nbdkit_api::{Endpoint, Needs, ResultExt};
use nbdkit_ipc::messages::EnterService;
use nbdkit_ipc::{
    Channel, FromBroker, FromBrokerLink, FromTemplate, Received, RecvError, StackId, ToBroker,
    ToBrokerLink, title,
};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid, getppid};

use crate::log::{self, BrokerLink, TemplateLink};
use crate::process;
use connecting::{Connecting, MOST_THREADS};
use desk::Desk;

/// The kernel sends it when the template has ended. Not SIGUSR1, which may be sent to all processes
/// of a server.
const TEMPLATE_ENDED: Signal = Signal::SIGUSR2;

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
    /// Whom it becomes.
    pub(crate) service: &'a EnterService,
    /// One process serves all clients, and has channels from the beginning.
    pub(crate) shared: bool,
    /// `--swap`
    pub(crate) swap: bool,
}

impl Plan<'_> {
    /// What is declared and opened by a broker.
    fn declared(&self) -> &[Declared] {
        if self.needs.paths_are_brokered() { &self.needs.declared } else { &[] }
    }

    /// What is declared and connected to by a broker.
    fn endpoints(&self) -> &[Endpoint] {
        if self.needs.endpoints_are_brokered() { &self.needs.endpoints } else { &[] }
    }

    /// Whether it opens anything for writing.
    fn writes(&self) -> bool {
        self.declared().iter().any(|declared| declared.writable)
    }
}

/// The channels of a template that serves all clients; of others there are none.
#[derive(Debug, Default)]
pub(crate) struct Links {
    pub(crate) opening: Vec<ask::Link>,
    pub(crate) connecting: Vec<ask::Link>,
}

/// Makes the broker and tells the listener. Called while the process may still become another user
/// and, for a broker that connects, is in the machine's network namespace.
///
/// # Errors
/// EMFILE, ENOMEM, EAGAIN.
pub(crate) fn start(link: &TemplateLink, plan: &Plan<'_>) -> nbdkit_api::Result<(Broker, Links)> {
    let (listeners, ours) = Channel::pair().or_error(|| "broker: socketpair")?;
    let (mut links, mut answering) = (Links::default(), Vec::new());
    if plan.shared {
        // Clients wait for their connections at the same time.
        for (links, count) in [(&mut links.opening, 1), (&mut links.connecting, MOST_THREADS)] {
            for _ in 0..count {
                let (asks, answers) = Channel::short_pair().or_error(|| "broker: socketpair")?;
                links.push(asks);
                answering.push(answers);
            }
        }
    }
    let template = getpid();
    match process::fork().or_error(|| "broker: fork")? {
        Some(pid) => {
            let listeners: ListenersEnd = listeners;
            // Files are kept open, those of a directory are not, and there is a connection for each
            // client.
            let always = plan.declared().iter().any(|declared| declared.children)
                || !plan.endpoints().is_empty();
            let message = FromTemplate::Broker { stack: StackId::ONLY, pid: pid.as_raw(), always };
            let _ = link.send(&message, &[listeners.as_fd()]);
            Ok((Broker(pid), links))
        }
        // Nothing of the template may be dropped here.
        None => process::exit_now(run(ours, answering, template, plan)),
    }
}

type ListenersEnd = Channel<ToBrokerLink, FromBrokerLink>;

impl Broker {
    /// Waits for its end, which the listener has asked for by closing its channel, so that nobody
    /// else has to. Not for long: it may hang in a file system.
    pub(crate) fn reap(self) {
        process::wait_for(self.0, PATIENCE);
    }
}

/// Runs the broker until the listener or the template is gone. Returns an exit status.
fn run(
    link: BrokerLink,
    template: Vec<Channel<FromBroker, ToBroker>>,
    parent: Pid,
    plan: &Plan<'_>,
) -> i32 {
    let link = Arc::new(link);
    process::set_broker_channel(&*link);
    log::use_broker(Arc::clone(&link));
    let kept = std::iter::once(link.as_fd()).chain(template.iter().map(AsFd::as_fd));
    // The directories that were open before the start are asked for by name.
    let directories = plan.declared().iter().filter_map(|it| it.directory.as_ref());
    let kept: Vec<BorrowedFd<'_>> = kept.chain(directories.map(|it| it.as_fd())).collect();
    if let Err(errno) = process::close_all_but(&kept) {
        nbdkit_api::error!("broker: close_range: {}", nbdkit_api::strerror(errno));
        return 1;
    }
    match prepare(&link, parent, plan) {
        Ok((ended, mut desk)) => {
            for channel in template {
                desk.admit(0, channel);
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

/// Confines the process, and has it signalled when the template ends.
fn prepare(
    link: &BrokerLink,
    parent: Pid,
    plan: &Plan<'_>,
) -> nbdkit_api::Result<(SignalFd, Desk)> {
    let _ = prctl::set_name(c"nbdkit:broker");
    title::set(&format!("broker {}", title::name(plan.plugin)));
    let mut signals = SigSet::empty();
    signals.add(TEMPLATE_ENDED);
    signals.thread_block().or_error(|| "sigprocmask")?;
    let ended = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .or_error(|| "signalfd")?;
    let mut desk = Desk::new(plan.declared().to_vec()).or_error(|| "epoll_create")?;
    desk.watch(link, &ended).or_error(|| "epoll_ctl")?;
    if !plan.endpoints().is_empty() {
        let connecting = Connecting::new(plan.endpoints().to_vec()).or_error(|| "eventfd")?;
        desk = desk.connecting(connecting).or_error(|| "epoll_ctl")?;
    }
    confine::give_up_privileges(plan)?;
    // Later than a change of capabilities, which takes it back.
    prctl::set_pdeathsig(TEMPLATE_ENDED).or_error(|| "prctl: PR_SET_PDEATHSIG")?;
    confine::close(plan)?;
    nbdkit_api::debug!(
        "broker (pid {}) of the template (pid {parent}): {} paths",
        getpid(),
        plan.declared().len()
    );
    for endpoint in plan.endpoints() {
        nbdkit_api::debug!("broker (pid {}): connects to {endpoint}", getpid());
    }
    Ok((ended, desk.at_most(confine::channels(plan))))
}

/// Answers until all channels are closed.
fn serve(link: &BrokerLink, ended: &SignalFd, mut orphan: bool, mut desk: Desk) {
    let mut more = true;
    loop {
        // First who may ask, then whether anybody may.
        while more {
            match link.try_recv() {
                Ok(Received { message: ToBrokerLink::Channel { connection }, fds, .. }) => {
                    // If its descriptor was one too many, the worker finds its channel closed, and
                    // asks for another.
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
        let Ok(woken) = desk.wait(None) else { return };
        // At the end, messages in flight are still handled.
        more = woken.by_template || woken.by_listener;
        if woken.by_template {
            let _ = ended.read_signal();
            orphan = true;
        }
    }
}
