//! nbdkit-exitwhen-filter(1): stops the server once something has happened outside and no client is
//! left.
//!
//! A watcher, [`watch`], waits for the events, and notes in shared memory that one has happened. A
//! worker that gets a client asks the watcher to look once more, and refuses the client if it has;
//! the template stops the server.

mod event;
mod watch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nbdkit_api::shared::{SharedEvent, SharedWords};
use nbdkit_api::{
    Client, DataPath, Direction, Errno, Error, Filter, Layer, Needs, NextConfig, Open, OpenLayer,
    Result, ResultExt, Slot, ThreadModel, Value, Watcher, client, debug,
};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::presence::{Place, Places};
use event::Event;
use watch::Watch;

/// How often events are looked for that nothing announces, unless the command line says.
const POLL: Duration = Duration::from_secs(60);

/// The filter and, once ready, what its processes share.
#[derive(Debug, Default)]
pub struct ExitWhen {
    events: Vec<Event>,
    poll: Option<Duration>,
    shared: Option<Arc<Shared>>,
    /// Until the watcher has it.
    watch: Mutex<Option<Watch>>,
}

/// What watcher, workers and template share.
#[derive(Debug)]
struct Shared {
    /// Whether an event has happened; how many looks workers have asked for; up to which one the
    /// watcher has looked.
    words: SharedWords,
    /// The words have changed.
    changed: SharedEvent,
    /// Asks the watcher for a look.
    ask: EventFd,
    /// The clients.
    clients: Arc<Places>,
    /// The watcher's place, while it lives.
    watcher: Arc<Places>,
}

impl Shared {
    fn new() -> Result<Shared> {
        Ok(Shared {
            words: SharedWords::new(3)?,
            changed: SharedEvent::new()?,
            ask: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .or_error(|| "eventfd")?,
            clients: Places::new("exitwhen", i64::MAX as u64)?,
            watcher: Places::new("exitwhen", 1)?,
        })
    }

    fn happened(&self) -> &AtomicU64 {
        &self.words[0]
    }

    fn asked(&self) -> &AtomicU64 {
        &self.words[1]
    }

    fn looked(&self) -> &AtomicU64 {
        &self.words[2]
    }

    fn has_happened(&self) -> bool {
        self.happened().load(Ordering::SeqCst) != 0
    }

    /// Asks the watcher for a look. Returns its number.
    fn ask_for_look(&self) -> u64 {
        let number = self.asked().fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        // A counter that is full has rung, too.
        let _ = self.ask.write(1);
        number
    }

    /// Whether an event has happened by now: the watcher looks again. Without a watcher, whether it
    /// is known that one has.
    ///
    /// # Errors
    /// ESHUTDOWN: the client has gone, or the server stops.
    fn look(&self, client: &Client) -> Result<bool> {
        let number = self.ask_for_look();
        self.changed.wait_until(Some(client), || {
            let looked = self.looked().load(Ordering::SeqCst) >= number;
            Ok((looked || !self.watcher.occupied()?).then_some(()))
        })?;
        Ok(self.has_happened())
    }

    /// In the template: stops the server if an event has happened and there is no client.
    fn stop_if_over(&self) {
        if self.has_happened() && matches!(self.clients.occupied(), Ok(false)) {
            debug!("exitwhen: exiting, as an event has happened and no client is left");
            client::shutdown();
        }
    }
}

impl Filter for ExitWhen {
    fn name(&self) -> &str {
        "exitwhen"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit exitwhen filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "exit-when-file-created=FILENAME    Exit when a file is created.\n\
             exit-when-file-deleted=FILENAME    Exit when a file is deleted.\n\
             exit-when-pipe-closed=FD           Exit when a pipe is closed.\n\
             exit-when-process-exits=PID        Exit when a process exits.\n\
             exit-when-script=SCRIPT            Exit when a script exits with status 88.\n\
             exit-when-poll=SECS                How often to look (default 60).",
        )
    }

    fn dump_plugin(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        ["file_created", "file_deleted", "process_exits", "pipe_closed", "script"]
            .iter()
            .try_for_each(|event| writeln!(out, "exitwhen_{event}=yes"))
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match (key, Event::parse(key, value)?) {
            (_, Some(event)) => self.events.push(event),
            ("exit-when-poll", None) => {
                self.poll = Some(Duration::from_secs(value.integer::<u32>(key)?.into()));
            }
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        if self.events.is_empty() {
            return Ok(());
        }
        let shared = Arc::new(Shared::new()?);
        let events = std::mem::take(&mut self.events);
        let watch = Watch::new(events, self.poll.unwrap_or(POLL), Arc::clone(&shared))?;
        self.shared = Some(shared);
        self.watch = Mutex::new(Some(watch));
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        below.shutdown()
    }

    fn watcher(&self) -> Option<Box<dyn Watcher>> {
        let watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Box::new(watch))
    }

    fn notified(&self) {
        self.worker_ended();
    }

    fn worker_ended(&self) {
        if let Some(shared) = &self.shared {
            shared.stop_if_over();
        }
    }

    /// Counts the client from now on, and refuses it if it comes too late.
    fn preconnect(&self, below: &Arc<Layer>, client: &Arc<Client>, readonly: bool) -> Result<()> {
        if let Some(shared) = &self.shared {
            let visit = || {
                // With so many places there is always one.
                let place = shared.clients.take()?;
                Ok(Visit { place, shared: Arc::clone(shared) })
            };
            client.keep_one(visit)?;
            if shared.look(client)? {
                let why = "exitwhen: an event has happened, no new clients are accepted";
                return Err(Error::new(Errno::ESHUTDOWN, why));
            }
        }
        below.preconnect(client, readonly)
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(Handle))
    }
}

/// A client, until its connection is over.
struct Visit {
    place: Option<Place>,
    shared: Arc<Shared>,
}

impl Drop for Visit {
    /// The watcher looks whether an event has happened meanwhile, and has the template stop the
    /// server if nobody is left.
    fn drop(&mut self) {
        self.place = None;
        self.shared.ask_for_look();
    }
}

struct Handle;

impl OpenLayer for Handle {
    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Transparent
    }
}
