//! The broker, which opens paths for workers: who may ask it gets a channel to it here, and that is all that this process
//! has to do with it. What it says is the word of a confined process.
//!
//! Each template brings its broker. A worker asks when it needs one, and again when its channel was closed; it gets one to
//! the newest broker, and waits while there will be one.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use mio::Interest;
use mio::unix::SourceFd;
use nbdkit_ipc::broker::{FromBroker, ToBroker};
use nbdkit_ipc::messages::LogRecord;
use nbdkit_ipc::phase::Phase;
use nbdkit_ipc::{Channel, FromBrokerLink, RecvError, ToBrokerLink, ToWorker};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::incoming::is_plausible;
use super::{BROKER, Server, Stage, WorkerLink};
use crate::log::{Quota, Speaker, syscalls};
use crate::template::Template;

/// How many messages are taken before the others get their turn.
const MESSAGES_AT_ONCE: usize = 64;

/// Error lines that a broker may cause: at once, and each second.
const LINES: (u32, u32) = (100, 10);

/// A broker that has not ended.
struct Broker {
    /// By the template's word.
    pid: i32,
    link: Channel<ToBrokerLink, FromBrokerLink>,
    quota: Quota,
    /// Every client needs it.
    always: bool,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Brokers {
    now: Option<Broker>,
    /// The template that runs, or the one that is to be replaced, has had one.
    announced: bool,
    /// Connections whose workers wait for a channel.
    pub(super) waiting: BTreeSet<u64>,
    pub(super) unread: bool,
    /// It has ended, and the template that brought it has clients that would end with it.
    lost: bool,
}

impl Broker {
    /// A worker's end of a new channel, of which the broker has the other.
    ///
    /// # Errors
    /// EAGAIN: the broker has to take others first. EMFILE.
    fn channel_for(&self, connection: u64) -> io::Result<OwnedFd> {
        let (theirs, brokers) = Channel::<ToBroker, FromBroker>::short_pair()?;
        let fds: [BorrowedFd<'_>; 1] = [brokers.as_fd()];
        match self.link.try_send(&ToBrokerLink::Channel { connection }, &fds) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(error),
            // If it has ended, the worker finds out on its channel, and asks again.
            Ok(()) | Err(_) => Ok(theirs.into_fd()),
        }
    }
}

impl Brokers {
    /// Its process id, if there is one.
    pub(super) fn pid(&self) -> Option<Pid> {
        self.now.as_ref().map(|broker| Pid::from_raw(broker.pid))
    }

    /// For a client that is handed over: its worker's end of a channel, if every client needs one. Without it the worker
    /// asks when it needs one.
    pub(super) fn channel_for(&self, connection: u64) -> Option<OwnedFd> {
        let broker = self.now.as_ref().filter(|broker| broker.always)?;
        broker.channel_for(connection).ok()
    }
}

impl Server {
    /// A template that enters service has made its broker. The one of the template before ends when it loses its channel.
    pub(super) fn listen_to_broker(
        &mut self,
        pid: i32,
        always: bool,
        fds: Vec<OwnedFd>,
    ) -> Result<(), &'static str> {
        let Ok([fd]) = <[_; 1]>::try_from(fds) else { return Err("a broker without a channel") };
        let known = self.template.as_ref().is_some_and(Template::has_broker);
        if known || pid <= 1 || self.connections.of_pid(pid).is_some() {
            return Err("a broker that cannot be");
        }
        self.release_broker();
        let link: Channel<ToBrokerLink, FromBrokerLink> = Channel::from_fd(fd);
        let watched = self.poll.registry().register(
            &mut SourceFd(&link.as_fd().as_raw_fd()),
            BROKER,
            Interest::READABLE | Interest::WRITABLE,
        );
        if watched.is_err() {
            return Err("a broker's channel that cannot be watched");
        }
        if let Some(template) = &mut self.template {
            template.set_broker();
        }
        let quota = Quota::new(LINES.0, LINES.1, Instant::now());
        self.brokers.now = Some(Broker { pid, link, quota, always });
        self.brokers.announced = true;
        self.brokers.lost = false;
        self.serve_waiting();
        Ok(())
    }

    /// Closes the channel of the broker, which ends it.
    pub(super) fn release_broker(&mut self) {
        if let Some(broker) = self.brokers.now.take() {
            self.forget(&broker.link.as_fd().as_raw_fd());
        }
        if self.stage == Stage::Stopping {
            self.serve_waiting();
        }
    }

    /// A worker asks for a channel to the broker.
    pub(super) fn broker_wanted(
        &mut self,
        number: u64,
        link: &WorkerLink,
    ) -> Result<(), Cow<'static, str>> {
        if !self.brokers.announced {
            return Err("a broker where there is none".into());
        }
        let Some(connection) = self.connections.get_mut(number) else { return Ok(()) };
        connection.brokers = connection
            .brokers
            .after_one_more()
            .ok_or("a channel to the broker more often than it can need one")?;
        if !self.connect_to_broker(number, link) {
            self.brokers.waiting.insert(number);
        }
        Ok(())
    }

    /// Gives a worker its channel, or none if there will be none. False if it has to wait.
    fn connect_to_broker(&self, number: u64, worker: &WorkerLink) -> bool {
        let Some(broker) = &self.brokers.now else {
            if self.is_broker_coming() {
                return false;
            }
            // It waits for nothing else, so its queue has room; or it is gone.
            let _ = worker.try_send(&ToWorker::Broker, &[]);
            return true;
        };
        match broker.channel_for(number) {
            Ok(theirs) => drop(worker.try_send(&ToWorker::Broker, &[theirs.as_fd()])),
            // Its queue is full: it is asked again when it has room.
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => {
                let text = format!("socketpair: {}", crate::errno_text(&error));
                self.connection_error(number, &text);
                let _ = worker.try_send(&ToWorker::Broker, &[]);
            }
        }
        true
    }

    /// Whether the next template is on its way, which brings the next broker.
    fn is_broker_coming(&self) -> bool {
        let template = self.template.as_ref();
        self.stage == Stage::Serving
            && !self.retiring
            && !self.schedule.refuses_clients(Instant::now())
            && template.is_none_or(|it| it.phase() != Phase::Serving || it.is_explained())
    }

    /// Those who wait for a channel get one, as far as there are any.
    pub(super) fn serve_waiting(&mut self) {
        let waiting = std::mem::take(&mut self.brokers.waiting);
        let still: Vec<u64> = waiting
            .into_iter()
            .filter(|number| {
                let link = self.links.get(number);
                link.is_some_and(|link| !self.connect_to_broker(*number, link))
            })
            .collect();
        self.brokers.waiting.extend(still);
    }

    /// Takes some messages of the broker, and lets it take what waits for it.
    pub(super) fn read_broker(&mut self) {
        if !std::mem::take(&mut self.brokers.unread) {
            return;
        }
        self.serve_waiting();
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(broker) = &self.brokers.now else { return };
            match broker.link.try_recv() {
                Ok(received) if received.fds.is_empty() && !received.lost => {
                    self.broker_says(received.message);
                }
                Ok(_) => return self.broker_violates("descriptors where none belong"),
                Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => return,
                Err(RecvError::Closed) => return self.broker_ended(),
                Err(error) => return self.broker_violates(&error.to_string()),
            }
        }
        self.brokers.unread = true;
    }

    fn broker_says(&mut self, message: FromBrokerLink) {
        match message {
            FromBrokerLink::Log(record) if is_plausible(&record) => self.broker_logs(&record),
            FromBrokerLink::Log(_) => self.broker_violates("a log record that is too long"),
            FromBrokerLink::Refused { syscall } => {
                let Some(broker) = &self.brokers.now else { return };
                self.log.error(&format!(
                    "the sandbox refused system call {} to the broker (pid {}, stack {})",
                    syscalls::describe(syscall),
                    broker.pid,
                    self.plan.recipe.stack()
                ));
            }
        }
    }

    fn broker_logs(&mut self, record: &LogRecord) {
        if let Some(broker) = &mut self.brokers.now {
            self.log.record(record, Speaker::default(), &mut broker.quota);
        }
    }

    /// Ends a broker that breaks the rules.
    fn broker_violates(&mut self, what: &str) {
        let Some(broker) = &self.brokers.now else { return };
        self.log.error(&format!(
            "the broker (pid {}) broke the rules and is ended: {what}",
            broker.pid
        ));
        self.kill_broker();
        self.broker_ended();
    }

    /// Ends the broker, if what the template has said is its process.
    fn kill_broker(&self) {
        let Some(broker) = &self.brokers.now else { return };
        if self.connections.of_pid(broker.pid).is_none() {
            let _ = self.signal_child(broker.pid, None, None, Some(Signal::SIGKILL));
        }
    }

    /// A broker that was not told to has ended: with the next template comes the next. The clients that there are need it
    /// no more, usually, and are not ended; in a template that serves all of them, the last one to go makes room.
    fn broker_ended(&mut self) {
        let Some(broker) = self.brokers.now.take() else { return };
        self.forget(&broker.link.as_fd().as_raw_fd());
        if self.template.is_none() {
            return self.serve_waiting();
        }
        if self.stage != Stage::Serving && self.stage != Stage::Entering {
            return;
        }
        let replaceable = self.configured.as_ref().is_some_and(|it| it.replaceable)
            && self.plan.recipe.repeatable();
        let then = if !replaceable {
            "files that were replaced, and those of a directory, cannot be opened any more"
        } else if self.is_shared() && !self.connections.is_empty() {
            "the template is replaced when its clients have gone"
        } else {
            "the template is replaced"
        };
        self.log.error(&format!("the broker (pid {}) has ended: {then}", broker.pid));
        self.brokers.lost = replaceable;
        self.replace_if_broker_lost();
        self.serve_waiting();
    }

    /// A template without a broker makes room for one that has one.
    pub(super) fn replace_if_broker_lost(&mut self) {
        if !self.brokers.lost || (self.is_shared() && !self.connections.is_empty()) {
            return;
        }
        let template = self.template.as_ref().filter(|it| it.phase() == Phase::Serving);
        if let Some(template) = template.filter(|_| self.stage == Stage::Serving) {
            template.kill();
            self.brokers.lost = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::fuzz::Listener;
    use nbdkit_ipc::messages::{Configured, Hello, Isolation};
    use nbdkit_ipc::{FromTemplate, FromWorker, ToTemplate};

    type TemplatesEnd = Channel<FromTemplate, ToTemplate>;
    type BrokersEnd = Channel<FromBrokerLink, ToBrokerLink>;

    /// What a template says before it is ready, with a broker.
    fn enters_service(template: &TemplatesEnd) -> BrokersEnd {
        let configured = Configured {
            one_client: false,
            isolation: Isolation::Connection,
            replaceable: true,
            may_shutdown: true,
            programs: false,
            undeclared: false,
        };
        let (listeners, broker) = Channel::<ToBrokerLink, FromBrokerLink>::pair().unwrap();
        template.send(&FromTemplate::Hello(Hello::ours()), &[]).unwrap();
        template.send(&FromTemplate::Configured(configured), &[]).unwrap();
        template
            .send(&FromTemplate::Broker { pid: i32::MAX - 1, always: true }, &[listeners.as_fd()])
            .unwrap();
        broker
    }

    fn asks(listener: &mut Listener, worker: usize) {
        listener.workers[worker].send(&FromWorker::Broker, &[]).unwrap();
        listener.turn();
    }

    fn answer(listener: &Listener, worker: usize) -> Option<usize> {
        match listener.workers[worker].try_recv() {
            Ok(received) => {
                assert_eq!(received.message, ToWorker::Broker);
                Some(received.fds.len())
            }
            Err(_) => None,
        }
    }

    #[test]
    fn a_worker_of_a_stack_without_a_broker_may_not_ask_for_one() {
        let mut listener = Listener::new(1, false).unwrap();
        asks(&mut listener, 0);
        assert!(listener.server.links.is_empty(), "it is ended");
    }

    #[test]
    fn who_asks_while_there_is_no_broker_gets_a_channel_to_the_next() {
        let mut listener = Listener::new(2, false).unwrap();
        listener.server.brokers.announced = true;
        asks(&mut listener, 0);
        assert_eq!(answer(&listener, 0), None);
        let broker = enters_service(&listener.template);
        listener.turn();
        assert_eq!(answer(&listener, 0), Some(1));
        let received = broker.try_recv().unwrap();
        assert_eq!(received.message, ToBrokerLink::Channel { connection: 1 });
        assert_eq!(received.fds.len(), 1);
        asks(&mut listener, 1);
        assert_eq!(answer(&listener, 1), Some(1));
    }

    #[test]
    fn a_second_broker_of_the_same_template_cannot_be() {
        let mut listener = Listener::new(1, false).unwrap();
        let _broker = enters_service(&listener.template);
        let (another, _end) = Channel::<ToBrokerLink, FromBrokerLink>::pair().unwrap();
        let message = FromTemplate::Broker { pid: i32::MAX - 2, always: false };
        listener.template.send(&message, &[another.as_fd()]).unwrap();
        listener.turn();
        assert!(listener.server.template.as_ref().is_some_and(Template::is_explained));
    }

    #[test]
    fn on_the_way_out_nobody_waits_for_a_broker() {
        let mut listener = Listener::new(1, false).unwrap();
        listener.server.brokers.announced = true;
        asks(&mut listener, 0);
        listener.server.stop(0);
        assert_eq!(answer(&listener, 0), Some(0));
        let next = listener.workers[0].try_recv().unwrap().message;
        assert_eq!(next, ToWorker::Quiesce);
    }

    #[test]
    fn who_asks_more_often_than_it_can_need_is_ended() {
        let mut listener = Listener::new(1, false).unwrap();
        let _broker = enters_service(&listener.template);
        listener.turn();
        for _ in 0..nbdkit_ipc::phase::Brokers::MOST {
            asks(&mut listener, 0);
            assert_eq!(answer(&listener, 0), Some(1));
        }
        asks(&mut listener, 0);
        assert!(listener.server.links.is_empty());
    }
}
