//! Asking the broker: how a process that may not open paths has them opened ([`opening`]), and one
//! that may not make sockets has them connected ([`connecting`]).
//!
//! A worker gets its channel from the listener, which makes it: with its client, where every client
//! needs one, or when it asks for the first time; a template that serves all clients has some from
//! the beginning. Answers are trusted as the listener's are.

#![forbid(unsafe_code)]

mod connecting;
mod opening;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use nbdkit_api::Errno;
use nbdkit_api::endpoints::Wait;
use nbdkit_ipc::{Channel, FromBroker, Received, RecvError, ToBroker};
use nix::poll::PollFlags;

use crate::authority::Listener;
use crate::process;
pub(crate) use connecting::Connecting;
pub(crate) use opening::Opening;

/// This end of a channel to the broker.
pub(crate) type Link = Channel<ToBroker, FromBroker>;

/// Whom a worker asks for a channel.
static LISTENER: OnceLock<Arc<Listener>> = OnceLock::new();

/// The channel that a worker got with its client, until it is used.
static FIRST: Mutex<Option<Link>> = Mutex::new(None);

/// In a worker, before its client may cause a path to be opened. `first`: the channel that came
/// with the client.
pub(crate) fn ask_by(listener: Arc<Listener>, first: Option<OwnedFd>) {
    let _ = LISTENER.set(listener);
    if let Some(first) = first {
        *FIRST.lock().unwrap_or_else(PoisonError::into_inner) = Some(Channel::from_fd(first));
    }
}

/// A channel for a worker.
fn new_channel() -> Option<Link> {
    let first = FIRST.lock().unwrap_or_else(PoisonError::into_inner).take();
    first.or_else(|| LISTENER.get()?.broker().map(Channel::from_fd))
}

type Answer = (FromBroker, Option<OwnedFd>);

/// A channel, for one question at a time.
#[derive(Debug)]
struct Asked {
    link: Link,
    /// How many answers will still come to questions whose asker has given up.
    owed: u32,
}

/// The channels that this process asks on: as many questions at a time as there are.
#[derive(Debug)]
pub(crate) struct Channels {
    /// Those that are free; `None` for one that is still to be asked for.
    free: Mutex<Vec<Option<Asked>>>,
    given_back: Condvar,
}

impl Channels {
    /// `links`: of a template that serves all clients. Others ask for one.
    pub(crate) fn new(links: Vec<Link>) -> Channels {
        let mut free: Vec<_> =
            links.into_iter().map(|link| Some(Asked { link, owed: 0 })).collect();
        if free.is_empty() {
            free.push(None);
        }
        Channels { free: Mutex::new(free), given_back: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Asked>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a channel that is free; waits for one as `wait` permits.
    fn take(&self, wait: Option<&Wait<'_>>) -> Result<Option<Asked>, Errno> {
        let mut free = self.lock();
        loop {
            if let Some(asked) = free.pop() {
                return Ok(asked);
            }
            free = match wait.map(Wait::left) {
                None => self.given_back.wait(free).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return Err(Errno::ETIMEDOUT),
                Some(left) => {
                    let woken = self.given_back.wait_timeout(free, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn give_back(&self, asked: Option<Asked>) {
        self.lock().push(asked);
        self.given_back.notify_one();
    }

    /// The broker's answer. `wait`: how long to wait for it; the answer that comes later is not
    /// mistaken for another.
    ///
    /// # Errors
    /// ETIMEDOUT; ESHUTDOWN; EIO if there is no broker.
    fn ask(&self, question: &ToBroker, wait: Option<&Wait<'_>>) -> Result<Answer, Errno> {
        let mut asked = self.take(wait)?;
        let answer = ask_on(&mut asked, question, wait);
        self.give_back(asked);
        answer
    }
}

/// Asks on `asked`, which is replaced if it is closed.
fn ask_on(
    asked: &mut Option<Asked>,
    question: &ToBroker,
    wait: Option<&Wait<'_>>,
) -> Result<Answer, Errno> {
    // A broker that was replaced, or has closed the channel, is asked once more on a new one.
    for _ in 0..2 {
        let mut current = match asked.take() {
            Some(current) => current,
            None => Asked { link: new_channel().ok_or(Errno::EIO)?, owed: 0 },
        };
        match exchange(&mut current, question, wait) {
            Ok(None) => {}
            Ok(Some(answer)) => {
                *asked = Some(current);
                return Ok(answer);
            }
            Err(errno) => {
                *asked = Some(current);
                return Err(errno);
            }
        }
    }
    Err(Errno::EIO)
}

/// The answer to a question; `None` if the other end is closed.
fn exchange(
    asked: &mut Asked,
    question: &ToBroker,
    wait: Option<&Wait<'_>>,
) -> Result<Option<Answer>, Errno> {
    while asked.owed > 0 {
        if receive(&asked.link, wait)?.is_none() {
            return Ok(None);
        }
        asked.owed -= 1;
    }
    if asked.link.send(question, &[]).is_err() {
        return Ok(None);
    }
    let answer = receive(&asked.link, wait);
    asked.owed += u32::from(answer.is_err());
    answer
}

/// What comes next; `None` if the other end is closed.
fn receive(link: &Link, wait: Option<&Wait<'_>>) -> Result<Option<Answer>, Errno> {
    loop {
        if let Some(wait) = wait {
            wait.ready(link.as_fd(), PollFlags::POLLIN)?;
        }
        match link.recv() {
            Ok(Received { message, fds, .. }) => {
                let mut fds = fds.into_iter();
                return Ok(Some((message, fds.next())));
            }
            // The listener wants this worker to finish.
            Err(RecvError::Io(Errno::EINTR)) if process::is_quiescing() => {
                return Err(Errno::ESHUTDOWN);
            }
            Err(RecvError::Io(Errno::EINTR) | RecvError::Empty) => {}
            Err(RecvError::Closed | RecvError::Violation(_) | RecvError::Io(_)) => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests;
