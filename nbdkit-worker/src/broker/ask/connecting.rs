//! Having connections to declared endpoints begun.

#![forbid(unsafe_code)]

use nbdkit_api::Errno;
use nbdkit_api::endpoints::{self, Begun, Endpoint, Failure, Wait};
use nbdkit_ipc::{FromBroker, ToBroker};

use super::{Channels, Link};

/// The worker's side of connecting to declared endpoints by the broker.
#[derive(Debug)]
pub(crate) struct Connecting {
    endpoints: Vec<Endpoint>,
    /// Not those of opening: a name that takes long to resolve delays no file.
    channels: Channels,
}

impl Connecting {
    /// `links`: of a template that serves all clients.
    pub(crate) fn new(endpoints: Vec<Endpoint>, links: Vec<Link>) -> Connecting {
        Connecting { endpoints, channels: Channels::new(links) }
    }
}

impl endpoints::Broker for Connecting {
    fn begin(&self, endpoint: &Endpoint, attempt: u32, wait: &Wait<'_>) -> Result<Begun, Failure> {
        let number = self.endpoints.iter().position(|it| it == endpoint).ok_or(Errno::EACCES)?;
        let endpoint = u32::try_from(number).map_err(|_| Errno::EACCES)?;
        let question = ToBroker::Connect { endpoint, attempt };
        match self.channels.ask(&question, Some(wait))? {
            (FromBroker::Connecting { next }, Some(fd)) => Ok(Begun { fd, next }),
            (FromBroker::Refused { errno }, _) => Err(Failure::Os(Errno::from_raw(errno))),
            (FromBroker::NotResolved { reason }, _) => Err(Failure::NotResolved(reason)),
            // Without a descriptor; to another question.
            (
                FromBroker::Connecting { .. } | FromBroker::Opened { .. } | FromBroker::WrongType,
                _,
            ) => Err(Failure::Os(Errno::EIO)),
        }
    }
}
