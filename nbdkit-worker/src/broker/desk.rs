//! Questions and answers: the channels of those who may ask, and what they are answered.
//!
//! Each gets one answer in turn, so that one that asks without end delays another by one file. What
//! may take long, a connection by name, is answered by a thread ([`Connecting`]), and its asker has
//! no other question until then. A channel that breaks the rules is closed; one that asks too often
//! waits.

#![forbid(unsafe_code)]

mod channels;

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nbdkit_api::endpoints::direct;
use nbdkit_api::paths::{self, Declared, Failure, Found};
use nbdkit_api::{endpoints, log, strerror};
use nbdkit_ipc::messages::broker::{MAX_REASON, OpenAccess};
use nbdkit_ipc::{Channel, FromBroker, Received, RecvError, ToBroker};
use nix::errno::Errno;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::connecting::{Connecting, Outcome, Question};
use super::rate::Rate;
use channels::{Asker, Awaits, Channels, LISTENER, TEMPLATE, THREADS};

/// Most channels at the same time. A worker whose channel is closed for another's asks for a new
/// one when it needs it.
pub(super) const MOST_CHANNELS: usize = 512;

/// The broker's channels to workers, and what it may answer them.
pub(crate) struct Desk {
    channels: Channels,
    /// Those that may have a question.
    ready: Vec<u64>,
    declared: Vec<Declared>,
    connecting: Option<Connecting>,
    /// Threads have answers.
    found: bool,
    /// Most channels.
    most: usize,
}

/// Who has woken the broker, besides those who ask.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Woken {
    pub(super) by_listener: bool,
    pub(super) by_template: bool,
}

/// What becomes of a channel.
enum Next {
    /// It has no question.
    Idle,
    /// It may have another.
    Again,
    /// It has to wait.
    Waits(Duration),
    /// A thread answers.
    Pending,
    /// It is closed.
    Gone,
}

impl Desk {
    /// Without channels and endpoints.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub(crate) fn new(declared: Vec<Declared>) -> nix::Result<Desk> {
        Ok(Desk {
            channels: Channels::new()?,
            ready: Vec::new(),
            declared,
            connecting: None,
            found: false,
            most: MOST_CHANNELS,
        })
    }

    /// The same with endpoints.
    ///
    /// # Errors
    /// epoll_ctl(2)'s.
    pub(crate) fn connecting(mut self, connecting: Connecting) -> nix::Result<Desk> {
        self.channels.watch(&connecting, THREADS)?;
        self.connecting = Some(connecting);
        Ok(self)
    }

    /// The same with fewer channels, where descriptors are few.
    pub(super) fn at_most(mut self, channels: usize) -> Desk {
        self.most = self.most.min(channels).max(1);
        self
    }

    /// Has [`wait`](Self::wait) end when one of these is readable.
    ///
    /// # Errors
    /// epoll_ctl(2)'s.
    pub(super) fn watch(&self, listener: impl AsFd, template: impl AsFd) -> nix::Result<()> {
        self.channels.watch(listener, LISTENER)?;
        self.channels.watch(template, TEMPLATE)
    }

    /// One more channel.
    pub(crate) fn admit(&mut self, connection: u64, link: Channel<FromBroker, ToBroker>) {
        if self.channels.len() >= self.most
            && let Some(oldest) = self.channels.oldest()
        {
            self.close(oldest);
        }
        let now = Instant::now();
        let opening = Rate::of_opening(self.declared.len(), now);
        let connecting = Rate::of_connecting(connection == 0, now);
        if let Err(errno) = self.channels.insert(connection, link, opening, connecting) {
            let errno = strerror(errno);
            log::error(&format!("broker: epoll_ctl: {errno} (connection {connection})"));
        }
    }

    /// Whether all channels are closed.
    pub(crate) fn is_empty(&self) -> bool {
        self.channels.len() == 0
    }

    /// Waits, at most so long, until somebody may have a question, a thread has an answer, or what
    /// is watched is readable.
    ///
    /// # Errors
    /// epoll_wait(2)'s, but not EINTR.
    pub(crate) fn wait(&mut self, most: Option<Duration>) -> nix::Result<Woken> {
        let events = self.channels.wait(most)?;
        self.ready = events.channels;
        self.found |= events.threads;
        Ok(Woken { by_listener: events.listener, by_template: events.template })
    }

    /// One answer for each who may have a question, and those that threads have found.
    pub(crate) fn answer(&mut self) {
        if std::mem::take(&mut self.found) {
            let finished = self.connecting.as_mut().map(Connecting::finished);
            for (id, outcome) in finished.into_iter().flatten() {
                self.hand_over(id, outcome);
            }
        }
        for id in std::mem::take(&mut self.ready) {
            self.take_turn(id);
        }
        let refused = self.connecting.as_mut().map(Connecting::start);
        for (id, outcome) in refused.into_iter().flatten() {
            self.hand_over(id, outcome);
        }
    }

    /// Answers one question of a channel, if there is one.
    fn take_turn(&mut self, id: u64) {
        let Some(asker) = self.channels.get_mut(id) else { return };
        if !asker.may_ask() {
            return self.close(id);
        }
        match answer_one(asker, &self.declared, self.connecting.as_mut()) {
            Next::Idle => {}
            // Its next question is found by waiting.
            Next::Again => self.channels.has_asked(id),
            Next::Pending => {
                self.channels.has_asked(id);
                self.channels.set_awaits(id, Awaits::Thread);
            }
            Next::Waits(time) => {
                self.channels.set_awaits(id, Awaits::Time(Instant::now() + time));
            }
            Next::Gone => self.close(id),
        }
    }

    /// Closes a channel. What a thread finds for it is dropped.
    fn close(&mut self, id: u64) {
        let asker = self.channels.remove(id);
        if asker.is_some_and(|asker| !asker.may_ask()) {
            self.connecting.iter_mut().for_each(|it| it.forget(id));
        }
    }

    /// Gives an asker what a thread has found for it.
    fn hand_over(&mut self, id: u64, outcome: Outcome) {
        let Some(asker) = self.channels.get_mut(id) else { return };
        if matches!(reply_with(asker, outcome), Next::Gone) {
            self.close(id);
        } else {
            self.channels.set_awaits(id, Awaits::Question);
        }
    }
}

/// Answers an asker's next question.
fn answer_one(
    asker: &mut Asker,
    declared: &[Declared],
    connecting: Option<&mut Connecting>,
) -> Next {
    let question = match asker.held.take() {
        Some(question) => question,
        None => match receive(asker) {
            Ok(question) => question,
            Err(next) => return next,
        },
    };
    match question {
        ToBroker::Open { path, name, access } => {
            asker.opening.count();
            let (answer, fd) = open(declared, path, name.as_deref(), access);
            reply(asker, &answer, fd.as_ref())
        }
        ToBroker::Connect { endpoint, attempt } => {
            if let Some(wait) = asker.connecting.wait(Instant::now()) {
                asker.held = Some(question);
                return has_to_wait(asker, wait, "connects");
            }
            asker.connecting.count();
            connect(asker, connecting, endpoint, attempt)
        }
    }
}

/// An asker's next question, or what becomes of its channel without one.
fn receive(asker: &mut Asker) -> Result<ToBroker, Next> {
    if let Some(wait) = asker.opening.wait(Instant::now()) {
        return Err(has_to_wait(asker, wait, "has files opened"));
    }
    match asker.link.try_recv() {
        Ok(Received { message, fds, .. }) if fds.is_empty() => Ok(message),
        Ok(_) => Err(broke_the_rules(asker, "descriptors where none belong")),
        Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => Err(Next::Idle),
        Err(RecvError::Closed | RecvError::Io(_)) => Err(Next::Gone),
        Err(RecvError::Violation(what)) => Err(broke_the_rules(asker, what)),
    }
}

fn has_to_wait(asker: &mut Asker, wait: Duration, does: &str) -> Next {
    if !std::mem::replace(&mut asker.reported, true) {
        let connection = asker.connection;
        let _about = log::enter(log::Speaker { layer: None, connection });
        log::error(&format!("connection {connection} {does} too often and has to wait"));
    }
    Next::Waits(wait)
}

/// Begins a connection, or has a thread do it.
fn connect(
    asker: &mut Asker,
    connecting: Option<&mut Connecting>,
    number: u32,
    attempt: u32,
) -> Next {
    let endpoint = connecting.as_ref().and_then(|it| it.endpoint(number)).cloned();
    let (Some(connecting), Some(endpoint)) = (connecting, endpoint) else {
        return reply(asker, &refused(Failure::Os(Errno::EACCES)).0, None);
    };
    let known = asker.found.take().filter(|(its, _)| *its == number && attempt > 0);
    let question = Question {
        asker: asker.id,
        connection: asker.connection,
        number,
        endpoint,
        attempt,
        known: known.map(|(_, addresses)| addresses),
    };
    if question.known.is_none() && direct::may_wait(&question.endpoint) {
        connecting.ask(question);
        return Next::Pending;
    }
    let outcome = connecting.answer(question);
    reply_with(asker, outcome)
}

fn reply_with(asker: &mut Asker, outcome: Outcome) -> Next {
    asker.found = Some((outcome.number, outcome.addresses));
    match outcome.begun {
        Ok(endpoints::Begun { fd, next }) => {
            reply(asker, &FromBroker::Connecting { next }, Some(&fd))
        }
        Err(endpoints::Failure::Os(errno)) => {
            nbdkit_api::debug!("connection {}: connect: {}", asker.connection, strerror(errno));
            reply(asker, &FromBroker::Refused { errno: errno as i32 }, None)
        }
        Err(endpoints::Failure::NotResolved(mut reason)) => {
            nbdkit_api::debug!("connection {}: getaddrinfo: {reason}", asker.connection);
            reason.truncate(reason.floor_char_boundary(MAX_REASON));
            reply(asker, &FromBroker::NotResolved { reason }, None)
        }
    }
}

fn reply(asker: &Asker, answer: &FromBroker, fd: Option<&OwnedFd>) -> Next {
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().map(AsFd::as_fd).collect();
    match asker.link.try_send(answer, &fds) {
        Ok(()) => Next::Again,
        // It does not take its answers, or has gone.
        Err(_) => Next::Gone,
    }
}

fn broke_the_rules(asker: &Asker, what: &str) -> Next {
    let _about = log::enter(log::Speaker { layer: None, connection: asker.connection });
    log::error(&format!(
        "connection {} sent an invalid message to the broker, its channel is closed: {what}",
        asker.connection
    ));
    Next::Gone
}

/// What opening is answered, with the descriptor that belongs to it.
fn open(
    declared: &[Declared],
    path: u32,
    name: Option<&OsStr>,
    access: OpenAccess,
) -> (FromBroker, Option<OwnedFd>) {
    let Some(declared) = usize::try_from(path).ok().and_then(|path| declared.get(path)) else {
        return refused(Failure::Os(Errno::EACCES));
    };
    match access {
        OpenAccess::List if name.is_some() => refused(Failure::Os(Errno::EACCES)),
        OpenAccess::List => match paths::find_directory(declared) {
            Ok(fd) => (FromBroker::Opened { writable: false, block_device: false }, Some(fd)),
            Err(why) => refused(why),
        },
        OpenAccess::Read | OpenAccess::Write => {
            match paths::find(declared, name, access == OpenAccess::Write) {
                // A link to the memory of this very process, say.
                Ok(found) if is_of_proc(&found) => refused(Failure::Os(Errno::EACCES)),
                Ok(Found { file, writable, is_block_device }) => (
                    FromBroker::Opened { writable, block_device: is_block_device },
                    Some(file.into()),
                ),
                Err(why) => refused(why),
            }
        }
    }
}

fn is_of_proc(found: &Found) -> bool {
    !found.is_block_device
        && fstatfs(&found.file).map_or(true, |it| it.filesystem_type() == PROC_SUPER_MAGIC)
}

fn refused(why: Failure) -> (FromBroker, Option<OwnedFd>) {
    let answer = match why {
        Failure::Os(errno) => FromBroker::Refused { errno: errno as i32 },
        Failure::WrongType => FromBroker::WrongType,
    };
    (answer, None)
}

#[cfg(test)]
mod tests;
