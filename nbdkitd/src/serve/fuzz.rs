//! For the fuzz targets: the loop's treatment of what template and workers say, without any process. The other ends of
//! the channels are the caller's, to say anything on.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Instant;

use nbdkit_ipc::messages::{Configured, Isolation, Peer, PeerAddress, Purpose};
use nbdkit_ipc::{Channel, FromTemplate, FromWorker, ToTemplate, ToWorker};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::{Plan, Server, Stage, WorkerLink};
use crate::cli::command_line::{LogDestination, Options, Stack};
use crate::identity::{Identity, ListenerUser};
use crate::log::Log;
use crate::template::{Origin, Recipe, Template};

/// No process has it: the kernel's largest is 2^22. proc_pid_max(5).
const NOBODY: Pid = Pid::from_raw(i32::MAX);

/// A server that has lost its first template and hears the next one's first words, with some clients left.
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
    /// With so many connections, numbered from 1; each has its worker's channel, unless they are `shared`.
    ///
    /// # Errors
    /// No descriptors.
    pub fn new(connections: u64, shared: bool) -> Result<Listener, String> {
        let options =
            Options { log: LogDestination::File(PathBuf::from("/dev/null")), ..Options::default() };
        let log = Log::new("nbdkit", &options)?;
        let stack = Stack { filters: Vec::new(), plugin: "null".into(), parameters: Vec::new() };
        let plan = Plan {
            recipe: Recipe::new(&stack, &options, Purpose::Serve, true, None),
            options,
            mode: None,
            first: None,
            identity: Identity::default(),
            listener_user: ListenerUser::Same,
            report: None,
            streams: None,
            plugin: "null".to_owned(),
            tls: None,
            unprotected: None,
        };
        let failed = |error: std::io::Error| error.to_string();
        let mut server = Server::new(plan, log)?;
        let (link, template) = Channel::pair().map_err(failed)?;
        server.template = Some(Template::new(NOBODY, link, Origin::Rebuild));
        // Later than start-up, which would change this process.
        server.stage = Stage::Serving;
        let isolation = if shared { Isolation::Shared } else { Isolation::Connection };
        server.configured = Some(Configured {
            one_client: false,
            isolation,
            replaceable: true,
            may_shutdown: true,
            programs: false,
            undeclared: false,
        });
        let mut workers = Vec::new();
        for number in 1..=connections {
            let peer =
                Peer { address: PeerAddress::Unix, credentials: None, security_context: None };
            server.connections.add(number, peer, None, Instant::now());
            server.last_connection = number;
            if !shared {
                let (ours, theirs) = WorkerLink::pair().map_err(failed)?;
                server.links.insert(number, ours);
                workers.push(theirs);
            }
        }
        Ok(Listener { server, template, workers })
    }

    /// The template's end.
    pub fn template(&self) -> BorrowedFd<'_> {
        self.template.as_fd()
    }

    /// A worker's end.
    pub fn worker(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.workers.get(index).map(AsFd::as_fd)
    }

    /// What the loop does when everybody may have said something. Whether the server goes on.
    ///
    /// # Panics
    /// If the tables contradict each other.
    pub fn turn(&mut self) -> bool {
        let server = &mut self.server;
        server.template_unread = true;
        server.unread = server.links.keys().copied().collect();
        server.read_template();
        server.read_workers();
        server.sign_some();
        for (number, connection) in server.connections.iter() {
            assert!((1..=server.last_connection).contains(&number), "nobody came since");
            assert!(connection.pid.is_none_or(|pid| pid > 1), "{connection} has a worker");
            let owner = connection.pid.map(|pid| server.connections.of_pid(pid));
            assert!(owner.is_none_or(|owner| owner == Some(number)), "a worker has one client");
        }
        for number in server.links.keys() {
            assert!(server.connections.get_mut(*number).is_some(), "a channel has a connection");
        }
        server.stage != Stage::Stopping
    }

    /// The template has ended.
    pub fn template_ends(&mut self) {
        self.server.template_ended(WaitStatus::Signaled(NOBODY, Signal::SIGKILL, false));
        assert!(self.server.template.is_none(), "there is no other");
    }
}
