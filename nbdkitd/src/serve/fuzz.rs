//! For the fuzz targets: how the loop handles messages of template and workers, without any
//! process. The caller has the other ends of the channels, and sends anything on them.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Instant;

use nbdkit_ipc::messages::{Configured, Hello, Isolation, Peer, PeerAddress, Purpose};
use nbdkit_ipc::{Channel, FromTemplate, FromWorker, StackId, ToTemplate, ToWorker};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::shutdown::Stage;
use super::workers::WorkerLink;
use super::{Plan, Server};
use crate::cli::command_line::{LogDestination, Options, Stack};
use crate::identity::{Identity, ListenerUser};
use crate::log::Log;
use crate::template::{Origin, Template, TemplateSpec};

/// No process has it: the kernel's largest is 2^22. proc_pid_max(5).
const NOBODY: Pid = Pid::from_raw(i32::MAX);

/// A server whose first template has ended and whose next one has yet to send its `Hello`, with
/// some clients left.
pub struct Listener {
    pub(super) server: Server,
    pub(super) template: Channel<FromTemplate, ToTemplate>,
    pub(super) workers: Vec<Channel<FromWorker, ToWorker>>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

impl Listener {
    /// With so many connections, numbered from 1; each has its worker's channel, unless they are
    /// `shared`.
    ///
    /// # Errors
    /// No descriptors.
    pub fn new(connections: u64, shared: bool) -> Result<Listener, String> {
        let options =
            Options { log: LogDestination::File(PathBuf::from("/dev/null")), ..Options::default() };
        let log = Log::new("nbdkit", &options).map_err(|error| error.to_string())?;
        let stack = Stack { filters: Vec::new(), plugin: "null".into(), parameters: Vec::new() };
        let plan = Plan {
            spec: TemplateSpec::new(&stack, &options, Purpose::Serve, true, None),
            options,
            mode: None,
            first: None,
            identity: Identity::default(),
            listener_user: ListenerUser::Same.into(),
            report: None,
            streams: None,
            plugin: "null".to_owned(),
            tls: None,
            unprotected: None,
        };
        let failed = |error: std::io::Error| error.to_string();
        // Later than start-up, which would change this process.
        let mut server =
            Server::new(plan, log, Stage::Serving).map_err(|error| error.to_string())?;
        let (link, template) = Channel::pair().map_err(failed)?;
        server.slot.set(Template::new(NOBODY, link, Origin::Rebuild));
        let isolation = if shared { Isolation::Shared } else { Isolation::Connection };
        server.slot.set_configured(Configured {
            stack: StackId::ONLY,
            one_client: false,
            isolation,
            replaceable: true,
            may_shutdown: true,
            programs: false,
            undeclared: false,
            can_park: true,
        });
        let mut workers = Vec::new();
        for _ in 0..connections {
            let peer =
                Peer { address: PeerAddress::Unix, credentials: None, security_context: None };
            let link = if shared {
                None
            } else {
                let (ours, theirs) = WorkerLink::pair().map_err(failed)?;
                workers.push(theirs);
                Some(ours)
            };
            let number = server.acceptor.next_connection();
            server.workers.add(number, peer, None, link, None, Instant::now());
        }
        Ok(Listener { server, template, workers })
    }

    /// The template's end.
    pub fn template(&self) -> BorrowedFd<'_> {
        self.template.as_fd()
    }

    /// The template is of this build.
    pub fn template_says_hello(&self) {
        let _ = self.template.try_send(&FromTemplate::Hello(Hello::ours()), &[]);
    }

    /// The template serves from now on.
    #[cfg(test)]
    pub(super) fn template_serves(&mut self) {
        for message in [
            FromTemplate::Hello(Hello::ours()),
            FromTemplate::Configured(self.server.slot.configured().unwrap().clone()),
            FromTemplate::Ready,
        ] {
            self.template.send(&message, &[]).unwrap();
        }
        self.server.slot.set_ready();
        self.server.read_template();
    }

    /// The next message to the template that is such a one.
    #[cfg(test)]
    pub(super) fn received(
        &self,
        is: impl Fn(&ToTemplate) -> bool,
    ) -> (ToTemplate, Vec<std::os::fd::OwnedFd>) {
        loop {
            let received = self.template.recv().unwrap();
            if is(&received.message) {
                return (received.message, received.fds);
            }
        }
    }

    /// A worker's end.
    pub fn worker(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.workers.get(index).map(AsFd::as_fd)
    }

    /// Runs the loop once, as if all channels were readable. Returns whether the server goes on.
    ///
    /// # Panics
    /// If the tables contradict each other.
    pub fn turn(&mut self) -> bool {
        let server = &mut self.server;
        server.slot.set_ready();
        server.workers.set_all_readable();
        server.read_template();
        server.read_workers();
        server.sign_some();
        let connections = server.workers.connections();
        for (number, connection) in connections.iter() {
            let last = server.acceptor.last_connection();
            assert!((1..=last).contains(&number), "no client came since");
            assert!(connection.pid.is_none_or(|pid| pid > 1), "{connection} has a worker");
            let owner = connection.pid.map(|pid| connections.of_pid(pid));
            assert!(owner.is_none_or(|owner| owner == Some(number)), "a worker has one client");
        }
        for number in server.workers.links() {
            assert!(connections.get(number).is_some(), "a channel has a connection");
        }
        !server.shutdown.is_stopping()
    }

    /// The template has ended.
    pub fn template_ends(&mut self) {
        self.server.template_ended(WaitStatus::Signaled(NOBODY, Signal::SIGKILL, false));
        assert!(self.server.slot.template().is_none(), "there is no other");
    }
}
