//! Questions and answers: the channels of those who may ask, and what they are answered.
//!
//! Each gets one answer in turn, so that one that asks without end delays another by one file. A channel that breaks the
//! rules is closed; one that asks too often waits.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nbdkit_api::paths::{self, Declared, Failure, Found};
use nbdkit_ipc::broker::OpenAccess;
use nbdkit_ipc::{Channel, FromBroker, Received, RecvError, ToBroker};
use nix::errno::Errno;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::rate::Rate;

/// Most channels at the same time. A worker whose channel is closed for another's asks for a new one when it needs it.
pub(super) const MOST_CHANNELS: usize = 512;

/// A channel of somebody who may ask.
struct Asker {
    /// Which client's worker; 0 for a template that serves all.
    connection: u64,
    link: Channel<FromBroker, ToBroker>,
    rate: Rate,
    /// When the last question came, as a number that grows.
    last: u64,
    /// It may have a question.
    ready: bool,
    /// Until when it has to wait.
    waits: Option<Instant>,
    /// The log has said that it asks too often.
    reported: bool,
}

/// See the module's text.
pub(crate) struct Desk {
    declared: Vec<Declared>,
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
    /// It is closed.
    Gone,
}

impl Desk {
    pub(crate) fn new(declared: Vec<Declared>) -> Desk {
        Desk { declared, askers: Vec::new(), questions: 0, most: MOST_CHANNELS }
    }

    /// The same with fewer channels, where descriptors are few.
    pub(super) fn at_most(mut self, channels: usize) -> Desk {
        self.most = self.most.min(channels).max(1);
        self
    }

    /// Somebody more may ask.
    pub(crate) fn admit(&mut self, connection: u64, link: Channel<FromBroker, ToBroker>) {
        if self.askers.len() >= self.most {
            let oldest = self.askers.iter().enumerate().filter(|(_, it)| it.connection != 0);
            if let Some((index, _)) = oldest.min_by_key(|(_, it)| it.last) {
                self.askers.remove(index);
            }
        }
        self.questions += 1;
        self.askers.push(Asker {
            connection,
            link,
            rate: Rate::new(self.declared.len(), Instant::now()),
            last: self.questions,
            ready: false,
            waits: None,
            reported: false,
        });
    }

    /// Whether nobody can ask any more.
    pub(crate) fn is_empty(&self) -> bool {
        self.askers.is_empty()
    }

    /// What to wait for: those who do not have to wait themselves, and how long for the first of the others.
    pub(crate) fn poll(&self) -> (Vec<BorrowedFd<'_>>, Option<Duration>) {
        let now = Instant::now();
        let wait = self.askers.iter().filter_map(|it| it.waits).min();
        // Rounded up, so as not to spin at the end.
        let wait = wait.map(|at| at.saturating_duration_since(now) + Duration::from_millis(1));
        (
            self.askers.iter().filter(|it| it.waits.is_none()).map(|it| it.link.as_fd()).collect(),
            wait,
        )
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

    /// One answer for each who may have a question.
    pub(crate) fn answer(&mut self) {
        let mut askers = std::mem::take(&mut self.askers);
        askers.retain_mut(|asker| {
            if !asker.ready || asker.waits.is_some() {
                return true;
            }
            asker.ready = false;
            match self.answer_one(asker) {
                Next::Idle => {}
                // Its next question is found by polling.
                Next::Again => asker.last = self.questions,
                Next::Waits(time) => asker.waits = Some(Instant::now() + time),
                Next::Gone => return false,
            }
            true
        });
        self.askers = askers;
    }

    fn answer_one(&mut self, asker: &mut Asker) -> Next {
        if let Some(wait) = asker.rate.wait(Instant::now()) {
            if !std::mem::replace(&mut asker.reported, true) {
                nbdkit_api::log::error(&format!(
                    "connection {} has files opened too often and has to wait",
                    asker.connection
                ));
            }
            return Next::Waits(wait);
        }
        let (question, fds) = match asker.link.try_recv() {
            Ok(Received { message, fds, .. }) => (message, fds),
            Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => return Next::Idle,
            Err(RecvError::Closed | RecvError::Io(_)) => return Next::Gone,
            Err(RecvError::Violation(what)) => return broke_the_rules(asker, what),
        };
        if !fds.is_empty() {
            return broke_the_rules(asker, "descriptors where none belong");
        }
        asker.rate.count();
        self.questions += 1;
        let (answer, fd) = answer(&self.declared, question);
        let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
        match asker.link.try_send(&answer, &fds) {
            Ok(()) => Next::Again,
            // It does not take its answers, or has gone.
            Err(_) => Next::Gone,
        }
    }
}

fn broke_the_rules(asker: &Asker, what: &str) -> Next {
    nbdkit_api::log::error(&format!(
        "connection {} sent an invalid message to the broker, its channel is closed: {what}",
        asker.connection
    ));
    Next::Gone
}

/// What a question is answered, with the descriptor that belongs to it.
pub(crate) fn answer(declared: &[Declared], question: ToBroker) -> (FromBroker, Option<OwnedFd>) {
    let ToBroker::Open { path, name, access } = question;
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
            match paths::find(declared, name.as_deref(), access == OpenAccess::Write) {
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
