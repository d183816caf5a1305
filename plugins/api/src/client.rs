//! The client of a connection, and the server, as plugins and filters see them: who the peer is
//! (`nbdkit_peer_*`), dropping it (`nbdkit_disconnect`), stopping everything (`nbdkit_shutdown`),
//! and sleeping without delaying either (`nbdkit_nanosleep`).

use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Errno, Error, Result};
use crate::host::{self, Host, host};
pub use nbdkit_common::{Peer, PeerAddress, TlsPeer};

const ALIVE: u8 = 0;
const SOFT: u8 = 1;
const FORCED: u8 = 2;

/// One connected client.
pub struct Client {
    number: u64,
    peer: OnceLock<Peer>,
    socket: Option<Arc<OwnedFd>>,
    tls: OnceLock<TlsPeer>,
    disconnect: AtomicU8,
    /// It has sent NBD_CMD_DISC.
    leaving: AtomicBool,
    on_force: Box<dyn Fn() + Send + Sync>,
    kept: Mutex<Vec<Box<dyn Any + Send>>>,
    default_exports: Mutex<Vec<(Asker, Option<String>)>>,
}

/// Which layer (by its address) was asked for its default export, and how: `readonly`, and whether
/// with TLS.
pub(crate) type Asker = (usize, bool, bool);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("number", &self.number)
            .field("peer", &self.peer.get())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// The client with connection number `number`, on `socket`. `on_force` cuts the connection.
    pub fn new(
        number: u64,
        peer: Peer,
        socket: Option<Arc<OwnedFd>>,
        on_force: Box<dyn Fn() + Send + Sync>,
    ) -> Arc<Client> {
        Client::make(number, OnceLock::from(peer), socket, OnceLock::new(), on_force)
    }

    /// The client that a callback of a plugin in a file runs for: the server is asked about it.
    /// It has the number 0, and the server notices its end. `tls`: it has negotiated TLS.
    pub fn of_host(host: &Host, tls: bool) -> Arc<Client> {
        let tls = if tls { OnceLock::from((host.tls)()) } else { OnceLock::new() };
        Client::make(0, OnceLock::new(), None, tls, Box::new(|| {}))
    }

    fn make(
        number: u64,
        peer: OnceLock<Peer>,
        socket: Option<Arc<OwnedFd>>,
        tls: OnceLock<TlsPeer>,
        on_force: Box<dyn Fn() + Send + Sync>,
    ) -> Arc<Client> {
        Arc::new(Client {
            number,
            peer,
            socket,
            tls,
            disconnect: AtomicU8::new(ALIVE),
            leaving: AtomicBool::new(false),
            on_force,
            kept: Mutex::default(),
            default_exports: Mutex::default(),
        })
    }

    /// Connection number, counted from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Who it is.
    pub fn peer(&self) -> &Peer {
        self.peer.get_or_init(|| host().map_or_else(Peer::default, |host| (host.peer)()))
    }

    /// Its socket, to notice its end.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Notes that the connection is now encrypted; the first call counts.
    pub fn set_tls(&self, peer: TlsPeer) {
        let _ = self.tls.set(peer);
    }

    /// Whether TLS has been negotiated on this connection.
    pub fn is_tls(&self) -> bool {
        self.tls.get().is_some()
    }

    /// What TLS established, if it is in use.
    pub fn tls(&self) -> Option<&TlsPeer> {
        self.tls.get()
    }

    /// Keeps a value until the connection is over (`nbdkit_strdup_intern`).
    pub fn keep(&self, value: impl Any + Send) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(value));
    }

    /// Keeps what `make` makes until the connection is over, unless one of the type is kept
    /// already.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn keep_one<T: Any + Send>(&self, make: impl FnOnce() -> Result<T>) -> Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.iter().any(|value| value.is::<T>()) {
            kept.push(Box::new(make()?));
        }
        Ok(())
    }

    /// The name of a layer's default export, which is asked for once in a connection, and once more
    /// with TLS.
    ///
    /// # Errors
    /// The layer's; it will be asked again.
    pub(crate) fn default_export(
        &self,
        asker: Asker,
        ask: impl FnOnce() -> Result<Option<String>>,
    ) -> Result<Option<String>> {
        let known = || self.default_exports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, name)) = known().iter().find(|(known, _)| *known == asker) {
            return Ok(name.clone());
        }
        // Not locked: a filter asks the layer below.
        let name = ask()?;
        known().push((asker, name.clone()));
        Ok(name)
    }

    /// Notes that it has sent NBD_CMD_DISC: that its socket ends now is no reason to hurry any
    /// more.
    pub fn set_leaving(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Drops this client. With `force` at once, without further replies; without, new requests
    /// are refused with ESHUTDOWN while those under way finish. `nbdkit_disconnect`.
    pub fn disconnect(&self, force: bool) {
        let wanted = if force { FORCED } else { SOFT };
        if let Some(host) = host() {
            (host.disconnect)(force);
        }
        if self.disconnect.fetch_max(wanted, Ordering::SeqCst) < FORCED && force {
            (self.on_force)();
        }
    }

    /// Whether new requests must be refused.
    #[inline]
    pub fn is_disconnecting(&self) -> bool {
        self.disconnect.load(Ordering::Relaxed) != ALIVE
    }

    /// Whether nothing more may be sent.
    #[inline]
    pub fn is_cut(&self) -> bool {
        self.disconnect.load(Ordering::Relaxed) == FORCED
    }
}

/// Sleeps for `duration`, unless the client goes away or the server stops meanwhile. Behind
/// NBD_CMD_DISC only a reset ends the sleep early: clients close their socket then, and nbdkit
/// sleeps on. nbdkit-delay-filter(1), `delay-close`. `client` is the one being served, `None` in
/// contexts that outlive connections.
///
/// # Errors
/// ESHUTDOWN if the sleep was cut short.
pub fn sleep(client: Option<&Client>, duration: Duration) -> Result<()> {
    if let Some(host) = host() {
        return (host.sleep)(duration);
    }
    let Some(socket) = client.and_then(|c| c.socket.as_ref()) else {
        std::thread::sleep(duration);
        return Ok(());
    };
    let until = Instant::now() + duration;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let leaving = client.is_some_and(|client| client.leaving.load(Ordering::Relaxed));
        if is_stopping() && !leaving {
            return Err(closing_in("sleep"));
        }
        // A millisecond is poll's resolution; round up so as not to spin at the end.
        let millis = left
            .as_millis()
            .saturating_add(u128::from(!left.subsec_nanos().is_multiple_of(1_000_000)));
        let timeout = PollTimeout::from(millis.min(LOOK) as u16);
        if left < Duration::from_millis(1) {
            std::thread::sleep(left);
            return Ok(());
        }
        let end = if leaving { 0 } else { libc::POLLRDHUP };
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::from_bits_retain(end))];
        match poll(&mut fds, timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            // It has closed its socket, and the poll would return at once again and again.
            Ok(_) if leaving && fds[0].revents() == Some(PollFlags::POLLHUP) => {
                std::thread::sleep(left);
                return Ok(());
            }
            _ => return Err(closing_in("sleep")),
        }
    }
}

/// Whether this client has closed its connection, or is being dropped, or the server stops: then
/// nobody wants what is being waited for in its name. One poll(2). Never so for `None`.
pub(crate) fn is_gone(client: Option<&Client>) -> bool {
    let Some(client) = client else { return false };
    if client.is_cut() {
        return true;
    }
    let Some(socket) = client.socket() else { return false };
    let leaving = client.leaving.load(Ordering::Relaxed);
    if is_stopping() && !leaving {
        return true;
    }
    // Behind NBD_CMD_DISC, that it sends nothing more is no news.
    let end = if leaving { 0 } else { libc::POLLRDHUP };
    let mut fds = [PollFd::new(socket, PollFlags::from_bits_retain(end))];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// For work that takes long: fails once nobody waits for its result. `client` is the one being
/// served, `None` in contexts that outlive connections, whose work always goes on.
///
/// # Errors
/// ESHUTDOWN: the client has gone, or the server stops.
pub fn check_present(client: Option<&Client>) -> Result<()> {
    if is_gone(client) { Err(closing()) } else { Ok(()) }
}

/// Why a wait in the name of a client has ended.
pub(crate) fn closing() -> Error {
    closing_in("wait")
}

fn closing_in(what: &str) -> Error {
    let text = format!("aborting {what} because the connection is closing");
    Error::silent(Errno::ESHUTDOWN).context(&text)
}

/// How often a wait looks whether the server stops, milliseconds.
pub(crate) const LOOK: u128 = 100;

/// Whether the server stops and refuses requests: nothing is waited for any more in the name of a
/// client.
pub(crate) fn is_stopping() -> bool {
    STOPPING.load(Ordering::Relaxed)
}

/// Set by the process that serves clients when the server has stopped for so long that it refuses
/// requests, while replies may still be owed. Async-signal-safe.
pub fn set_stopping() {
    STOPPING.store(true, Ordering::Relaxed);
}

static STDIO_SAFE: AtomicBool = AtomicBool::new(true);
static FORKED: AtomicBool = AtomicBool::new(false);
static STOPPING: AtomicBool = AtomicBool::new(false);
static REPLACEMENT: AtomicBool = AtomicBool::new(false);
static SWAP: AtomicBool = AtomicBool::new(false);
static TLS_REQUIRED: AtomicBool = AtomicBool::new(false);
static SHUTDOWN: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// Whether a plugin may use standard input and output while it is configured
/// (`nbdkit_stdio_safe`): false with `-s`.
pub fn stdio_safe() -> bool {
    STDIO_SAFE.load(Ordering::Relaxed)
}

/// Set once at start by the process that runs the stack.
pub fn set_stdio_safe(safe: bool) {
    STDIO_SAFE.store(safe, Ordering::Relaxed);
}

/// Whether nbdkit's server would have forked by now, into the background or for `--run`; known from
/// `after_fork` on.
pub fn forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

/// Set once before `after_fork` by the process that runs the stack.
pub fn set_forked(forked: bool) {
    FORKED.store(forked, Ordering::Relaxed);
}

/// Whether the machine swaps on what is served (`--swap`): requests must not wait for memory.
pub fn swap() -> bool {
    SWAP.load(Ordering::Relaxed)
}

/// Set once at start by the process that runs the stack.
pub fn set_swap(swap: bool) {
    SWAP.store(swap, Ordering::Relaxed);
}

/// Whether the stack is configured again in place of one that has ended: files that filters write
/// go on, they do not begin anew.
pub fn is_replacement() -> bool {
    REPLACEMENT.load(Ordering::Relaxed)
}

/// Set once at start by the process that runs the stack.
pub fn set_replacement(replacement: bool) {
    REPLACEMENT.store(replacement, Ordering::Relaxed);
}

/// Whether every client has TLS (`--tls=require`), so that what is opened for none in particular
/// need not be kept from those without.
pub fn tls_required() -> bool {
    TLS_REQUIRED.load(Ordering::Relaxed)
}

/// Set once, by the process that runs the stack, before the first client.
pub fn set_tls_required(required: bool) {
    TLS_REQUIRED.store(required, Ordering::Relaxed);
}

/// Installs what [`shutdown`] does; the first call counts.
pub fn on_shutdown(hook: Box<dyn Fn() + Send + Sync>) {
    let _ = SHUTDOWN.set(hook);
}

/// Asks the server to stop (`nbdkit_shutdown`). Returns at once; callbacks may still come.
pub fn shutdown() {
    if let Some(hook) = SHUTDOWN.get() {
        hook();
    }
}

/// From now on the server does what belongs to the process. The first call counts.
pub fn serve_under(host: Host) {
    if host::set(host) {
        // Whether debug messages are wanted only the server knows: it drops them.
        crate::log::install(true, Box::new(move |level, _, message| (host.log)(level, message)));
        on_shutdown(Box::new(host.shutdown));
        set_stdio_safe((host.stdio_safe)());
    }
}
