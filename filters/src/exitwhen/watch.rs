//! The watcher: waits for events, looks when a worker asks, and tells the template.
//!
//! Files are noticed by inotify(7) on their directories, at once; where that does not work, as in
//! some network file systems, or while a directory is missing, within the time of `exit-when-poll`.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nbdkit_api::watcher::{Server, WatcherNeeds};
use nbdkit_api::{Result, Watcher, debug};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::Shared;
use super::event::Event;

/// What waits.
#[derive(Debug)]
pub(super) struct Watch {
    events: Vec<Event>,
    poll: Duration,
    shared: Arc<Shared>,
    /// Of the directories of files; `None` if this user has no more instances.
    directories: Option<Inotify>,
}

impl Watch {
    pub(super) fn new(events: Vec<Event>, poll: Duration, shared: Arc<Shared>) -> Result<Watch> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let files = events.iter().any(|event| event.file().is_some());
        let directories = files.then(|| Inotify::init(flags).ok()).flatten();
        Ok(Watch { events, poll, shared, directories })
    }

    /// Watches the directories that are there.
    fn watch_directories(&self) {
        let Some(inotify) = &self.directories else { return };
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        for directory in self.events.iter().filter_map(|event| event.file()?.parent()) {
            let _ = inotify.add_watch(directory, changes);
        }
    }

    /// Looks whether an event has happened, with or without running `scripts`; `None` if the server
    /// has ended meanwhile.
    fn look(&self, server: &Server<'_>, scripts: bool) -> Option<bool> {
        for event in self.events.iter().filter(|event| scripts || !event.is_script()) {
            if event.has_happened(server)? {
                debug!("exitwhen: an event has happened: {event:?}");
                return Some(true);
            }
        }
        Some(false)
    }

    /// Waits until there may be something to see: returns whether a worker asks, or time is over,
    /// so that scripts are to be run, too. Not for each change of a directory.
    fn wait(&self, server: &Server<'_>) -> Option<bool> {
        let own = self.events.iter().filter_map(Event::descriptor);
        let files = self.directories.iter().map(|it| (it.as_fd(), PollFlags::POLLIN));
        let asked = [(self.shared.ask.as_fd(), PollFlags::POLLIN)];
        let fds = asked.into_iter().chain(files).chain(own);
        let fds: Vec<PollFd<'_>> = fds.map(|(fd, flags)| PollFd::new(fd, flags)).collect();
        let next = Instant::now() + self.poll.max(Duration::from_millis(1));
        loop {
            let left = next.saturating_duration_since(Instant::now());
            // A millisecond is poll's resolution, and it waits 24 days at most.
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let ready = server.wait(&fds, timeout)?;
            if left < Duration::from_millis(1) || ready.first() == Some(&true) {
                return Some(true);
            }
            if ready.contains(&true) {
                return Some(false);
            }
        }
    }

    /// Serves until an event has happened or the server has ended (`None`).
    fn wait_for_event(&self, server: &Server<'_>) -> Option<()> {
        let mut scripts = true;
        loop {
            while self.directories.as_ref().is_some_and(|it| it.read_events().is_ok()) {}
            self.watch_directories();
            let _ = self.shared.ask.read();
            let asked = self.shared.asked().load(Ordering::SeqCst);
            let happened = self.look(server, scripts)?;
            self.shared.happened().store(happened.into(), Ordering::SeqCst);
            if scripts {
                self.shared.looked().store(asked, Ordering::SeqCst);
            }
            self.shared.changed.signal();
            if happened {
                return Some(());
            }
            scripts = self.wait(server)?;
        }
    }
}

impl Watcher for Watch {
    fn needs(&self) -> WatcherNeeds {
        WatcherNeeds {
            looks_for: self.events.iter().filter_map(|event| event.file().cloned()).collect(),
            programs: self.events.iter().any(Event::is_script),
            ..WatcherNeeds::default()
        }
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let own = self.events.iter().filter_map(|event| Some(event.descriptor()?.0));
        let shared =
            [self.shared.ask.as_fd(), self.shared.clients.as_fd(), self.shared.watcher.as_fd()];
        shared.into_iter().chain(self.directories.iter().map(AsFd::as_fd)).chain(own).collect()
    }

    fn run(&self, server: &Server<'_>) {
        let Ok(_place) = self.shared.watcher.take() else {
            return nbdkit_api::error!("exitwhen: no lock for the watcher");
        };
        if self.wait_for_event(server).is_none() {
            return;
        }
        // What has happened stays so. Later clients know without a look, and each that leaves may
        // be the last.
        self.shared.looked().store(u64::MAX, Ordering::SeqCst);
        self.shared.changed.signal();
        loop {
            server.notify();
            let asked = PollFd::new(self.shared.ask.as_fd(), PollFlags::POLLIN);
            if server.wait(&[asked], PollTimeout::NONE).is_none() {
                return;
            }
            let _ = self.shared.ask.read();
        }
    }
}
