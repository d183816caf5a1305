//! Questions and answers: the channels of those who may ask, and what they are answered.
//!
//! Each gets one answer in turn, so that one that asks without end delays another by one file. What
//! may take long, a connection by name, is answered by a thread ([`Connecting`]), and its asker has
//! no other question until then. A channel that breaks the rules is closed; one that asks too often
//! waits.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nbdkit_api::endpoints::direct::{self, Address};
use nbdkit_api::paths::{self, Declared, Failure, Found};
use nbdkit_api::{endpoints, log, strerror};
use nbdkit_ipc::messages::broker::{MAX_REASON, OpenAccess};
use nbdkit_ipc::{Channel, FromBroker, Received, RecvError, ToBroker};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::connecting::{Connecting, Outcome, Question};
use super::rate::Rate;

/// Most channels at the same time. A worker whose channel is closed for another's asks for a new
/// one when it needs it.
pub(super) const MOST_CHANNELS: usize = 512;

/// A worker's channel.
struct Asker {
    /// Which client's worker; 0 for a template that serves all.
    connection: u64,
    link: Channel<FromBroker, ToBroker>,
    /// It alone has this number.
    id: u64,
    opening: Rate,
    connecting: Rate,
    /// When the last question came, as a number that grows.
    last: u64,
    /// A question that came before it may be answered.
    held: Option<ToBroker>,
    /// A thread answers its question.
    pending: bool,
    /// What the endpoint of its last first attempt has led to.
    found: Option<(u32, Vec<Address>)>,
    /// It may have a question.
    ready: bool,
    /// Until when it has to wait.
    waits: Option<Instant>,
    /// A line about its rate was logged.
    reported: bool,
}

/// The broker's channels to workers, and what it may answer them.
pub(crate) struct Desk {
    declared: Vec<Declared>,
    connecting: Option<Connecting>,
    askers: Vec<Asker>,
    questions: u64,
    /// Most channels.
    most: usize,
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
    pub(crate) fn new(declared: Vec<Declared>) -> Desk {
        Desk { declared, connecting: None, askers: Vec::new(), questions: 0, most: MOST_CHANNELS }
    }

    /// The same with endpoints.
    pub(crate) fn connecting(mut self, connecting: Connecting) -> Desk {
        self.connecting = Some(connecting);
        self
    }

    /// The same with fewer channels, where descriptors are few.
    pub(super) fn at_most(mut self, channels: usize) -> Desk {
        self.most = self.most.min(channels).max(1);
        self
    }

    /// One more channel.
    pub(crate) fn admit(&mut self, connection: u64, link: Channel<FromBroker, ToBroker>) {
        if self.askers.len() >= self.most {
            let oldest = self.askers.iter().enumerate().filter(|(_, it)| it.connection != 0);
            if let Some((index, _)) = oldest.min_by_key(|(_, it)| it.last) {
                let id = self.askers.remove(index).id;
                self.connecting.iter_mut().for_each(|it| it.forget(id));
            }
        }
        self.questions += 1;
        let now = Instant::now();
        self.askers.push(Asker {
            connection,
            link,
            id: self.questions,
            opening: Rate::of_opening(self.declared.len(), now),
            connecting: Rate::of_connecting(connection == 0, now),
            last: self.questions,
            held: None,
            pending: false,
            found: None,
            ready: false,
            waits: None,
            reported: false,
        });
    }

    /// Whether all channels are closed.
    pub(crate) fn is_empty(&self) -> bool {
        self.askers.is_empty()
    }

    /// What becomes readable when a thread has an answer.
    pub(crate) fn answered(&self) -> Option<BorrowedFd<'_>> {
        self.connecting.as_ref().map(AsFd::as_fd)
    }

    /// What to wait for: those who do not have to wait themselves, and how long for the first of
    /// the others. Of who has a question, only its end.
    pub(crate) fn poll(&self) -> (Vec<PollFd<'_>>, Option<Duration>) {
        let now = Instant::now();
        let wait = self.askers.iter().filter_map(|it| it.waits).min();
        // Rounded up, so as not to spin at the end.
        let wait = wait.map(|at| at.saturating_duration_since(now) + Duration::from_millis(1));
        let polled = self.askers.iter().filter(|it| it.waits.is_none());
        let fds = polled.map(|asker| {
            let events = if asker.pending { PollFlags::empty() } else { PollFlags::POLLIN };
            PollFd::new(asker.link.as_fd(), events)
        });
        (fds.collect(), wait)
    }

    /// Notes which of those that [`poll`](Self::poll) named have something.
    pub(crate) fn mark(&mut self, ready: &[bool]) {
        let now = Instant::now();
        let mut ready = ready.iter();
        for asker in &mut self.askers {
            match asker.waits {
                None => asker.ready |= ready.next() == Some(&true),
                Some(at) if at <= now => (asker.waits, asker.ready) = (None, true),
                Some(_) => {}
            }
        }
    }

    /// One answer for each who may have a question, and those that threads have found.
    pub(crate) fn answer(&mut self) {
        let mut connecting = self.connecting.take();
        if let Some(connecting) = &mut connecting {
            for (id, outcome) in connecting.finished() {
                self.hand_over(id, outcome);
            }
        }
        let mut askers = std::mem::take(&mut self.askers);
        askers.retain_mut(|asker| {
            if !asker.ready || asker.waits.is_some() {
                return true;
            }
            asker.ready = false;
            if asker.pending {
                let gone = has_gone(asker);
                connecting.iter_mut().filter(|_| gone).for_each(|it| it.forget(asker.id));
                return !gone;
            }
            match self.answer_one(asker, connecting.as_mut()) {
                Next::Idle => {}
                // Its next question is found by polling.
                Next::Again => asker.last = self.questions,
                Next::Pending => (asker.last, asker.pending) = (self.questions, true),
                Next::Waits(time) => asker.waits = Some(Instant::now() + time),
                Next::Gone => return false,
            }
            true
        });
        self.askers = askers;
        if let Some(connecting) = &mut connecting {
            for (id, outcome) in connecting.start() {
                self.hand_over(id, outcome);
            }
        }
        self.connecting = connecting;
    }

    /// Gives an asker what a thread has found for it.
    fn hand_over(&mut self, id: u64, outcome: Outcome) {
        let Some(at) = self.askers.iter().position(|it| it.id == id) else { return };
        let asker = &mut self.askers[at];
        asker.pending = false;
        if matches!(reply_with(asker, outcome), Next::Gone) {
            self.askers.remove(at);
        }
    }

    fn answer_one(&mut self, asker: &mut Asker, connecting: Option<&mut Connecting>) -> Next {
        let question = match asker.held.take() {
            Some(question) => question,
            None => match receive(asker) {
                Ok(question) => question,
                Err(next) => return next,
            },
        };
        self.questions += 1;
        match question {
            ToBroker::Open { path, name, access } => {
                asker.opening.count();
                let (answer, fd) = open(&self.declared, path, name.as_deref(), access);
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

/// Whether the other end of an asker's channel is closed.
fn has_gone(asker: &Asker) -> bool {
    let mut fds = [PollFd::new(asker.link.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
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
