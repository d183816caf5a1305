//! The template: how `nbdkit-worker` is started, and the listener's end of its channel.
//!
//! The listener never waits for the template: messages that it does not take at once are queued
//! here. Messages from it are checked against the table of [`nbdkit_ipc::phase`]; the receiver
//! checks what they mean. The template has the caller's environment and streams, so that plugins
//! see what they would see in nbdkit.

#![forbid(unsafe_code)]

mod error;
mod spec;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nbdkit_ipc::messages::{EnterService, Serve};
use nbdkit_ipc::phase::{self, Phase};
use nbdkit_ipc::{Channel, FromTemplate, RecvError, ToTemplate};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) use error::ProgramError;
pub(crate) use spec::{LISTENER_VARIABLES, TemplateSpec, installed, is_spared};

/// The listener's end of the channel to a template.
type Link = Channel<ToTemplate, FromTemplate>;

/// Which template it is. What follows from the first template's messages, above all opening the
/// listening sockets, must never follow from a later one's: the listener is confined by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The first. `EnterService` is sent when there are sockets.
    FirstStart,
    /// One that replaces a template that has ended. It was sent everything up to `EnterService`
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
    waits_for_room: bool,
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
            waits_for_room: false,
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
        self.waits_for_room = false;
        while let Some(message) = self.outbox.front() {
            match self.link.try_send(message, &[]) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.waits_for_room = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the channel had no room for the last message that was to be sent.
    pub(crate) fn waits_for_room(&self) -> bool {
        self.waits_for_room
    }

    /// Sends a client. The caller needs its copies of the descriptors only if this fails.
    ///
    /// # Errors
    /// EAGAIN: the queue is full. EPIPE: the template has ended.
    pub(crate) fn serve(&mut self, serve: &Serve, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.flush()?;
        if !self.outbox.is_empty() {
            return Err(Errno::EAGAIN.into());
        }
        let sent = self.link.try_send(&ToTemplate::Serve(serve.clone()), fds);
        self.waits_for_room =
            sent.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        sent
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
    use nbdkit_ipc::StackId;
    use nbdkit_ipc::messages::{self, Applies, Hello, Parameter};

    use super::*;

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
        let serving = FromTemplate::Serving {
            connection: 1,
            stack: StackId(1),
            export: "".into(),
            tls_dn: None,
        };
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
            park_after: None,
            parked: None,
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
        assert!(template.waits_for_room());
        for n in 0..50 {
            assert_eq!(other.recv().unwrap().message, parameter(n));
            template.flush().unwrap();
        }
        template.serve(&serve, &[]).unwrap();
        assert!(!template.waits_for_room());
        assert_eq!(other.recv().unwrap().message, ToTemplate::Serve(serve.clone()));
        // Clients alone fill the channel, too.
        while template.serve(&serve, &[]).is_ok() {}
        assert!(template.waits_for_room());
        while other.recv().is_ok() && template.serve(&serve, &[]).is_err() {}
        assert!(!template.waits_for_room());
    }
}
