//! The listener's loop: one thread, which waits for clients, for messages of template and workers,
//! for signals and for children that end. Nothing here waits for a child, and each source is served
//! a bounded amount at a time.
//!
//! Four types have the state, and the loop passes what one needs of another:
//! - `acceptor`: listening sockets and clients that are not served yet; `clients`: their way to a
//!   worker
//! - `slot`: the template, its broker, and its replacement; `workers`: connections, channels,
//!   kills, signatures
//! - `shutdown`: stage, deadlines and exit status; `ending`: children that ended, and the end of
//!   the server
//!
//! - `context`: settings, log and poll instance; `startup`: from the first template to the first
//!   client
//! - `parking`: clients that are idle; `dispatch`: messages of template and workers; `strays`:
//!   processes that scripts leave; `own_user`: leaving root; `reopen`: the log file on SIGUSR1;
//!   `ended`: what is logged about a connection that has ended; `status`: what the service manager
//!   shows
//! - `printed`: what other processes print where the server has a terminal; `fuzz`: a server
//!   without processes

#![forbid(unsafe_code)]

mod acceptor;
mod clients;
mod context;
mod dispatch;
mod ended;
mod ending;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod own_user;
mod parking;
mod printed;
mod reopen;
mod shutdown;
mod slot;
mod startup;
mod status;
mod strays;
mod workers;

use std::cell::OnceCell;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use nix::sys::prctl;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook_mio::v1_0::Signals;

use crate::captive::Streams;
use crate::cli::command_line::{Options, Sandbox, ServiceMode};
use crate::daemon::Report;
use crate::error::StartError;
use crate::identity::{self, Identity, ListenerUser};
use crate::log::Log;
use crate::made::MadeFile;
use crate::notify::Manager;
use crate::system_error::SystemError;
use crate::template::TemplateSpec;
use crate::tls::Tls;
use acceptor::Acceptor;
use context::Context;
use printed::Printed;
use shutdown::{Shutdown, Stage};
use slot::TemplateSlot;
use workers::Workers;

const SIGNALS: Token = Token(0);
const TEMPLATE: Token = Token(1);
const SPAWNER: Token = Token(2);
const BROKER: Token = Token(3);
const PRINTED: Token = Token(4);
/// Listening sockets follow from here.
const FIRST_LISTENER: usize = 5;
/// Workers' channels: this and the number of the connection. More listening sockets than that
/// cannot be opened.
const FIRST_WORKER: usize = 1 << 32;

/// What was settled before the loop begins.
pub(crate) struct Plan {
    /// The command line's options.
    pub(crate) options: Options,
    /// Where clients come from; `None` if the template only prints something.
    pub(crate) mode: Option<ServiceMode>,
    /// What only the first start has.
    pub(crate) first: Option<FirstStart>,
    /// Who serves.
    pub(crate) identity: Identity,
    /// Whose this process is then, once it has been looked up: see [`Plan::listener_user`].
    pub(crate) listener_user: OnceCell<ListenerUser>,
    /// Who waits for us to be ready, if we are in the background.
    pub(crate) report: Option<Report>,
    /// The client of `-s`.
    pub(crate) streams: Option<Streams>,
    /// How to make a template.
    pub(crate) spec: TemplateSpec,
    /// The plugin's name, for log lines that concern a connection.
    pub(crate) plugin: String,
    /// Keys, unless TLS is off.
    pub(crate) tls: Option<Tls>,
    /// The OOM score that this process had before it protected itself, if it has.
    pub(crate) unprotected: Option<i32>,
}

impl Plan {
    /// Whose this process is once it serves. What the command line names was looked up before; the
    /// user of this build is looked up now, or was the last time.
    fn listener_user(&self) -> &ListenerUser {
        self.listener_user.get_or_init(|| {
            let sandboxed = self.options.sandbox != Some(Sandbox::Off);
            // Only what the command line names is an error.
            identity::listener_user(None, sandboxed, self.identity)
                .unwrap_or_else(|error| ListenerUser::Root(error.to_string()))
        })
    }
}

/// What the first start uses up. There is one for each server: when sockets have been made, or will
/// not be, it is gone, and with it the way to make any.
pub(crate) struct FirstStart {
    /// The sockets of socket activation.
    pub(crate) adopted: Vec<OwnedFd>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With this exit status.
    Status(u8),
    /// By this signal, before it was ready.
    Signal(i32),
}

/// The listener, from the start of the first template to the end of the server.
pub(crate) struct Server {
    context: Context,
    manager: Manager,
    signals: Signals,
    /// What only the first start has, until there are sockets.
    first: Option<FirstStart>,
    /// Files that a start which fails removes.
    made: Vec<MadeFile>,
    /// Where the server has a terminal.
    printed: Option<Printed>,
    /// There may be more children to reap.
    reap_again: bool,
    acceptor: Acceptor,
    slot: TemplateSlot,
    workers: Workers,
    shutdown: Shutdown,
}

impl Server {
    /// Starts the first template.
    ///
    /// # Errors
    /// The listener cannot make what it needs, or the template cannot be started.
    pub(crate) fn start(plan: Plan, log: Log) -> Result<Server, StartError> {
        let mut server = Server::new(plan, log, Stage::Configuring)?;
        server.introduce();
        server.keep_terminal()?;
        let template = server.context.plan().spec.start()?;
        server.slot.install(template, &server.context)?;
        // While the template starts. Where there is no such user, the C library loads what else
        // might know it, which takes half a millisecond.
        if server.context.plan().mode.is_some() {
            server.context.plan().listener_user();
        }
        Ok(server)
    }

    /// A server without a template.
    fn new(mut plan: Plan, log: Log, stage: Stage) -> Result<Server, SystemError> {
        let poll = Poll::new().map_err(SystemError::in_call("epoll_create"))?;
        let mut signals = Signals::new([SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1])
            .map_err(SystemError::in_call("sigaction"))?;
        poll.registry()
            .register(&mut signals, SIGNALS, Interest::READABLE)
            .map_err(SystemError::in_call("epoll_ctl"))?;
        // Workers whose template has ended become children of the listener.
        prctl::set_child_subreaper(true)
            .map_err(SystemError::in_call("prctl: PR_SET_CHILD_SUBREAPER"))?;
        let now = Instant::now();
        Ok(Server {
            first: plan.first.take(),
            acceptor: Acceptor::new(&plan.options, now),
            context: Context::new(plan, log, poll),
            manager: Manager::from_env(now),
            signals,
            made: Vec::new(),
            printed: None,
            reap_again: false,
            slot: TemplateSlot::new(now),
            workers: Workers::new(now),
            shutdown: Shutdown::new(stage),
        })
    }

    /// Runs until everything has ended.
    pub(crate) fn run(mut self) -> End {
        let mut events = Events::with_capacity(256);
        while !self.finished() {
            self.slot.poll_for_room(&self.context);
            let timeout = self.timeout(Instant::now());
            if let Err(error) = self.context.poll().poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                self.context.log().error(&format!("epoll_wait: {}", crate::errno_text(&error)));
                self.slot.end_spawner(self.acceptor.private(), &self.context);
                return End::Status(1);
            }
            if !events.is_empty() {
                self.manager.status_may_have_changed();
            }
            for event in &events {
                match event.token() {
                    SIGNALS => self.take_signals(),
                    TEMPLATE => self.slot.set_ready(),
                    SPAWNER => self.slot.set_spawner_ready(),
                    BROKER => self.slot.set_broker_ready(),
                    PRINTED => self.printed.iter_mut().for_each(Printed::is_readable),
                    Token(number @ FIRST_WORKER..) => {
                        self.workers.set_readable((number - FIRST_WORKER) as u64);
                    }
                    Token(number) => self.acceptor.set_ready(number - FIRST_LISTENER),
                }
            }
            self.copy_printed();
            self.read_spawner();
            self.read_template();
            self.read_workers();
            self.sign_some();
            self.read_broker();
            if std::mem::take(&mut self.reap_again) {
                self.reap();
            }
            let now = Instant::now();
            self.replace_template(now);
            self.enforce_deadlines(now);
            self.disconnect_unserved(now);
            self.accept_clients(now);
            self.notify_manager(now);
        }
        self.slot.end_spawner(self.acceptor.private(), &self.context);
        self.end_strays();
        self.printed.iter_mut().for_each(|printed| printed.copy_rest(self.context.log()));
        self.shutdown.end()
    }

    /// How long nothing has to be done unless there is an event.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        let log = self.context.log();
        // First of all: what was printed is copied only while the log is not behind.
        let flush = log.flush(now);
        let state = self.state();
        if self.slot.is_ready()
            || self.slot.is_broker_ready()
            || self.printed.as_ref().is_some_and(|printed| printed.has_more(log))
            || self.reap_again
            || self.workers.has_readable()
            || self.workers.has_signatures_to_make()
            || self.acceptor.can_accept(state, now)
            || self.acceptor.can_resume(state, now)
        {
            return Some(Duration::ZERO);
        }
        [
            self.slot.next_deadline(now),
            self.workers.next_kill_timeout(),
            flush,
            self.acceptor.backoff_until().filter(|_| self.shutdown.is_serving()),
            self.shutdown.next_deadline(),
            // If it has come, something else keeps clients from being accepted, and its end is an
            // event.
            self.acceptor.next_slot(state).filter(|at| *at > now),
            self.acceptor.next_admission(state),
            self.manager.next_deadline().filter(|_| !self.shutdown.is_starting()),
        ]
        .into_iter()
        .flatten()
        .min()
        .map(|at| at.saturating_duration_since(now))
    }
}
