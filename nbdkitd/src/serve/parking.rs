//! Clients that are idle and have given up their workers: *parked*. The listener has their sockets,
//! and has the template fork a worker for one as soon as its socket is readable. It reads nothing
//! from it.
//!
//! A worker asks for it (`Park`) and ends. Only then is the client parked here, if nothing speaks
//! against it. What the next worker needs to know is in the message, and means nothing to the
//! listener.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use mio::{Interest, Token};
use nbdkit_ipc::messages::{ParkedState, Peer, Serve, Totals};
use nbdkit_ipc::{StackId, WorkerExit};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::context::Context;
use super::slot::TemplateSlot;
use super::workers::{WorkerLink, Workers};
use super::{FIRST_WORKER, Server};
use crate::connections::Connection;
use crate::parking::{Parking, Patience};
use crate::system_error;

/// How many clients that have come back are sent to the template before others get their turn.
const RESUMED_AT_ONCE: usize = 16;

impl Workers {
    /// A worker asks for its client to be parked.
    ///
    /// # Errors
    /// It was not told that it may, or has not waited for as long as it was told.
    pub(super) fn ask_to_park(
        &mut self,
        number: u64,
        state: ParkedState,
        totals: Totals,
    ) -> Result<(), &'static str> {
        let Some(connection) = self.connection_mut(number) else { return Ok(()) };
        let Some(patience) = connection.patience else {
            return Err("a client to be parked where none is");
        };
        if connection.worker_since.elapsed() < patience.time() {
            return Err("a client to be parked that cannot have been idle");
        }
        connection.parking = Parking::Asked(state);
        // All that there will be, unless there is another worker.
        let earlier = connection.earlier.and(totals);
        (connection.earlier, connection.totals) = (earlier, Some(Totals::default()));
        Ok(())
    }

    /// Parks a client whose worker has ended: its socket is polled from now on. False if it cannot
    /// be, or its worker has not asked for it.
    fn park(&mut self, number: u64, now: Instant, context: &Context) -> bool {
        self.close_link(number, context);
        let Some(connection) = self.connection_mut(number) else { return false };
        if !matches!(connection.parking, Parking::Asked(_))
            || connection.kill_requested
            || connection.has_violated
        {
            return false;
        }
        let Some(client) = &connection.client else { return false };
        let token = Token(FIRST_WORKER + number as usize);
        if context.register(client.as_raw_fd(), token, Interest::READABLE).is_err() {
            return false;
        }
        connection.parking.advance(|state| Parking::Parked(state, now));
        connection.without_worker();
        context.log().debug(|| format!("parked: {connection}"));
        true
    }

    /// Whether a parked client has sent something, and is there.
    fn is_woken(&self, number: u64) -> bool {
        let Some(connection) = self.connections().get(number) else { return false };
        let (Parking::Parked(..), Some(client)) = (&connection.parking, &connection.client) else {
            return false;
        };
        let events = PollFlags::POLLIN | PollFlags::from_bits_retain(libc::POLLRDHUP);
        let mut fds = [PollFd::new(client.as_fd(), events)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1))
            && fds[0].revents() == Some(PollFlags::POLLIN)
    }

    /// A parked client has sent something, or is gone. False if it is not parked.
    fn came_back(&mut self, number: u64, now: Instant, context: &Context) -> bool {
        let Some(connection) = self.connection_mut(number) else { return false };
        let Parking::Parked(_, since) = connection.parking else { return false };
        if let Some(client) = &connection.client {
            context.deregister(client.as_raw_fd());
        }
        if let Some(patience) = &mut connection.patience {
            patience.came_back(now.saturating_duration_since(since));
        }
        connection.parking.advance(Parking::Back);
        true
    }

    /// Sends the template a client that has come back. False if the template does not take it now.
    ///
    /// # Errors
    /// What has failed for lack of descriptors or memory.
    fn resume(
        &mut self,
        number: u64,
        slot: &mut TemplateSlot,
        context: &Context,
    ) -> Result<bool, (&'static str, Errno)> {
        let Some(connection) = self.connection_mut(number) else { return Ok(true) };
        let (Parking::Back(state), Some(client)) = (&connection.parking, &connection.client) else {
            return Ok(true);
        };
        let serve = Serve {
            connection: number,
            stack: StackId::ONLY,
            peer: Peer::clone(&connection.peer),
            broker: false,
            park_after: connection.patience.map(Patience::time),
            parked: Some(state.clone()),
        };
        let (ours, theirs) =
            WorkerLink::pair().map_err(|error| ("socketpair", system_error::number(&error)))?;
        let theirs = theirs.into_fd();
        if !slot.take(&serve, &[theirs.as_fd(), client.as_fd()])? {
            return Ok(false);
        }
        connection.parking.advance(Parking::Sent);
        connection.worker_since = Instant::now();
        self.add_link(number, ours, context);
        Ok(true)
    }

    /// The template has ended that a client was sent to which had come back, before it forked a
    /// worker: the client is sent to the next. False if it is none such.
    fn send_again(&mut self, number: u64, context: &Context) -> bool {
        let Some(connection) = self.connection_mut(number) else { return false };
        let Parking::Sent(_) = connection.parking else { return false };
        connection.parking.advance(Parking::Back);
        connection.without_worker();
        self.close_link(number, context);
        true
    }

    /// Clients without a worker, all or those that have come back.
    fn parked(&self, all: bool) -> Vec<u64> {
        let wanted = |it: &Connection| match it.parking {
            Parking::Back(_) => true,
            Parking::Parked(..) => all,
            Parking::No | Parking::Asked(_) | Parking::Sent(_) => false,
        };
        let connections = self.connections().iter().filter(|(_, it)| wanted(it));
        connections.map(|(number, _)| number).collect()
    }
}

impl Server {
    /// A connection is over, or its client is parked, or has to be sent to another template.
    /// Returns whether it goes on.
    pub(super) fn goes_on_parked(&mut self, number: u64, exit: Option<WorkerExit>) -> bool {
        if !self.shutdown.is_serving() || self.slot.has_stopped_accepting() {
            return false;
        }
        // Nobody says so if the template that reaped the worker has ended since. That it asked is
        // the last that a worker does with its client.
        let may_be_parked = matches!(exit, Some(WorkerExit::Parked) | None);
        if may_be_parked && self.workers.park(number, Instant::now(), &self.context) {
            return true;
        }
        let again = exit.is_none()
            && self.slot.can_requeue(exit)
            && self.workers.send_again(number, &self.context);
        if again {
            self.acceptor.came_back(number);
        }
        again
    }

    /// What is readable is the socket of a parked client. False if it is not.
    pub(super) fn take_parked(&mut self, number: u64) -> bool {
        let back = self.workers.came_back(number, Instant::now(), &self.context);
        if back {
            self.acceptor.came_back(number);
        }
        back
    }

    /// Sends clients that have come back to the template.
    pub(super) fn resume_parked(&mut self, now: Instant) {
        for _ in 0..RESUMED_AT_ONCE {
            let Some(number) = self.acceptor.next_back(self.state()) else { return };
            match self.workers.resume(number, &mut self.slot, &self.context) {
                Ok(true) => self.acceptor.was_resumed(),
                Ok(false) => return,
                Err((call, errno)) => return self.back_off(call, errno, now),
            }
        }
    }

    /// The server stops: a parked client that has just sent something gets a worker all the same,
    /// which answers that. The kernel's client would wait for the answer for ever.
    pub(super) fn serve_woken(&mut self) {
        for number in self.workers.parked(true) {
            if self.workers.is_woken(number) {
                self.workers.came_back(number, Instant::now(), &self.context);
            }
        }
        for number in self.workers.parked(false) {
            if !matches!(self.workers.resume(number, &mut self.slot, &self.context), Ok(true)) {
                return;
            }
        }
    }

    /// Ends the connections of parked clients, since no worker will be made any more; or only of
    /// those that have come back, and wait for one for too long.
    pub(super) fn end_parked(&mut self, all: bool) {
        for number in self.workers.parked(all) {
            let exit = self.shutdown.is_stopping().then_some(WorkerExit::Clean);
            if exit.is_none()
                && let Some(connection) = self.workers.connections().get(number)
            {
                let text =
                    format!("{connection} is disconnected: there is no template to serve it");
                self.workers.error(number, &text, &self.context);
            }
            let _ = self.connection_ended(number, exit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::fuzz::Listener;
    use nbdkit_ipc::{FromTemplate, FromWorker, ToTemplate};
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    /// A listener with one client in transmission, whose other end is returned.
    fn serving(patience: Option<Patience>) -> (Listener, UnixStream) {
        let mut listener = Listener::new(1, false).unwrap();
        listener.template_serves();
        let (client, theirs) = UnixStream::pair().unwrap();
        let connection = listener.server.workers.connection_mut(1).unwrap();
        (connection.client, connection.patience) = (Some(theirs.into()), patience);
        let (stack, export, tls_dn) = (StackId::ONLY, "x".to_owned(), None);
        listener.workers[0].send(&FromWorker::Serving { stack, export, tls_dn }, &[]).unwrap();
        listener.turn();
        (listener, client)
    }

    fn park(listener: &mut Listener, index: usize) {
        std::thread::sleep(8 * BASE);
        let state = ParkedState::of(&7_u8).unwrap();
        let totals = Totals { read: 1, written: 2 };
        listener.workers[index].send(&FromWorker::Park { state, totals }, &[]).unwrap();
        let exit = WorkerExit::Parked;
        listener.template.send(&FromTemplate::Exited { connection: 1, exit }, &[]).unwrap();
        listener.turn();
    }

    fn parking(listener: &Listener) -> Option<&Parking> {
        listener.server.workers.connections().get(1).map(|it| &it.parking)
    }

    const BASE: Duration = Duration::from_millis(5);
    const PATIENCE: Patience = Patience::new(BASE);

    #[test]
    fn a_parked_client_gets_a_worker_when_it_sends_something() {
        let (mut listener, mut client) = serving(Some(PATIENCE));
        park(&mut listener, 0);
        assert!(matches!(parking(&listener), Some(Parking::Parked(..))));
        client.write_all(b"x").unwrap();
        assert!(listener.server.take_parked(1) && !listener.server.take_parked(1));
        listener.server.resume_parked(Instant::now());
        let received = listener.received(|message| matches!(message, ToTemplate::Serve(_)));
        let (ToTemplate::Serve(serve), mut fds) = received else { panic!("no client") };
        assert_eq!((serve.connection, fds.len()), (1, 2));
        assert_eq!(serve.parked.unwrap().decode::<u8>(), Some(7));
        assert_eq!(serve.park_after, Some(2 * BASE));
        let mut byte = [0];
        std::io::Read::read_exact(&mut UnixStream::from(fds.pop().unwrap()), &mut byte).unwrap();
        assert_eq!(byte, *b"x", "the listener has read nothing");
        // Its worker is in transmission: it does not report that again, and may park again.
        let link = nbdkit_ipc::Channel::from_fd(fds.pop().unwrap());
        listener.workers.push(link);
        let forked = FromTemplate::Forked { connection: 1, pid: 4_000_000 };
        listener.template.send(&forked, &[]).unwrap();
        listener.turn();
        assert!(matches!(parking(&listener), Some(Parking::No)));
        park(&mut listener, 1);
        assert!(matches!(parking(&listener), Some(Parking::Parked(..))));
        let connection = listener.server.workers.connections().get(1).unwrap();
        assert_eq!(connection.earlier, Totals { read: 2, written: 4 });
    }

    #[test]
    fn a_client_is_parked_only_if_its_worker_was_told_so_and_has_asked_for_it() {
        let (mut listener, _client) = serving(None);
        park(&mut listener, 0);
        assert!(parking(&listener).is_none());
        let (mut listener, _client) = serving(Some(PATIENCE));
        let exit = WorkerExit::Parked;
        listener.template.send(&FromTemplate::Exited { connection: 1, exit }, &[]).unwrap();
        listener.turn();
        assert!(parking(&listener).is_none(), "it has not asked");
        let (mut listener, _client) = serving(Some(PATIENCE));
        listener.server.kill_worker(1);
        park(&mut listener, 0);
        assert!(parking(&listener).is_none(), "it was to be killed");
        let (mut listener, _client) = serving(Some(Patience::new(Duration::from_secs(600))));
        park(&mut listener, 0);
        assert!(parking(&listener).is_none(), "it has not been idle for as long");
    }

    #[test]
    fn a_client_is_parked_whose_template_ends_before_it_has_reported_that_of_the_worker() {
        let (mut listener, _client) = serving(Some(PATIENCE));
        std::thread::sleep(8 * BASE);
        let (state, totals) = (ParkedState::of(&7_u8).unwrap(), Totals::default());
        let worker = listener.workers.remove(0);
        worker.send(&FromWorker::Park { state, totals }, &[]).unwrap();
        drop(worker);
        listener.template_ends();
        // A program that another test starts has the other end, too, until it is executed.
        for _ in 0..2000 {
            listener.turn();
            if matches!(parking(&listener), Some(Parking::Parked(..))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("it is not parked");
    }

    #[test]
    fn a_parked_client_outlives_the_template_and_ends_with_the_server() {
        let (mut listener, mut client) = serving(Some(PATIENCE));
        park(&mut listener, 0);
        listener.template_ends();
        assert!(matches!(parking(&listener), Some(Parking::Parked(..))));
        client.write_all(b"x").unwrap();
        assert!(listener.server.take_parked(1));
        listener.server.resume_parked(Instant::now());
        assert!(matches!(parking(&listener), Some(Parking::Back(_))), "there is no template");
        listener.server.stop(0);
        assert!(parking(&listener).is_none());
    }

    #[test]
    fn a_parked_client_that_has_just_sent_something_is_answered_when_the_server_stops() {
        for sends in [false, true] {
            let (mut listener, mut client) = serving(Some(PATIENCE));
            park(&mut listener, 0);
            if sends {
                client.write_all(b"x").unwrap();
            }
            listener.server.stop(0);
            let serves = |message: &ToTemplate| matches!(message, ToTemplate::Serve(_));
            let ends = |message: &ToTemplate| matches!(message, ToTemplate::Quiesce);
            let (message, fds) = listener.received(|message| serves(message) || ends(message));
            assert_eq!((serves(&message), fds.len()), if sends { (true, 2) } else { (false, 0) });
            assert_eq!(listener.server.workers.connections().get(1).is_some(), sends);
            if sends {
                let link = nbdkit_ipc::Channel::<FromWorker, nbdkit_ipc::ToWorker>::from_fd(
                    fds.into_iter().next().unwrap(),
                );
                let received = link.recv().unwrap().message;
                assert_eq!(received, nbdkit_ipc::ToWorker::Quiesce, "the worker will find it");
            }
        }
    }

    #[test]
    fn a_template_that_takes_no_client_now_is_waited_for() {
        let (mut listener, _client) = serving(Some(PATIENCE));
        park(&mut listener, 0);
        listener.server.take_parked(1);
        let now = Instant::now();
        assert_eq!(listener.server.timeout(now), Some(Duration::ZERO));
        let serve = Serve {
            connection: 9,
            stack: StackId::ONLY,
            peer: Peer::default(),
            broker: false,
            park_after: None,
            parked: None,
        };
        while listener.server.slot.take(&serve, &[]) == Ok(true) {}
        listener.server.resume_parked(now);
        assert!(matches!(parking(&listener), Some(Parking::Back(_))));
        assert_ne!(listener.server.timeout(now), Some(Duration::ZERO));
    }

    #[test]
    fn a_client_that_no_worker_was_forked_for_is_sent_again() {
        let (mut listener, _client) = serving(Some(PATIENCE));
        park(&mut listener, 0);
        listener.server.take_parked(1);
        listener.server.resume_parked(Instant::now());
        assert!(matches!(parking(&listener), Some(Parking::Sent(_))));
        drop(listener.received(|message| matches!(message, ToTemplate::Serve(_))));
        listener.template_ends();
        // Its channel is closed: no worker has it.
        listener.turn();
        assert!(matches!(parking(&listener), Some(Parking::Back(_))));
        assert!(!listener.server.workers.has_link(1));
    }
}
