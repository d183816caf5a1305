//! Having declared paths opened.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;

use nbdkit_api::Errno;
use nbdkit_api::paths::{self, Declared, Failure, Found};
use nbdkit_ipc::messages::broker::OpenAccess;
use nbdkit_ipc::{FromBroker, ToBroker};

use super::{Answer, Channels, Link};

/// The worker's side of opening declared paths by the broker.
#[derive(Debug)]
pub(crate) struct Opening {
    declared: Vec<Declared>,
    channels: Channels,
}

impl Opening {
    /// `links`: of a template that serves all clients.
    pub(crate) fn new(declared: Vec<Declared>, links: Vec<Link>) -> Opening {
        Opening { declared, channels: Channels::new(links) }
    }

    fn ask(
        &self,
        declared: &Declared,
        name: Option<&OsStr>,
        access: OpenAccess,
    ) -> Result<Answer, Failure> {
        let path = self.declared.iter().position(|it| it == declared).ok_or(Errno::EACCES)?;
        let path = u32::try_from(path).map_err(|_| Errno::EACCES)?;
        let question = ToBroker::Open { path, name: name.map(OsStr::to_owned), access };
        Ok(self.channels.ask(&question, None)?)
    }
}

fn failure(answer: &FromBroker) -> Failure {
    match answer {
        FromBroker::Refused { errno } => Failure::Os(Errno::from_raw(*errno)),
        FromBroker::WrongType => Failure::WrongType,
        // Without a descriptor; to another question.
        FromBroker::Opened { .. }
        | FromBroker::Connecting { .. }
        | FromBroker::NotResolved { .. } => Failure::Os(Errno::EIO),
    }
}

impl paths::Broker for Opening {
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
            (other, _) => Err(failure(&other)),
        }
    }

    fn list(&self, declared: &Declared) -> Result<OwnedFd, Failure> {
        match self.ask(declared, None, OpenAccess::List)? {
            (FromBroker::Opened { .. }, Some(fd)) => Ok(fd),
            (other, _) => Err(failure(&other)),
        }
    }
}
