//! Connecting to the upstream server: where it is, how often it is tried, and what is negotiated.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nbdkit_api::programs::Program;
use nbdkit_api::{Client, Endpoint, Errno, Error, Result, ResultExt, client, debug, endpoints};
use nix::sys::socket::{SockType, getsockopt, setsockopt, sockopt};

use super::command::Sockets;
use super::haggle::{Greeted, Haggling, Listed, TlsMode, greet};
use super::link::Link;
use super::socket::{Handshake, Socket};
use super::tls::Tls;

/// For connecting, and then for the handshake, each.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the upstream server is.
pub(super) enum Place {
    /// Connected to for each client, or once.
    Endpoint(Endpoint),
    /// A socket that was inherited; taken by the one connection.
    Fd(Mutex<Option<OwnedFd>>),
    /// A program that is run for the one connection, and its sockets until then.
    Command { program: OsString, args: Vec<OsString>, sockets: Mutex<Option<Sockets>> },
}

/// The configured upstream server.
pub(super) struct Upstream {
    pub(super) place: Place,
    /// How often to try again, a second later.
    pub(super) retry: u32,
    pub(super) mode: TlsMode,
    pub(super) tls: Option<Tls>,
    /// The connection of all clients, once it is there.
    pub(super) shared: Mutex<Option<Arc<Link>>>,
    /// The program that was started.
    pub(super) program: Mutex<Option<Program>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upstream {
    fn socket(&self, client: Option<&Client>) -> Result<OwnedFd> {
        match &self.place {
            Place::Endpoint(endpoint) => {
                endpoints::connect(client, endpoint, Instant::now() + PATIENCE)
            }
            Place::Fd(fd) => lock(fd).take().ok_or_else(gone),
            Place::Command { program, args, sockets } => {
                let sockets = lock(sockets).take().ok_or_else(gone)?;
                let (program, fd) = sockets.start(program, args)?;
                *lock(&self.program) = Some(program);
                Ok(fd)
            }
        }
    }

    /// Whether a failed connection can be tried again.
    fn can_retry(&self) -> bool {
        matches!(self.place, Place::Endpoint(_))
    }

    /// Connects and shakes hands as far as options, then does `negotiate`; again as often as
    /// `retry=` permits.
    fn negotiate<'a, T>(
        &'a self,
        client: Option<&'a Client>,
        negotiate: impl Fn(Greeted<'_, Handshake<'a>>) -> Result<T>,
    ) -> Result<(T, Socket)> {
        let mut left = if self.can_retry() { self.retry } else { 0 };
        loop {
            let attempt = self.socket(client).and_then(|fd| {
                let mut stream = Handshake {
                    socket: Socket::new(fd)?,
                    client,
                    deadline: Instant::now() + PATIENCE,
                    tls: self.tls.as_ref(),
                };
                let negotiated = negotiate(greet(&mut stream, self.mode)?)?;
                Ok((negotiated, stream.socket))
            });
            let error = match attempt {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            // The client's end is no failure of the server's.
            if left == 0 || client::check_present(client).is_err() {
                return Err(error);
            }
            left -= 1;
            debug!("connecting again in a second: {error}");
            client::sleep(client, Duration::from_secs(1))?;
        }
    }

    /// A connection for an export.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses; ESHUTDOWN if the client has gone.
    pub(super) fn open(&self, client: Option<&Client>, export: &str) -> Result<Link> {
        self.link(client, export, false)
    }

    fn link(&self, client: Option<&Client>, export: &str, shared: bool) -> Result<Link> {
        let (facts, socket) = self.negotiate(client, |greeted| match greeted {
            Greeted::Newstyle(haggling) => haggling.go(export),
            Greeted::Oldstyle(facts) => Ok(facts),
        })?;
        debug!("connected to the NBD server: {facts:?}");
        Ok(Link::new(socket, facts, shared))
    }

    /// The connection of all clients, made now if it is not there yet.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn shared(&self, export: &str) -> Result<Arc<Link>> {
        let mut shared = lock(&self.shared);
        if let Some(link) = &*shared {
            return Ok(Arc::clone(link));
        }
        let link = Arc::new(self.link(None, export, true)?);
        Ok(Arc::clone(shared.insert(link)))
    }

    /// What the server lists.
    ///
    /// # Errors
    /// It cannot be reached, or lists nothing.
    pub(super) fn list(&self, client: &Client) -> Result<Vec<Listed>> {
        #[expect(
            clippy::redundant_closure_for_method_calls,
            reason = "the method is not general enough over lifetimes"
        )]
        self.with_options(client, |haggling| haggling.list())
    }

    /// The name that the server has for its default export.
    ///
    /// # Errors
    /// It cannot be reached.
    pub(super) fn default_name(&self, client: &Client) -> Result<Option<String>> {
        #[expect(
            clippy::redundant_closure_for_method_calls,
            reason = "the method is not general enough over lifetimes"
        )]
        self.with_options(client, |haggling| haggling.default_name())
    }

    fn with_options<'a, T>(
        &'a self,
        client: &'a Client,
        ask: impl Fn(Haggling<'_, Handshake<'a>>) -> Result<T>,
    ) -> Result<T> {
        let (answer, _) = self.negotiate(Some(client), |greeted| match greeted {
            Greeted::Newstyle(haggling) => ask(haggling),
            Greeted::Oldstyle(_) => {
                Err(Error::new(Errno::EOPNOTSUPP, "the NBD server speaks the oldstyle protocol"))
            }
        })?;
        Ok(answer)
    }

    /// Ends the connection of all clients, and the program.
    pub(super) fn close(&self) {
        *lock(&self.shared) = None;
        *lock(&self.program) = None;
    }

    /// Makes the sockets of a program.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn prepare(&self) -> Result<()> {
        if let Place::Command { sockets, .. } = &self.place {
            *lock(sockets) = Some(Sockets::new()?);
        }
        Ok(())
    }
}

fn gone() -> Error {
    Error::new(Errno::ESHUTDOWN, "the NBD server has gone, and there was one connection only")
}

/// A copy of an inherited descriptor, which has to be a socket.
///
/// # Errors
/// One line: it is not open, or no socket.
pub(super) fn inherited(number: i32) -> Result<OwnedFd> {
    let name = || format!("socket-fd={number}");
    let fd = nbdkit_api::inherited::duplicate(number).or_error(name)?;
    let kind = getsockopt(&fd, sockopt::SockType);
    match kind.or_error(name)? {
        SockType::Stream => {
            // A request must not wait for the next, if this is TCP. tcp(7)
            let _ = setsockopt(&fd, sockopt::TcpNoDelay, &true);
            Ok(fd)
        }
        _ => Err(Error::msg(format!("socket-fd={number}: not a stream socket"))),
    }
}
