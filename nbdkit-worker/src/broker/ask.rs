//! Asking the broker: how a process that may not open paths has them opened.
//!
//! A worker gets its channel from the listener, which makes it: with its client, where every client needs one, or when it
//! asks for the first time; a template that serves all
//! clients has one from the beginning. Answers are believed as the listener's are.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nbdkit_api::Errno;
use nbdkit_api::paths::{self, Declared, Failure, Found};
use nbdkit_ipc::broker::OpenAccess;
use nbdkit_ipc::{Channel, FromBroker, Received, RecvError, ToBroker};

use crate::authority::Listener;
use crate::process;

/// This end of a channel to the broker.
pub(crate) type Link = Channel<ToBroker, FromBroker>;

/// Whom a worker asks for a channel.
static LISTENER: OnceLock<Arc<Listener>> = OnceLock::new();

/// The channel that a worker got with its client, until it is used.
static FIRST: Mutex<Option<Link>> = Mutex::new(None);

/// In a worker, before its client may cause a path to be opened. `first`: the channel that came with the client.
pub(crate) fn ask_by(listener: Arc<Listener>, first: Option<OwnedFd>) {
    let _ = LISTENER.set(listener);
    if let Some(first) = first {
        *FIRST.lock().unwrap_or_else(PoisonError::into_inner) = Some(Channel::from_fd(first));
    }
}

/// A channel for a worker.
fn connect() -> Option<Link> {
    let first = FIRST.lock().unwrap_or_else(PoisonError::into_inner).take();
    first.or_else(|| LISTENER.get()?.broker())
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Asking {
    declared: Vec<Declared>,
    link: Mutex<Option<Link>>,
}

impl Asking {
    /// `link`: of a template that serves all clients.
    pub(crate) fn new(declared: Vec<Declared>, link: Option<Link>) -> Asking {
        Asking { declared, link: Mutex::new(link) }
    }

    fn ask(
        &self,
        declared: &Declared,
        name: Option<&OsStr>,
        access: OpenAccess,
    ) -> Result<(FromBroker, Option<OwnedFd>), Failure> {
        let path = self.declared.iter().position(|it| it == declared).ok_or(Errno::EACCES)?;
        let path = u32::try_from(path).map_err(|_| Errno::EACCES)?;
        let question = ToBroker::Open { path, name: name.map(OsStr::to_owned), access };
        let mut link: MutexGuard<'_, _> = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        // A broker that was replaced, or has closed the channel, is asked once more on a new one.
        for _ in 0..2 {
            let current = match link.take() {
                Some(link) => link,
                None => connect().ok_or(Errno::EIO)?,
            };
            if let Some(answer) = exchange(&current, &question)? {
                *link = Some(current);
                return Ok(answer);
            }
        }
        Err(Failure::Os(Errno::EIO))
    }
}

/// The answer to a question; `None` if the other end is closed.
fn exchange(
    link: &Link,
    question: &ToBroker,
) -> Result<Option<(FromBroker, Option<OwnedFd>)>, Failure> {
    if link.send(question, &[]).is_err() {
        return Ok(None);
    }
    loop {
        match link.recv() {
            Ok(Received { message, fds, .. }) => {
                let mut fds = fds.into_iter();
                return Ok(Some((message, fds.next())));
            }
            // The listener wants this worker to finish.
            Err(RecvError::Io(Errno::EINTR)) if process::is_quiescing() => {
                return Err(Failure::Os(Errno::ESHUTDOWN));
            }
            Err(RecvError::Io(Errno::EINTR) | RecvError::Empty) => {}
            Err(RecvError::Closed | RecvError::Violation(_) | RecvError::Io(_)) => return Ok(None),
        }
    }
}

fn failure(answer: FromBroker) -> Failure {
    match answer {
        FromBroker::Refused { errno } => Failure::Os(Errno::from_raw(errno)),
        FromBroker::WrongType => Failure::WrongType,
        // Without a descriptor.
        FromBroker::Opened { .. } => Failure::Os(Errno::EIO),
    }
}

impl paths::Broker for Asking {
    fn open(
        &self,
        declared: &Declared,
        name: Option<&OsStr>,
        write: bool,
    ) -> Result<Found, Failure> {
        let access = if write { OpenAccess::Write } else { OpenAccess::Read };
        match self.ask(declared, name, access)? {
            (FromBroker::Opened { writable, block_device }, Some(fd)) => {
                Ok(Found { file: File::from(fd), writable, is_block_device: block_device })
            }
            (other, _) => Err(failure(other)),
        }
    }

    fn list(&self, declared: &Declared) -> Result<OwnedFd, Failure> {
        match self.ask(declared, None, OpenAccess::List)? {
            (FromBroker::Opened { .. }, Some(fd)) => Ok(fd),
            (other, _) => Err(failure(other)),
        }
    }
}
