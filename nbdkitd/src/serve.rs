//! The loop: one thread, which waits for clients, for what the template and the workers say, for signals and for
//! children that end. Nothing here waits for a child, and each source is served a bounded amount at a time.
//!
//! - `startup`: from the first template to the first client; `accept`: from the socket to the template; `admit`: whom and for whom
//! - `incoming`: what template and workers say; `broker`: channels to the broker; `workers`: ending them; `signing`: for TLS
//! - `ending`: children that ended, and the end of the server; `printed`: what they print where the server has a terminal
//! - `rebuild`: by whom a template that ended is replaced; `schedule`: when; `cgroup`: moving with the listener
//! - `own_user`: leaving root; `fuzz`: a server without processes

#![forbid(unsafe_code)]

mod accept;
mod admit;
mod alarm;
mod broker;
mod cgroup;
mod ending;
pub(crate) mod fuzz;
mod incoming;
mod own_user;
mod printed;
mod rebuild;
mod schedule;
mod signing;
mod startup;
mod strays;
mod workers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nbdkit_ipc::messages::{Configured, Peer};
use nbdkit_ipc::{Channel, FromWorker, ToWorker};
use nix::sys::prctl;
use nix::unistd::Pid;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook_mio::v1_0::Signals;

use crate::admission::{Admission, MOST_WAITING, PeerKey, Waiting};
use crate::captive::{Captive, Streams};
use crate::cli::command_line::{Options, ServiceMode};
use crate::connections::Connections;
use crate::daemon::Report;
use crate::identity::{Identity, ListenerUser};
use crate::log::{Level, Log, Quota, Speaker};
use crate::made::MadeFile;
use crate::notify::Manager;
use crate::sockets::PrivateDirectory;
use crate::template::{Recipe, Template};
use crate::tls::Tls;
use accept::{Listener, Pause, Pending};
use broker::Brokers;
use cgroup::Groups;
use ending::Deadlines;
use printed::Printed;
use rebuild::Maker;
use schedule::Schedule;
use signing::Signing;

const SIGNALS: Token = Token(0);
const TEMPLATE: Token = Token(1);
const SPAWNER: Token = Token(2);
const BROKER: Token = Token(3);
const PRINTED: Token = Token(4);
/// Listening sockets follow from here.
const FIRST_LISTENER: usize = 5;
/// Workers' channels: this and the number of the connection. More listening sockets than that cannot be opened.
const FIRST_WORKER: usize = 1 << 32;

/// Error lines that the template may cause: at once, and each second. Many clients may share it.
const TEMPLATE_LINES: (u32, u32) = (1000, 200);

/// Our end of the channel to a worker.
type WorkerLink = Channel<ToWorker, FromWorker>;

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
    /// Whose this process is then.
    pub(crate) listener_user: ListenerUser,
    /// Who waits for us to be ready, if we are in the background.
    pub(crate) report: Option<Report>,
    /// The client of `-s`.
    pub(crate) streams: Option<Streams>,
    /// How to make a template.
    pub(crate) recipe: Recipe,
    /// The plugin's name, for log lines that concern a connection.
    pub(crate) plugin: String,
    /// Keys, unless TLS is off.
    pub(crate) tls: Option<Tls>,
    /// The OOM score that this process had before it protected itself, if it has.
    pub(crate) unprotected: Option<i32>,
}

/// What the first start uses up. There is one for each server: when sockets have been made, or will not be, it is gone, and
/// with it the way to make any.
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

/// How far the server has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The template is being configured, or prints what it was asked for.
    Configuring,
    /// There are sockets; the template changes to its user.
    Entering,
    /// Clients are served. The template may have to be replaced.
    Serving,
    /// On the way out.
    Stopping,
}

/// See the module's text.
pub(crate) struct Server {
    plan: Plan,
    log: Log,
    manager: Manager,
    poll: Poll,
    signals: Signals,
    stage: Stage,
    /// Until there are sockets.
    first: Option<FirstStart>,
    /// What a start that fails leaves nothing of.
    made: Vec<MadeFile>,
    template: Option<Template>,
    template_quota: Quota,
    /// Until when it has to end, since it has closed its channel.
    template_grace: Option<Instant>,
    /// Templates that have ended; their workers may go on.
    templates: Vec<Pid>,
    /// What the latest template said. Not all of it may change: see `startup`.
    configured: Option<Configured>,
    brokers: Brokers,
    /// Where the server has a terminal.
    printed: Option<Printed>,
    /// When templates are replaced.
    schedule: Schedule,
    maker: Maker,
    /// Where there is somebody to have the others follow.
    groups: Option<Groups>,
    spawner_unread: bool,
    /// There is no template and there will be none.
    retiring: bool,
    listeners: Vec<Listener>,
    /// Where the search for the next client begins, so that each socket gets its turn.
    next_listener: usize,
    private: Option<PrivateDirectory>,
    pending: Option<Pending>,
    /// Accepted clients that wait for room, and those that a template took with it.
    waiting: Waiting<(OwnedFd, Peer)>,
    /// When the next of those may be admitted, if that is known.
    next_admission: Option<Instant>,
    pause: Pause,
    admission: Admission,
    last_connection: u64,
    connections: Connections,
    links: BTreeMap<u64, WorkerLink>,
    signing: Signing,
    /// Workers that were killed, or are to be: when their end has to be known. In order.
    ends: VecDeque<(Instant, u64)>,
    /// Sources that had more to say than was taken: connections, the template, children.
    unread: BTreeSet<u64>,
    template_unread: bool,
    reap_again: bool,
    captive_streams: Option<Streams>,
    captive: Option<Captive>,
    captive_status: Option<u8>,
    /// When the server was told to end with the command of `--run`.
    ends_with_captive: Option<Instant>,
    status: u8,
    signal: Option<i32>,
    deadlines: Option<Deadlines>,
}

impl Server {
    /// Starts the first template.
    ///
    /// # Errors
    /// One line for the user.
    pub(crate) fn start(plan: Plan, log: Log) -> Result<Server, String> {
        let mut server = Server::new(plan, log)?;
        server.introduce();
        server.keep_terminal()?;
        let template = server.plan.recipe.start()?;
        server.listen_to_template(template)?;
        Ok(server)
    }

    /// A server without a template.
    fn new(mut plan: Plan, log: Log) -> Result<Server, String> {
        let failed = |call: &'static str| {
            move |error: io::Error| format!("{call}: {}", crate::errno_text(&error))
        };
        let poll = Poll::new().map_err(failed("epoll_create"))?;
        let mut signals = Signals::new([SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM])
            .map_err(failed("sigaction"))?;
        poll.registry()
            .register(&mut signals, SIGNALS, Interest::READABLE)
            .map_err(failed("epoll_ctl"))?;
        // Workers whose template has ended come to us.
        prctl::set_child_subreaper(true)
            .map_err(|errno| format!("prctl: PR_SET_CHILD_SUBREAPER: {}", crate::words(errno)))?;
        let now = Instant::now();
        let Options { max_connections, max_connections_per_peer, .. } = plan.options;
        let first = std::mem::take(&mut plan.first);
        Ok(Server {
            plan,
            log,
            manager: Manager::from_env(),
            poll,
            signals,
            stage: Stage::Configuring,
            first,
            made: Vec::new(),
            template: None,
            template_quota: Quota::new(TEMPLATE_LINES.0, TEMPLATE_LINES.1, now),
            template_grace: None,
            templates: Vec::new(),
            configured: None,
            brokers: Brokers::default(),
            printed: None,
            schedule: Schedule::default(),
            maker: Maker::Ourselves,
            groups: None,
            spawner_unread: false,
            retiring: false,
            listeners: Vec::new(),
            next_listener: 0,
            private: None,
            pending: None,
            waiting: Waiting::new(MOST_WAITING),
            next_admission: None,
            pause: Pause::default(),
            admission: Admission::new(max_connections, max_connections_per_peer, now),
            last_connection: 0,
            connections: Connections::default(),
            links: BTreeMap::new(),
            signing: Signing::new(now),
            ends: VecDeque::new(),
            unread: BTreeSet::new(),
            template_unread: false,
            reap_again: false,
            captive_streams: None,
            captive: None,
            captive_status: None,
            ends_with_captive: None,
            status: 0,
            signal: None,
            deadlines: None,
        })
    }

    /// Runs until everything has ended.
    pub(crate) fn run(mut self) -> End {
        let mut events = Events::with_capacity(256);
        while !self.finished() {
            if let Err(error) = self.poll.poll(&mut events, self.timeout(Instant::now()))
                && error.kind() != io::ErrorKind::Interrupted
            {
                self.log.error(&format!("epoll_wait: {}", crate::errno_text(&error)));
                self.end_spawner();
                return End::Status(1);
            }
            for event in &events {
                match event.token() {
                    SIGNALS => self.take_signals(),
                    TEMPLATE => self.template_unread = true,
                    SPAWNER => self.spawner_unread = true,
                    BROKER => self.brokers.unread = true,
                    PRINTED => self.printed.iter_mut().for_each(Printed::is_readable),
                    Token(number @ FIRST_WORKER..) => {
                        self.unread.insert((number - FIRST_WORKER) as u64);
                    }
                    Token(number) => {
                        if let Some(it) = self.listeners.get_mut(number - FIRST_LISTENER) {
                            it.ready = true;
                        }
                    }
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
        }
        self.end_spawner();
        self.end_strays();
        self.printed.iter_mut().for_each(|printed| printed.copy_rest(&self.log));
        match self.signal {
            Some(signal) => End::Signal(signal),
            None => {
                End::Status(self.captive_status.filter(|_| self.status == 0).unwrap_or(self.status))
            }
        }
    }

    /// How long nothing has to be done unless something happens.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        // First of all: what was printed is copied only while the log is not behind.
        let log = self.log.flush(now);
        if self.template_unread
            || self.brokers.unread
            || self.printed.as_ref().is_some_and(|printed| printed.has_more(&self.log))
            || self.reap_again
            || !self.unread.is_empty()
            || !self.signing.is_empty()
            || self.can_accept(now)
        {
            return Some(Duration::ZERO);
        }
        [
            self.schedule.next(now),
            self.template_grace,
            self.next_end(),
            log,
            self.pause.until().filter(|_| self.stage == Stage::Serving),
            self.deadlines.as_ref().and_then(Deadlines::next),
            // If it has come, something else keeps us from accepting, and will wake us.
            self.next_place().filter(|at| *at > now),
            self.next_admission(),
        ]
        .into_iter()
        .flatten()
        .min()
        .map(|at| at.saturating_duration_since(now))
    }

    fn listen_to_template(&mut self, template: Template) -> Result<(), String> {
        let watched = self.poll.registry().register(
            &mut SourceFd(&template.raw_fd()),
            TEMPLATE,
            Interest::READABLE | Interest::WRITABLE,
        );
        if let Err(error) = watched {
            template.kill();
            return Err(format!("epoll_ctl: {}", crate::errno_text(&error)));
        }
        self.template = Some(template);
        Ok(())
    }

    /// Who speaks in log lines that concern a connection. Like nbdkit, `-s` does not number its one client.
    fn speaker<'a>(&'a self, layer: Option<&'a str>, connection: u64) -> Speaker<'a> {
        let numbered = self.plan.mode != Some(ServiceMode::Stdin);
        Speaker {
            layer: layer.or(Some(&self.plan.plugin)),
            connection: if numbered { connection } else { 0 },
        }
    }

    /// Something about a connection that the operator should know.
    fn connection_error(&self, connection: u64, text: &str) {
        let key = self.connections.get(connection).map_or(PeerKey::Unknown, |it| it.key);
        self.log.about(key, None, self.speaker(None, connection), Level::Error, text);
    }

    /// Stops listening to a descriptor. It may be closed already, and so be forgotten.
    fn forget(&self, fd: &impl AsRawFd) {
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd.as_raw_fd()));
    }
}
