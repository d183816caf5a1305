//! Serves one client, from the first byte to the last. Runs in a worker, or on a thread of a shared
//! worker. Every byte that the client sends is hostile.
//!
//! [`handshake`] negotiates and opens an export, [`transmission`] serves it.

#![forbid(unsafe_code)]

pub(crate) mod activity;
mod busy_poll;
mod execute;
mod export;
mod haggling;
mod handshake;
mod inline_calls;
mod inline_writes;
mod input;
mod negotiated;
mod options;
mod parking;
pub(crate) mod pin;
mod poll_backoff;
mod poll_length;
mod pool;
mod prealloc;
mod read_attempts;
mod read_groups;
mod receive;
mod reply;
mod request_poll;
mod socket;
mod splice;
mod tls;
mod totals;
mod transmission;
pub(crate) mod turns;
mod validate;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use nbdkit_api::{Client, Errno, Layer, strerror};
use nbdkit_ipc::WorkerExit;

pub(crate) use activity::Activity;
pub(crate) use parking::{Parked, Parking};
pub(crate) use socket::Socket;
pub(crate) use totals::Counters;

use crate::authority::Authority;
use crate::settings::Settings;
use export::Export;
use input::Input;
use negotiated::Negotiated;

/// A client's connection and what serving it needs.
pub(crate) struct Connection<'a> {
    /// The outermost layer of the stack.
    pub(crate) layer: &'a Arc<Layer>,
    /// The settings that all connections of this server share.
    pub(crate) settings: &'a Settings,
    /// The client, as the stack sees it.
    pub(crate) client: Arc<Client>,
    /// The client's socket.
    pub(crate) socket: Socket,
    /// Signs TLS handshakes and looks up pre-shared keys.
    pub(crate) authority: Arc<dyn Authority>,
    /// Called with the export's name when the handshake has succeeded.
    pub(crate) on_serving: &'a (dyn Fn(&str) + Sync),
    /// What the client reads and writes.
    pub(crate) totals: &'a Counters,
    /// What it does, for those who end it.
    pub(crate) activity: Arc<Activity>,
    /// How it is parked, if it can be.
    pub(crate) parking: Option<Parking<'a>>,
}

/// Why a connection ended before or without NBD_CMD_DISC, by who caused it.
#[derive(Debug)]
enum End {
    /// The client left in the handshake, as it may.
    Done,
    /// The client violated the protocol; what it did.
    Protocol(String),
    /// The client did not finish the handshake in time.
    Deadline,
    /// The stack refused the client; already logged.
    Refused,
    /// The connection broke; the operation and its error, for the log.
    Broken(String),
    /// The client is idle, and is to be parked.
    Idle,
}

/// The deadline of the handshake has passed. A type of its own, to be distinguished from the
/// kernel's ETIMEDOUT, which means that the network or the client's machine is gone.
#[derive(Debug)]
struct DeadlinePassed;

impl std::error::Error for DeadlinePassed {}

impl std::fmt::Display for DeadlinePassed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not finished in time")
    }
}

impl DeadlinePassed {
    fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<DeadlinePassed>)
    }
}

impl From<DeadlinePassed> for io::Error {
    fn from(passed: DeadlinePassed) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, passed)
    }
}

/// Turns an error of the socket into the end of the connection.
trait During<T> {
    /// `what` is the operation on the socket, as nbdkit names it in its log.
    fn during(self, what: impl std::fmt::Display) -> Result<T, End>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, what: impl std::fmt::Display) -> Result<T, End> {
        self.map_err(|error| {
            if DeadlinePassed::is(&error) {
                return End::Deadline;
            }
            End::Broken(match (error.raw_os_error(), error.kind()) {
                (Some(errno), _) => format!("{what}: {}", strerror(Errno::from_raw(errno))),
                (None, io::ErrorKind::UnexpectedEof) => {
                    format!("{what}: the client closed the connection in the middle of it")
                }
                (None, _) => format!("{what}: {error}"),
            })
        })
    }
}

impl Connection<'_> {
    /// Serves the client until one side ends the connection, or it is parked; returns the worker's
    /// exit status.
    pub(crate) fn serve(&self) -> WorkerExit {
        self.run(|| handshake::negotiate(self))
    }

    /// As [`serve`](Self::serve), a client that was parked.
    pub(crate) fn resume(&self, parked: &Parked) -> WorkerExit {
        self.run(|| parking::resume(self, parked))
    }

    fn run(&self, begin: impl FnOnce() -> Result<(Negotiated, Export, Input), End>) -> WorkerExit {
        let _speaker = nbdkit_api::log::enter(nbdkit_api::log::Speaker {
            layer: Some(self.plugin_name()),
            connection: self.client.number(),
        });
        let end = match begin() {
            Ok((negotiated, export, input)) => {
                match (transmission::serve(self, &negotiated, export, input), &self.parking) {
                    (Err(End::Idle), Some(parking)) => match parking.park(&negotiated) {
                        Ok(()) => return WorkerExit::Parked,
                        Err(end) => Err(end),
                    },
                    (end, _) => end,
                }
            }
            Err(end) => Err(end),
        };
        self.socket.close();
        let stopping = crate::process::is_quiescing();
        match end {
            Ok(()) | Err(End::Done | End::Broken(_))
                if self.client.is_disconnecting() && !stopping =>
            {
                WorkerExit::Disconnected
            }
            Ok(()) | Err(End::Done | End::Idle) => WorkerExit::Clean,
            Err(End::Protocol(what)) => {
                nbdkit_api::error!("{what}");
                WorkerExit::Protocol
            }
            Err(End::Deadline) => WorkerExit::Deadline,
            Err(End::Refused) => WorkerExit::Refused,
            // This server is shutting down: not an error of the client.
            Err(End::Broken(why)) if stopping => {
                nbdkit_api::debug!("{why}");
                WorkerExit::Broken
            }
            Err(End::Broken(why)) => {
                nbdkit_api::error!("{why}");
                WorkerExit::Broken
            }
        }
    }

    /// The plugin's name: the prefix of the server's own messages about a connection, as in nbdkit.
    fn plugin_name(&self) -> &'static str {
        self.layer.plugin_name()
    }
}
