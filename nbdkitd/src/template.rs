//! The template: how `nbdkit-worker` is started, and the listener's end of its channel.
//!
//! The listener never waits for the template: messages that it does not take at once are queued
//! here. Messages from it are checked against the table of [`nbdkit_ipc::phase`]; the receiver
//! checks what they mean. The template has the caller's environment and streams, so that plugins
//! see what they would see in nbdkit.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbdkit_ipc::keys::{Credentials, TlsPiece};
use nbdkit_ipc::messages::{self, Configure, EnterService, Hello, Parameter, Purpose, Serve};
use nbdkit_ipc::phase::{self, Phase};
use nbdkit_ipc::program::{self, Program};
use nbdkit_ipc::{Channel, FromTemplate, RecvError, StackId, ToTemplate, title};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;

use crate::cli::command_line::{Options, Stack};
use crate::cli::{build_info, options};
use crate::notify;
use crate::tls::Tls;

/// Most requests of one client that run at the same time, without `-t`. nbdkit(1).
const DEFAULT_THREADS: u32 = 16;

/// A program of this project's that could not be started, or not be sent its configuration.
#[derive(Debug, Error)]
pub(crate) enum ProgramError {
    /// It cannot be executed, or has ended.
    #[error("cannot start {}: {}", path.display(), crate::errno_text(cause))]
    Start { path: PathBuf, cause: io::Error },
    /// A parameter does not fit a message: one from a file may be longer than any on a command
    /// line.
    #[error("a parameter is too long")]
    ParameterTooLong,
}

impl ProgramError {
    /// What follows from the failure to start `program`, or to send to it.
    pub(crate) fn of(program: &Program, cause: io::Error) -> ProgramError {
        match cause.raw_os_error() {
            Some(libc::EMSGSIZE) => ProgramError::ParameterTooLong,
            _ => ProgramError::Start { path: program.path.clone(), cause },
        }
    }
}

/// Environment variables for the listener alone, which other processes do not inherit.
pub(crate) const LISTENER_VARIABLES: [&str; 4] =
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", notify::NOTIFY_SOCKET];

/// What a template is started and configured with: the first one, and those that replace it.
pub(crate) struct TemplateSpec {
    program: Program,
    configure: Configure,
    certificates: Vec<TlsPiece>,
    parameters: Vec<Parameter>,
}

/// What the server prints before plugin and filters do.
fn introduction(purpose: Purpose) -> String {
    match purpose {
        Purpose::Help => options::help() + "\n",
        Purpose::Version => build_info::version(),
        Purpose::Serve | Purpose::DumpPlugin => String::new(),
    }
}

impl TemplateSpec {
    /// From the command line. `stdio_safe`: standard input and output are not a client's.
    pub(crate) fn new(
        stack: &Stack,
        options: &Options,
        purpose: Purpose,
        stdio_safe: bool,
        tls: Option<&Tls>,
    ) -> TemplateSpec {
        let configure = Configure {
            stack: StackId::ONLY,
            purpose,
            filters: stack.filters.clone(),
            plugin: stack.plugin.clone(),
            verbose: options.verbose,
            debug_flags: options.debug_flags.clone(),
            readonly: options.readonly,
            threads: options.threads.map_or(DEFAULT_THREADS, std::num::NonZero::get),
            protocol: options.protocol,
            timeout: options.timeout,
            stdio_safe,
            swap: options.swap,
            isolation: options.isolation,
            sandbox: options.sandbox,
            tls: tls.map(|tls| tls.configure.clone()),
            introduction: introduction(purpose),
            one_client: options.max_connections == Some(1)
                || options.max_connections_per_peer == Some(1),
            allowed: messages::Allowed {
                paths: options
                    .allow_paths
                    .iter()
                    .map(|allowed| (allowed.path.clone().into(), allowed.write))
                    .collect(),
                network: options.allow_net,
            },
        };
        let program = Program {
            path: installed(worker_program(&configure)),
            title: format!("template {}", title::name(crate::plugin_name(stack))),
            spared: is_spared(),
            // Later templates start when the listener may have left it.
            directory: std::env::current_dir().ok(),
            stderr: None,
        };
        TemplateSpec {
            program,
            configure,
            certificates: tls.map(|tls| tls.pieces.clone()).unwrap_or_default(),
            parameters: stack.parameters.clone(),
        }
    }

    /// The filters and the plugin, outermost first, for log lines.
    pub(crate) fn stack(&self) -> String {
        let Configure { filters, plugin, .. } = &self.configure;
        let names = filters.iter().chain([plugin]).map(|name| name.as_bytes().escape_ascii());
        names.map(|name| name.to_string()).collect::<Vec<_>>().join(" ")
    }

    /// Gives templates and the spawner another standard error than the listener's.
    pub(crate) fn print_to(&mut self, stderr: OwnedFd) {
        self.program.stderr = Some(Arc::new(stderr));
    }

    /// The template's program.
    pub(crate) fn program(&self) -> &Program {
        &self.program
    }

    /// What the template is for.
    pub(crate) fn purpose(&self) -> Purpose {
        self.configure.purpose
    }

    /// Whether a second template would be configured as the first was: not if a parameter (`-`,
    /// `-FD`) made it read standard input or another descriptor, which can be read only once.
    pub(crate) fn repeatable(&self) -> bool {
        !self.parameters.iter().any(|parameter| reads_descriptor(&parameter.value))
    }

    /// Starts the first template and begins to configure it.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start(&self) -> Result<Template, ProgramError> {
        self.execute(Origin::FirstStart, self.messages())
    }

    /// Starts a template in the place of one that has ended.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start_again(&self, service: &EnterService) -> Result<Template, ProgramError> {
        let service = ToTemplate::EnterService(service.clone());
        self.execute(Origin::Rebuild, self.messages().chain([service]))
    }

    fn execute(
        &self,
        origin: Origin,
        messages: impl Iterator<Item = ToTemplate>,
    ) -> Result<Template, ProgramError> {
        let failed = |cause| ProgramError::of(&self.program, cause);
        let (pid, link) = self.program.start(&LISTENER_VARIABLES).map_err(failed)?;
        let mut template = Template::new(pid, link, origin);
        template.outbox.extend(messages);
        template.flush().map_err(failed)?;
        Ok(template)
    }

    /// The messages that configure a template, in order.
    pub(crate) fn messages(&self) -> impl Iterator<Item = ToTemplate> {
        let first = [
            ToTemplate::Hello(Hello::ours()),
            ToTemplate::Configure(Box::new(self.configure.clone())),
        ];
        let pieces = self.certificates.iter().cloned().map(ToTemplate::TlsPiece);
        let parameters = self.parameters.iter().cloned().map(ToTemplate::Parameter);
        first.into_iter().chain(pieces).chain(parameters).chain([ToTemplate::ConfigureEnd])
    }
}

/// Whether this program's name tells systemd not to kill it before the root disk is gone.
pub(crate) fn is_spared() -> bool {
    let argv0 = std::env::args_os().next().unwrap_or_default();
    argv0.as_bytes().first() == Some(&title::ROOT_STORAGE_DAEMON)
}

/// `nbdkit-worker`, or the one with pre-shared keys.
fn worker_program(configure: &Configure) -> &'static str {
    match &configure.tls {
        Some(tls) if tls.credentials == Credentials::PreSharedKeys => "nbdkit-worker-psk",
        _ => "nbdkit-worker",
    }
}

/// The path of a program that only this one starts.
pub(crate) fn installed(name: &str) -> PathBuf {
    let directory = option_env!("NBDKIT_LIBEXECDIR").unwrap_or("/usr/local/libexec/nbdkit");
    program::beside_or_in(name, Path::new(directory))
}

fn reads_descriptor(value: &OsStr) -> bool {
    matches!(value.as_bytes(), [b'-', digits @ ..] if digits.iter().all(u8::is_ascii_digit))
}

/// The listener's end of the channel to a template.
type Link = Channel<ToTemplate, FromTemplate>;

/// Which template it is. What follows from the first template's messages, above all opening the
/// listening sockets, must never follow from a later one's: the listener is confined by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The first. `EnterService` is sent when there are sockets.
    FirstStart,
    /// One in the place of a template that has ended. It was sent everything up to `EnterService`
    /// when it was started.
    Rebuild,
}

/// A running template.
pub(crate) struct Template {
    pid: Pid,
    origin: Origin,
    link: Link,
    phase: Phase,
    outbox: VecDeque<ToTemplate>,
    failed: bool,
    killed: Cell<bool>,
    reaped: bool,
    /// It has started a broker.
    has_broker: bool,
    /// Why it failed to start.
    failure: Option<String>,
}

/// What came from the template.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A message that is permitted in this phase, and its descriptors.
    Message(FromTemplate, Vec<OwnedFd>),
    /// Nothing now.
    Empty,
    /// Nothing any more: the channel is closed.
    Closed,
    /// A protocol violation; which.
    Violation(String),
}

impl Template {
    /// Process `pid`, which has yet to send its `Hello` on `link`.
    pub(crate) fn new(pid: Pid, link: Link, origin: Origin) -> Template {
        Template {
            pid,
            origin,
            link,
            phase: Phase::ExpectHello,
            outbox: VecDeque::new(),
            failed: false,
            killed: Cell::new(false),
            reaped: false,
            has_broker: false,
            failure: None,
        }
    }

    /// A template that the spawner has started.
    pub(crate) fn adopt(pid: i32, link: OwnedFd) -> Template {
        Template::new(Pid::from_raw(pid), Channel::from_fd(link), Origin::Rebuild)
    }

    /// Which one it is.
    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// Tells the first template, which is configured, to enter service.
    pub(crate) fn enter_service(&mut self, service: EnterService) {
        self.enters_service();
        self.send(ToTemplate::EnterService(service));
    }

    /// The template is configured and enters service.
    pub(crate) fn enters_service(&mut self) {
        self.phase = Phase::ExpectReady;
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// The control channel's descriptor, for polling.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.link.as_fd().as_raw_fd()
    }

    /// Whether the template has started a broker.
    pub(crate) fn has_broker(&self) -> bool {
        self.has_broker
    }

    /// The template has started a broker.
    pub(crate) fn set_broker(&mut self) {
        self.has_broker = true;
    }

    /// Sets why the template failed to start: its own error, or the listener's reason to kill
    /// it.
    pub(crate) fn set_failure(&mut self, why: impl Into<String>) {
        self.failure = Some(why.into());
    }

    /// Why the template failed to start, if that is known.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The template's phase.
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the log has the reason of its end already: it has sent `Failed`, or the listener has
    /// killed it.
    pub(crate) fn is_explained(&self) -> bool {
        self.failed || self.killed.get()
    }

    /// Whether its exit status is the plugin's own: in the configuration phase plugins may call
    /// exit(3). nbdkit-plugin(3), "Requesting asynchronous shutdown".
    pub(crate) fn may_exit_as_it_likes(&self) -> bool {
        self.phase == Phase::ExpectConfigured && !self.is_explained()
    }

    /// Kills the template. As a child of the listener it keeps its process id until it is reaped.
    pub(crate) fn kill(&self) {
        if !self.reaped {
            self.killed.set(true);
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }

    /// The template was reaped: its process id may be another process's from now on.
    pub(crate) fn set_reaped(&mut self) {
        self.reaped = true;
    }

    /// Sends a message, now or when the template takes it.
    pub(crate) fn send(&mut self, message: ToTemplate) {
        self.outbox.push_back(message);
        // A template that has closed its channel has ended, which is noticed elsewhere.
        let _ = self.flush();
    }

    /// Sends what is queued, as far as it goes without waiting.
    ///
    /// # Errors
    /// A message that cannot be sent at all.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while let Some(message) = self.outbox.front() {
            match self.link.try_send(message, &[]) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends a client. The caller needs its copies of the descriptors only if this fails.
    ///
    /// # Errors
    /// EAGAIN: the queue is full. EPIPE: the template has ended.
    pub(crate) fn serve(&mut self, serve: &Serve, fds: &[OwnedFd]) -> io::Result<()> {
        self.flush()?;
        if !self.outbox.is_empty() {
            return Err(Errno::EAGAIN.into());
        }
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.link.try_send(&ToTemplate::Serve(serve.clone()), &fds)
    }

    /// Takes a message if there is one and the template was not killed, and checks that it is
    /// permitted in this phase.
    pub(crate) fn receive(&mut self) -> Incoming {
        if self.killed.get() {
            // Messages that it still sends come from a process that is not trusted any more.
            return Incoming::Empty;
        }
        let received = match self.link.try_recv() {
            Ok(received) => received,
            Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => return Incoming::Empty,
            Err(RecvError::Closed) => return Incoming::Closed,
            Err(error) => return Incoming::Violation(error.to_string()),
        };
        let name = phase::name(&received.message);
        let (fewest, most) = match received.message {
            FromTemplate::Broker { .. } => (1, 1),
            // Without a handle if template or listener had no free descriptor for it.
            FromTemplate::Forked { .. } => (0, 1),
            _ => (0, 0),
        };
        let lost = received.lost && most == 0;
        if lost || !(fewest..=most).contains(&received.fds.len()) {
            return Incoming::Violation(format!("{} descriptors with {name}", received.fds.len()));
        }
        let Some(next) = self.phase.after(&received.message) else {
            return Incoming::Violation(format!("unexpected {name} in phase {:?}", self.phase));
        };
        if let FromTemplate::Hello(hello) = &received.message
            && let Err(why) = hello.check()
        {
            return Incoming::Violation(why);
        }
        if let Err(what) = phase::check_ids(&received.message) {
            return Incoming::Violation(what.to_owned());
        }
        self.phase = next;
        self.failed |= received.message == FromTemplate::Failed;
        Incoming::Message(received.message, received.fds)
    }
}

#[cfg(test)]
mod tests {
    use nbdkit_ipc::messages::Applies;

    use super::*;

    fn spec(values: &[&str]) -> TemplateSpec {
        let stack = Stack { filters: vec![], plugin: "null".into(), parameters: vec![] };
        let mut spec = TemplateSpec::new(&stack, &Options::default(), Purpose::Serve, true, None);
        spec.parameters = values
            .iter()
            .map(|value| Parameter {
                key: Some("k".to_owned()),
                value: value.into(),
                applies: Applies::Always,
            })
            .collect();
        spec
    }

    #[test]
    fn a_password_from_a_descriptor_cannot_be_read_again() {
        assert!(spec(&["disk.img", "-x", "1-2", "--"]).repeatable());
        assert!(!spec(&["disk.img", "-"]).repeatable());
        assert!(!spec(&["-3"]).repeatable());
    }

    #[test]
    fn the_default_is_sixteen_threads() {
        assert_eq!(spec(&[]).configure.threads, 16);
    }

    #[test]
    fn a_worker_that_is_not_there_is_named() {
        let mut spec = spec(&[]);
        spec.program.path = "/no/such/nbdkit-worker".into();
        assert_eq!(
            spec.start().err().unwrap().to_string(),
            "cannot start /no/such/nbdkit-worker: No such file or directory"
        );
    }

    #[test]
    fn messages_out_of_phase_are_violations() {
        let (link, other) = Channel::<ToTemplate, FromTemplate>::pair().unwrap();
        let mut template = Template::new(Pid::this(), link, Origin::FirstStart);
        assert!(matches!(template.receive(), Incoming::Empty));
        other.send(&FromTemplate::Ready, &[]).unwrap();
        assert!(matches!(
            template.receive(),
            Incoming::Violation(why) if why == "unexpected Ready in phase ExpectHello"
        ));
        let stranger = Hello { version: 99, build: "x".to_owned() };
        other.send(&FromTemplate::Hello(stranger), &[]).unwrap();
        assert!(matches!(template.receive(), Incoming::Violation(why) if why.contains("build")));
        other.send(&FromTemplate::Hello(Hello::ours()), &[other.as_fd()]).unwrap();
        assert!(matches!(template.receive(), Incoming::Violation(why) if why.contains("Hello")));
        other.send(&FromTemplate::Hello(Hello::ours()), &[]).unwrap();
        assert!(matches!(template.receive(), Incoming::Message(FromTemplate::Hello(_), _)));
        template.phase = Phase::Serving;
        let serving = FromTemplate::Serving { connection: 1, stack: StackId(1), export: "".into() };
        other.send(&serving, &[]).unwrap();
        assert!(matches!(template.receive(), Incoming::Violation(why) if why.contains("stack")));
        drop(other);
        assert!(matches!(template.receive(), Incoming::Closed));
    }

    #[test]
    fn messages_that_are_not_taken_are_queued_and_clients_wait_behind_them() {
        let (link, other) = Channel::<ToTemplate, FromTemplate>::pair().unwrap();
        let mut template = Template::new(Pid::this(), link, Origin::FirstStart);
        template.phase = Phase::ExpectConfigured;
        let parameter = |n: u32| {
            ToTemplate::Parameter(Parameter {
                key: Some(n.to_string()),
                value: "x".repeat(100_000).into(),
                applies: Applies::Always,
            })
        };
        for n in 0..50 {
            template.send(parameter(n));
        }
        let serve = Serve {
            broker: false,
            stack: StackId::ONLY,
            connection: 1,
            peer: messages::Peer {
                address: messages::PeerAddress::Unix,
                credentials: None,
                security_context: None,
            },
        };
        let error = template.serve(&serve, &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        for n in 0..50 {
            assert_eq!(other.recv().unwrap().message, parameter(n));
            template.flush().unwrap();
        }
        template.serve(&serve, &[]).unwrap();
        assert_eq!(other.recv().unwrap().message, ToTemplate::Serve(serve));
    }
}
