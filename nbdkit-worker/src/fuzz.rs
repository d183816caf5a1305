//! What the fuzz targets need: a server without processes, sandbox or listener, that serves
//! descriptors of theirs; a broker without a process.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nbdkit_api::paths::Declared;
use nbdkit_api::{Client, Endpoint, Layer, Result, ResultExt, client::Peer};
use nbdkit_ipc::keys::{KeyAnswer, KeyRequest};
use nbdkit_ipc::messages::{Configure, Parameter};
use nbdkit_ipc::{Channel, FromBroker, ToBroker, WorkerExit};

use crate::authority::Authority;
use crate::broker::connecting::Connecting;
use crate::broker::desk::Desk;
use crate::configure;
use crate::connection::{Connection, Counters, Socket};
use crate::settings::Settings;

/// A configured stack, as a template has it when it is ready for clients.
#[derive(Debug)]
pub struct Server {
    layer: Arc<Layer>,
    settings: Settings,
}

impl Server {
    /// Configures the stack.
    ///
    /// # Errors
    /// Any of the stack's.
    pub fn new(configure: &Configure, parameters: &[Parameter]) -> Result<Server> {
        let mut stack = configure::load(configure)?;
        configure::parameters(&mut stack, parameters)?;
        stack.config_complete()?;
        let model = stack.thread_model()?;
        stack.get_ready(model)?;
        let settings = Settings::new(configure, model)?;
        let layer = stack.freeze();
        layer.after_fork()?;
        Ok(Server { layer, settings })
    }

    /// Serves a client whose bytes come from `input` until they end; replies go to `output`.
    /// Neither need be a socket. A panic is not caught.
    pub fn serve(&self, input: OwnedFd, output: OwnedFd) -> WorkerExit {
        let socket = Socket::new(input, Some(output));
        let cut = socket.clone();
        let client = Client::new(1, Peer::default(), None, Box::new(move || cut.cut()));
        let (layer, settings) = (&self.layer, &self.settings);
        let authority = Arc::new(Nobody);
        let totals = Counters::default();
        let on_serving = &|_: &str| {};
        let (totals, parking) = (&totals, None);
        let activity = Arc::default();
        let connection = Connection {
            layer,
            settings,
            client,
            socket,
            authority,
            on_serving,
            totals,
            activity,
            parking,
        };
        connection.serve()
    }
}

/// A broker's desk without its process: the other ends of the channels are the caller's, to say
/// anything on.
pub struct Broker(Desk);

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").finish_non_exhaustive()
    }
}

impl Broker {
    /// Of a stack that has declared these.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub fn new(declared: Vec<Declared>, endpoints: Vec<Endpoint>) -> Result<Broker> {
        let connecting = Connecting::new(endpoints).or_error(|| "eventfd")?;
        let desk = Desk::new(declared).or_error(|| "epoll_create")?;
        Ok(Broker(desk.connecting(connecting).or_error(|| "epoll_ctl")?))
    }

    /// One more channel.
    pub fn admit(&mut self, connection: u64, link: Channel<FromBroker, ToBroker>) {
        self.0.admit(connection, link);
    }

    /// One turn of the loop, without waiting.
    pub fn turn(&mut self) {
        let _ = self.0.wait(Some(Duration::ZERO));
        self.0.answer();
    }
}

/// Subject and issuer of a certificate (DER), as far as they can be read.
pub fn names(certificate: &[u8]) -> (Option<String>, Option<String>) {
    (crate::tls::subject(certificate), crate::tls::issuer(certificate))
}

/// There is no TLS here.
#[derive(Debug)]
struct Nobody;

impl Authority for Nobody {
    fn ask(&self, _: KeyRequest) -> KeyAnswer {
        KeyAnswer::Denied
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.layer.cleanup();
    }
}
