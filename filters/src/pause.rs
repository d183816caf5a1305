//! nbdkit-pause-filter(1): holds requests back between the commands `p` and `r` on its control
//! socket.
//!
//! The control socket is served by a watcher, [`control`]. Requests of all clients, in all
//! processes, look at one word; each open export counts its requests under way in a word of its
//! own, so that the watcher can wait for them, and leave out those of a worker that was killed.

mod control;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use nbdkit_api::shared::{SharedEvent, SharedWords};
use nbdkit_api::{
    Blocking, Client, Errno, Error, Extents, Filter, Flags, Next, NextConfig, Open, OpenLayer,
    Result, ResultExt, Slot, ThreadModel, Value, Watcher,
};

use crate::presence::{Place, Places};
use control::Control;

/// Most exports that clients may have open at a time.
const EXPORTS: usize = 16384;

/// Longest path of a socket, bytes, without the NUL. unix(7).
const MAX_PATH: usize = 107;

/// The filter and, once ready, what its processes share.
#[derive(Debug, Default)]
pub struct Pause {
    path: Option<PathBuf>,
    shared: Option<Arc<Shared>>,
    /// Until the watcher has it.
    control: Mutex<Option<Control>>,
}

/// What requests and the control socket share.
#[derive(Debug)]
struct Shared {
    /// Not 0 while requests are held back.
    paused: SharedWords,
    /// The word `paused`, or a number of requests, has changed.
    changed: SharedEvent,
    /// For each open export its requests under way.
    requests: SharedWords,
    /// Which of these are of exports that are open.
    places: Arc<Places>,
}

impl Shared {
    fn new() -> Result<Shared> {
        Ok(Shared {
            paused: SharedWords::new(1)?,
            changed: SharedEvent::new()?,
            requests: SharedWords::new(EXPORTS)?,
            places: Places::new("pause", EXPORTS as u64)?,
        })
    }

    fn is_paused(&self) -> bool {
        self.paused[0].load(Ordering::SeqCst) != 0
    }

    fn set_paused(&self, paused: bool) {
        self.paused[0].store(paused.into(), Ordering::SeqCst);
        self.changed.signal();
    }

    /// Whether no request is under way in any process that lives. Called by a process that has no
    /// exports open.
    fn is_idle(&self) -> Result<bool> {
        for (number, requests) in self.requests.iter().enumerate() {
            if requests.load(Ordering::SeqCst) != 0
                && self.places.is_taken_elsewhere(number as u64)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Filter for Pause {
    fn name(&self) -> &str {
        "pause"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit pause filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("pause-control=SOCKET           Control socket.")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "pause-control" => self.path = Some(value.absolute_path()?),
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        let Some(path) = &self.path else {
            return Err(Error::msg("pause-control socket was not set"));
        };
        let length = path.as_os_str().len();
        if length > MAX_PATH {
            return Err(Error::msg(format!(
                "pause-control socket path too long: length {length} > max {MAX_PATH} bytes"
            )));
        }
        next.config_complete()
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        control::remove_socket(path);
        let listener = UnixListener::bind(path).or_error(|| path.display().to_string())?;
        let shared = Arc::new(Shared::new()?);
        let control = Control::new(listener, path.clone(), Arc::clone(&shared));
        self.shared = Some(shared);
        self.control = Mutex::new(Some(control));
        Ok(())
    }

    fn watcher(&self) -> Option<Box<dyn Watcher>> {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Box::new(control))
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let shared = self
            .shared
            .as_ref()
            .ok_or_else(|| Error::new(Errno::EINVAL, "pause: opened before get_ready"))?;
        let place = shared.places.take()?.ok_or_else(|| {
            Error::new(Errno::EMFILE, format!("pause: {EXPORTS} exports are open already"))
        })?;
        let handle =
            Handle { shared: Arc::clone(shared), place, client: open.client.map(Arc::clone) };
        // Whoever had the place may have been killed.
        handle.requests().store(0, Ordering::SeqCst);
        Ok(Box::new(handle))
    }
}

struct Handle {
    shared: Arc<Shared>,
    place: Place,
    client: Option<Arc<Client>>,
}

/// A request under way, until it is dropped.
struct Request<'a>(&'a Handle);

impl Handle {
    fn requests(&self) -> &std::sync::atomic::AtomicU64 {
        &self.shared.requests[self.place.number() as usize]
    }

    /// Begins a request, unless requests are held back. It counts before the look: whoever pauses
    /// then sees it, or it sees the pause.
    fn try_begin(&self) -> Option<Request<'_>> {
        self.requests().fetch_add(1, Ordering::SeqCst);
        let request = Request(self);
        (!self.shared.is_paused()).then_some(request)
    }

    /// Begins a request, as soon as requests are not held back.
    ///
    /// # Errors
    /// ESHUTDOWN: the client has gone, or the server stops.
    fn begin(&self) -> Result<Request<'_>> {
        loop {
            if let Some(request) = self.try_begin() {
                return Ok(request);
            }
            let resumed = || Ok((!self.shared.is_paused()).then_some(()));
            self.shared.changed.wait_until(self.client.as_deref(), resumed)?;
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.0.requests().fetch_sub(1, Ordering::SeqCst);
        if self.0.shared.is_paused() {
            self.0.shared.changed.signal();
        }
    }
}

impl OpenLayer for Handle {
    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let _request = self.begin()?;
        next.pread(buf, offset)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let _request = self.begin()?;
        next.pwrite(buf, offset, flags)
    }

    fn flush(&self, next: &Next) -> Result<()> {
        let _request = self.begin()?;
        next.flush()
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let _request = self.begin()?;
        next.trim(count, offset, flags)
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let _request = self.begin()?;
        next.zero(count, offset, flags)
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        let _request = self.begin()?;
        next.extents(count, offset, flags, extents)
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        let _request = self.begin()?;
        next.cache(count, offset)
    }

    fn blocking(&self) -> Blocking {
        Blocking::Long
    }

    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let _request = self.try_begin()?;
        next.try_pread(buf, offset)
    }
}
