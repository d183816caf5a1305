//! One client from the first byte to the last. Runs in a worker, or on a thread of a shared worker. Every byte
//! that comes in is hostile.
//!
//! [`handshake`] negotiates and opens an export, [`transmission`] serves it.

#![forbid(unsafe_code)]

mod execute;
mod export;
mod handshake;
mod input;
mod options;
mod pace;
mod pool;
mod receive;
mod reply;
mod socket;
mod splice;
mod tls;
mod transmission;
mod validate;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use nbdkit_api::{Client, Layer};
use nbdkit_ipc::WorkerExit;

pub(crate) use socket::Socket;

use crate::authority::Authority;
use crate::settings::Settings;

/// What serving a client takes.
pub(crate) struct Connection<'a> {
    /// The outermost layer of the stack.
    pub(crate) layer: &'a Arc<Layer>,
    /// What all connections have in common.
    pub(crate) settings: &'a Settings,
    /// Who it is.
    pub(crate) client: Arc<Client>,
    /// Where it is.
    pub(crate) socket: Socket,
    /// Whom TLS asks for keys.
    pub(crate) authority: Arc<dyn Authority>,
    /// Told the export's name when the handshake is over.
    pub(crate) on_serving: &'a (dyn Fn(&str) + Sync),
}

/// Why a connection ended before its time, by who is to blame.
#[derive(Debug)]
enum End {
    /// The client finished in the handshake, as it may.
    Done,
    /// The client broke the protocol; what it did.
    Protocol(String),
    /// The client did not finish the handshake in time.
    Deadline,
    /// The stack did not want the client; already logged.
    Refused,
    /// The client vanished.
    Broken(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        if error.kind() == io::ErrorKind::TimedOut { End::Deadline } else { End::Broken(error) }
    }
}

impl Connection<'_> {
    /// Serves the client until one side has had enough.
    pub(crate) fn serve(&self) -> WorkerExit {
        let _speaker = nbdkit_api::log::enter(nbdkit_api::log::Speaker {
            layer: Some(self.plugin_name()),
            connection: self.client.number(),
        });
        let end = match handshake::negotiate(self) {
            Ok((export, input)) => transmission::serve(self, export, input),
            Err(end) => Err(end),
        };
        self.socket.close();
        match end {
            Ok(()) | Err(End::Done) => WorkerExit::Clean,
            Err(End::Protocol(what)) => {
                nbdkit_api::error!("{what}");
                WorkerExit::Protocol
            }
            Err(End::Deadline) => WorkerExit::Deadline,
            Err(End::Refused) => WorkerExit::Refused,
            Err(End::Broken(error)) => {
                nbdkit_api::debug!("connection broken: {error}");
                WorkerExit::Broken
            }
        }
    }

    /// The server's own messages about a connection go by the plugin's name, as nbdkit's do.
    fn plugin_name(&self) -> &'static str {
        let mut layer = self.layer;
        while let Some(below) = layer.below() {
            layer = below;
        }
        layer.name()
    }
}
