//! The broker, which opens paths for workers. The listener makes the channels from workers to it,
//! and takes its log lines; what the broker sends comes from a confined process, and is checked.
//!
//! Each template brings its broker. A worker asks for a channel when it needs one, and again when
//! its channel was closed; it gets one to the newest broker, and waits while the next broker is on
//! its way.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use mio::Interest;
use nbdkit_ipc::messages::broker::{FromBroker, ToBroker};
use nbdkit_ipc::phase::Phase;
use nbdkit_ipc::{Channel, FromBrokerLink, RecvError, ToBrokerLink, ToWorker};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::TemplateSlot;
use crate::log::{Quota, Speaker, syscalls};
use crate::serve::BROKER;
use crate::serve::context::Context;
use crate::serve::shutdown::Stage;
use crate::serve::workers::Workers;
use crate::serve::workers::kill::{OwnProcesses, signal_child};
use crate::template::Template;

/// How many messages are taken before the other sources get their turn.
const MESSAGES_AT_ONCE: usize = 64;

/// Error lines that a broker may cause: at once, and each second.
const LINES: (u32, u32) = (100, 10);

/// A broker that has not ended.
struct Broker {
    /// As the template has named it.
    pid: i32,
    link: Channel<ToBrokerLink, FromBrokerLink>,
    quota: Quota,
    /// Every client needs it.
    always: bool,
}

/// The broker of the slot's template, and the workers that wait for a channel to it.
#[derive(Default)]
pub(super) struct BrokerSlot {
    broker: Option<Broker>,
    /// The template that runs, or the one that is to be replaced, has had a broker.
    announced: bool,
    /// Connections whose workers wait for a channel.
    waiting: BTreeSet<u64>,
    unread: bool,
    /// The broker has ended, and the template that brought it has clients that would end with it.
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
            // If the broker has ended, the worker finds its channel closed, and asks again.
            Ok(()) | Err(_) => Ok(theirs.into_fd()),
        }
    }
}

impl BrokerSlot {
    /// The broker's process id, if there is one.
    pub(super) fn pid(&self) -> Option<Pid> {
        self.broker.as_ref().map(|broker| Pid::from_raw(broker.pid))
    }

    fn close(&mut self, context: &Context) -> Option<Broker> {
        let broker = self.broker.take()?;
        context.deregister(broker.link.as_fd().as_raw_fd());
        Some(broker)
    }
}

impl TemplateSlot {
    /// For a client that is sent to the template: its worker's end of a channel, if every client
    /// needs one. Without it the worker asks when it needs one.
    pub(in crate::serve) fn broker_channel_for(&self, connection: u64) -> Option<OwnedFd> {
        let broker = self.broker.broker.as_ref().filter(|broker| broker.always)?;
        broker.channel_for(connection).ok()
    }

    /// The broker's channel is ready.
    pub(in crate::serve) fn set_broker_ready(&mut self) {
        self.broker.unread = true;
    }

    /// Whether there may be more messages of the broker.
    pub(in crate::serve) fn is_broker_ready(&self) -> bool {
        self.broker.unread
    }

    /// A template that enters service has started its broker. The broker of the template before
    /// ends when its channel is closed.
    ///
    /// # Errors
    /// A protocol violation; which.
    pub(in crate::serve) fn install_broker(
        &mut self,
        pid: i32,
        always: bool,
        fds: Vec<OwnedFd>,
        stage: Stage,
        workers: &Workers,
        context: &Context,
    ) -> Result<(), &'static str> {
        let Ok([fd]) = <[_; 1]>::try_from(fds) else { return Err("a broker without a channel") };
        let known = self.template.as_ref().is_some_and(Template::has_broker);
        if known || pid <= 1 || workers.connections().of_pid(pid).is_some() {
            return Err("a broker that cannot be");
        }
        self.release_broker(stage, workers, context);
        let link: Channel<ToBrokerLink, FromBrokerLink> = Channel::from_fd(fd);
        let interest = Interest::READABLE | Interest::WRITABLE;
        context
            .register(link.as_fd().as_raw_fd(), BROKER, interest)
            .map_err(|_| "a broker's channel that cannot be polled")?;
        if let Some(template) = &mut self.template {
            template.set_broker();
        }
        let quota = Quota::new(LINES.0, LINES.1, Instant::now());
        self.broker.broker = Some(Broker { pid, link, quota, always });
        self.broker.announced = true;
        self.broker.lost = false;
        self.serve_broker_waiters(stage, workers, context);
        Ok(())
    }

    /// Closes the channel of the broker, which ends it.
    pub(in crate::serve) fn release_broker(
        &mut self,
        stage: Stage,
        workers: &Workers,
        context: &Context,
    ) {
        self.broker.close(context);
        if stage == Stage::Stopping {
            self.serve_broker_waiters(stage, workers, context);
        }
    }

    /// A worker asks for a channel to the broker.
    ///
    /// # Errors
    /// A protocol violation; which.
    pub(in crate::serve) fn request_broker(
        &mut self,
        number: u64,
        stage: Stage,
        workers: &mut Workers,
        context: &Context,
    ) -> Result<(), &'static str> {
        if !self.broker.announced {
            return Err("a broker where there is none");
        }
        workers.count_broker_request(number)?;
        if !self.connect_to_broker(number, stage, workers, context) {
            self.broker.waiting.insert(number);
        }
        Ok(())
    }

    /// A connection that has ended does not wait for a channel any more.
    pub(in crate::serve) fn forget_broker_request(&mut self, number: u64) {
        self.broker.waiting.remove(&number);
    }

    /// Sends a worker its channel, or none if there will be none. False if it has to wait.
    fn connect_to_broker(
        &self,
        number: u64,
        stage: Stage,
        workers: &Workers,
        context: &Context,
    ) -> bool {
        let Some(broker) = &self.broker.broker else {
            if self.is_broker_coming(stage) {
                return false;
            }
            workers.send(number, &ToWorker::Broker, &[]);
            return true;
        };
        match broker.channel_for(number) {
            Ok(theirs) => workers.send(number, &ToWorker::Broker, &[theirs.as_fd()]),
            // The broker's queue is full: the worker is served when it has room.
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => {
                let who = workers.name(number).unwrap_or_default();
                let text = format!("socketpair: {} ({who})", crate::errno_text(&error));
                workers.error(number, &text, context);
                workers.send(number, &ToWorker::Broker, &[]);
            }
        }
        true
    }

    /// Whether the next template is on its way, which brings the next broker.
    fn is_broker_coming(&self, stage: Stage) -> bool {
        let template = self.template.as_ref();
        stage == Stage::Serving
            && !self.stopped_accepting
            && !self.schedule.refuses_clients(Instant::now())
            && template.is_none_or(|it| it.phase() != Phase::Serving || it.is_explained())
    }

    /// Sends channels to the workers that wait for one, as far as the broker takes them.
    pub(in crate::serve) fn serve_broker_waiters(
        &mut self,
        stage: Stage,
        workers: &Workers,
        context: &Context,
    ) {
        let mut waiting = std::mem::take(&mut self.broker.waiting);
        waiting.retain(|number| {
            workers.has_link(*number) && !self.connect_to_broker(*number, stage, workers, context)
        });
        self.broker.waiting = waiting;
    }

    /// Takes some messages of the broker, and sends it the channels that wait for it.
    pub(in crate::serve) fn read_broker(
        &mut self,
        stage: Stage,
        workers: &Workers,
        own: &OwnProcesses,
        context: &Context,
    ) {
        if !std::mem::take(&mut self.broker.unread) {
            return;
        }
        self.serve_broker_waiters(stage, workers, context);
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(broker) = &mut self.broker.broker else { return };
            let violation = match broker.link.try_recv() {
                Ok(received) if received.fds.is_empty() && !received.lost => {
                    match handle_message(broker, received.message, workers, context) {
                        Ok(()) => continue,
                        Err(what) => what.to_owned(),
                    }
                }
                Ok(_) => "descriptors where none belong".to_owned(),
                Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => return,
                Err(RecvError::Closed) => return self.broker_ended(stage, workers, context),
                Err(error) => error.to_string(),
            };
            context.log().error(&format!(
                "protocol violation by broker {}: {violation}; killed",
                broker.pid
            ));
            // Unless the template has named another process: see `signal_child`.
            if workers.connections().of_pid(broker.pid).is_none() {
                let own = OwnProcesses { broker: None, ..*own };
                let _ = signal_child(broker.pid, None, &own, Some(Signal::SIGKILL));
            }
            return self.broker_ended(stage, workers, context);
        }
        self.broker.unread = true;
    }

    /// A broker has ended whose channel the listener had not closed: the next template brings the
    /// next broker. Clients that are there do not need it any more, usually, and stay; a template
    /// that serves all of them is replaced when the last has left.
    fn broker_ended(&mut self, stage: Stage, workers: &Workers, context: &Context) {
        let Some(broker) = self.broker.close(context) else { return };
        if self.template.is_none() {
            return self.serve_broker_waiters(stage, workers, context);
        }
        if stage != Stage::Serving && stage != Stage::Entering {
            return;
        }
        let replaceable = self.configured.as_ref().is_some_and(|it| it.replaceable)
            && context.plan().spec.repeatable();
        let then = if !replaceable {
            "files that were replaced, and those of a directory, cannot be opened any more"
        } else if self.is_shared() && !workers.is_empty() {
            "the template is replaced when its clients have gone"
        } else {
            "the template is replaced"
        };
        context.log().error(&format!("the broker (pid {}) has ended: {then}", broker.pid));
        self.broker.lost = replaceable;
        self.replace_if_broker_lost(stage, workers);
        self.serve_broker_waiters(stage, workers, context);
    }

    /// Kills a template without a broker, so that one with a broker takes its place.
    pub(in crate::serve) fn replace_if_broker_lost(&mut self, stage: Stage, workers: &Workers) {
        if !self.broker.lost || (self.is_shared() && !workers.is_empty()) {
            return;
        }
        if self.is_serving() && stage == Stage::Serving {
            self.kill();
            self.broker.lost = false;
        }
    }
}

/// # Errors
/// A protocol violation; which.
fn handle_message(
    broker: &mut Broker,
    message: FromBrokerLink,
    workers: &Workers,
    context: &Context,
) -> Result<(), &'static str> {
    match message {
        FromBrokerLink::Log(record) if record.is_plausible() => {
            let connection = workers.connections().get(record.connection);
            let client = connection.map(|it| it.subject(false));
            let speaker = Speaker { client, ..Speaker::default() };
            context.log().record(&record, speaker, &mut broker.quota);
        }
        FromBrokerLink::Log(_) => return Err("a log record that is too long"),
        FromBrokerLink::Refused { syscall } => context.log().error(&format!(
            "the sandbox refused system call {} to the broker (pid {}, stack {})",
            syscalls::describe(syscall),
            broker.pid,
            context.plan().spec.stack()
        )),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::fuzz::Listener;
    use nbdkit_ipc::messages::Hello;
    use nbdkit_ipc::{FromTemplate, FromWorker, StackId};

    type BrokersEnd = Channel<FromBrokerLink, ToBrokerLink>;

    /// Sends what a template sends before it is ready, with a broker.
    fn enters_service(listener: &Listener) -> BrokersEnd {
        let template = &listener.template;
        let configured = listener.server.slot.configured.clone().unwrap();
        let (listeners, broker) = Channel::<ToBrokerLink, FromBrokerLink>::pair().unwrap();
        template.send(&FromTemplate::Hello(Hello::ours()), &[]).unwrap();
        template.send(&FromTemplate::Configured(configured), &[]).unwrap();
        template
            .send(
                &FromTemplate::Broker { stack: StackId::ONLY, pid: i32::MAX - 1, always: true },
                &[listeners.as_fd()],
            )
            .unwrap();
        broker
    }

    fn asks(listener: &mut Listener, worker: usize) {
        listener.workers[worker].send(&FromWorker::Broker { stack: StackId::ONLY }, &[]).unwrap();
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
        assert_eq!(listener.server.workers.links().count(), 0, "it is killed");
    }

    #[test]
    fn a_worker_that_asks_while_there_is_no_broker_gets_a_channel_to_the_next() {
        let mut listener = Listener::new(2, false).unwrap();
        listener.server.slot.broker.announced = true;
        asks(&mut listener, 0);
        assert_eq!(answer(&listener, 0), None);
        let broker = enters_service(&listener);
        listener.turn();
        assert_eq!(answer(&listener, 0), Some(1));
        let received = broker.try_recv().unwrap();
        assert_eq!(received.message, ToBrokerLink::Channel { connection: 1 });
        assert_eq!(received.fds.len(), 1);
        asks(&mut listener, 1);
        assert_eq!(answer(&listener, 1), Some(1));
    }

    #[test]
    fn a_second_broker_of_the_same_template_is_a_violation() {
        let mut listener = Listener::new(1, false).unwrap();
        let _broker = enters_service(&listener);
        let (another, _end) = Channel::<ToBrokerLink, FromBrokerLink>::pair().unwrap();
        let message =
            FromTemplate::Broker { stack: StackId::ONLY, pid: i32::MAX - 2, always: false };
        listener.template.send(&message, &[another.as_fd()]).unwrap();
        listener.turn();
        assert!(listener.server.slot.template.as_ref().is_some_and(Template::is_explained));
    }

    #[test]
    fn no_worker_waits_for_a_broker_while_the_server_stops() {
        let mut listener = Listener::new(1, false).unwrap();
        listener.server.slot.broker.announced = true;
        asks(&mut listener, 0);
        listener.server.stop(0);
        assert_eq!(answer(&listener, 0), Some(0));
        let next = listener.workers[0].try_recv().unwrap().message;
        assert_eq!(next, ToWorker::Quiesce);
    }

    #[test]
    fn a_worker_that_asks_more_often_than_it_can_need_is_killed() {
        let mut listener = Listener::new(1, false).unwrap();
        let _broker = enters_service(&listener);
        listener.turn();
        for _ in 0..nbdkit_ipc::phase::Brokers::MOST {
            asks(&mut listener, 0);
            assert_eq!(answer(&listener, 0), Some(1));
        }
        asks(&mut listener, 0);
        assert_eq!(listener.server.workers.links().count(), 0);
    }
}
