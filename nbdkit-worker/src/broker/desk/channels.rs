//! The channels of those who may ask, and waiting for them.
//!
//! A channel is registered with epoll(7) while it is open, and found by its number: what a question
//! costs does not grow with the channels that are silent. Readiness is level-triggered: a channel
//! with a second question is reported again, after the others that are ready (epoll_wait(2)), so
//! that each has its turn.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nbdkit_api::endpoints::direct::Address;
use nbdkit_ipc::{Channel, FromBroker, ToBroker};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::super::rate::Rate;

/// Most events of one wait. The next wait begins with those that were left.
pub(super) const MOST_EVENTS: usize = 64;

/// What an event is of, besides channels: their numbers are larger.
pub(super) const LISTENER: u64 = 0;
pub(super) const TEMPLATE: u64 = 1;
pub(super) const THREADS: u64 = 2;

/// A worker's channel.
pub(super) struct Asker {
    /// Which client's worker; 0 for a template that serves all.
    pub(super) connection: u64,
    pub(super) link: Channel<FromBroker, ToBroker>,
    /// It alone has this number.
    pub(super) id: u64,
    pub(super) opening: Rate,
    pub(super) connecting: Rate,
    /// When the last question came, as a number that grows.
    last: u64,
    /// A question that came before it may be answered.
    pub(super) held: Option<ToBroker>,
    /// What the endpoint of its last first attempt has led to.
    pub(super) found: Option<(u32, Vec<Address>)>,
    awaits: Awaits,
    /// A line about its rate was logged.
    pub(super) reported: bool,
}

/// What comes next on a channel. Its end may come at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaits {
    Question,
    /// A thread answers its question.
    Thread,
    /// It has asked too often and has to wait.
    Time(Instant),
}

impl Awaits {
    /// What epoll(7) reports besides the end of a channel, which it always does. A further question
    /// stays in its queue until the last one is answered.
    fn events(self) -> EpollFlags {
        match self {
            Awaits::Question => EpollFlags::EPOLLIN,
            Awaits::Thread | Awaits::Time(_) => EpollFlags::empty(),
        }
    }
}

impl Asker {
    /// Whether it may have a question. If not, an event of its channel is the end.
    pub(super) fn may_ask(&self) -> bool {
        self.awaits == Awaits::Question
    }
}

/// What has happened.
#[derive(Debug, Default)]
pub(super) struct Events {
    pub(super) listener: bool,
    pub(super) template: bool,
    pub(super) threads: bool,
    /// The channels that may have something. Some may have been closed since.
    pub(super) channels: Vec<u64>,
}

/// All channels.
pub(super) struct Channels {
    epoll: Epoll,
    askers: BTreeMap<u64, Asker>,
    /// Those of workers by when their last question came.
    by_last: BTreeMap<u64, u64>,
    /// Those that have to wait, by how long.
    waiting: BTreeSet<(Instant, u64)>,
    /// Grows with each channel and each question.
    clock: u64,
}

impl Channels {
    /// None yet.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub(super) fn new() -> nix::Result<Channels> {
        Ok(Channels {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            askers: BTreeMap::new(),
            by_last: BTreeMap::new(),
            waiting: BTreeSet::new(),
            clock: THREADS,
        })
    }

    /// Has [`wait`](Self::wait) report when `fd` is readable, as `token`: [`LISTENER`],
    /// [`TEMPLATE`] or [`THREADS`].
    ///
    /// # Errors
    /// epoll_ctl(2)'s.
    pub(super) fn watch(&self, fd: impl AsFd, token: u64) -> nix::Result<()> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))
    }

    pub(super) fn len(&self) -> usize {
        self.askers.len()
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Asker> {
        self.askers.get_mut(&id)
    }

    /// The one of a worker whose last question came before those of all others.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.by_last.first_key_value().map(|(_, id)| *id)
    }

    /// One more channel.
    ///
    /// # Errors
    /// epoll_ctl(2)'s: ENOMEM, ENOSPC. The channel is closed.
    pub(super) fn insert(
        &mut self,
        connection: u64,
        link: Channel<FromBroker, ToBroker>,
        opening: Rate,
        connecting: Rate,
    ) -> nix::Result<()> {
        self.clock += 1;
        let (id, awaits) = (self.clock, Awaits::Question);
        self.epoll.add(&link, EpollEvent::new(awaits.events(), id))?;
        if connection != 0 {
            self.by_last.insert(id, id);
        }
        let asker = Asker {
            connection,
            link,
            id,
            opening,
            connecting,
            last: id,
            held: None,
            found: None,
            awaits,
            reported: false,
        };
        self.askers.insert(id, asker);
        Ok(())
    }

    /// Closes a channel.
    pub(super) fn remove(&mut self, id: u64) -> Option<Asker> {
        let asker = self.askers.remove(&id)?;
        // Closing alone deregisters nothing while another process has a copy of the descriptor: the
        // listener, for a moment.
        let _ = self.epoll.delete(&asker.link);
        self.by_last.remove(&asker.last);
        if let Awaits::Time(at) = asker.awaits {
            self.waiting.remove(&(at, id));
        }
        Some(asker)
    }

    /// A channel's question was accepted.
    pub(super) fn has_asked(&mut self, id: u64) {
        let Some(asker) = self.askers.get_mut(&id) else { return };
        self.clock += 1;
        if self.by_last.remove(&asker.last).is_some() {
            self.by_last.insert(self.clock, id);
        }
        asker.last = self.clock;
    }

    pub(super) fn set_awaits(&mut self, id: u64, awaits: Awaits) {
        let Some(asker) = self.askers.get_mut(&id) else { return };
        let before = std::mem::replace(&mut asker.awaits, awaits);
        if let Awaits::Time(at) = before {
            self.waiting.remove(&(at, id));
        }
        if let Awaits::Time(at) = awaits {
            self.waiting.insert((at, id));
        }
        if before.events() != awaits.events() {
            let mut event = EpollEvent::new(awaits.events(), id);
            if self.epoll.modify(&asker.link, &mut event).is_err() {
                self.remove(id);
            }
        }
    }

    /// How long it takes until the first of those that have to wait need not any more.
    pub(super) fn shortest_wait(&self) -> Option<Duration> {
        let (at, _) = self.waiting.first()?;
        // Rounded up, so as not to spin at the end.
        Some(at.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    /// Waits for something to happen, at most so long.
    ///
    /// # Errors
    /// epoll_wait(2)'s, but not EINTR.
    pub(super) fn wait(&mut self, most: Option<Duration>) -> nix::Result<Events> {
        let shortest = [most, self.shortest_wait()].into_iter().flatten().min();
        let timeout = shortest.map_or(EpollTimeout::NONE, |wait| {
            EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX)
        });
        let mut buffer = [EpollEvent::empty(); MOST_EVENTS];
        let count = match self.epoll.wait(&mut buffer, timeout) {
            Err(Errno::EINTR) => 0,
            count => count?,
        };
        let mut events = Events::default();
        for event in &buffer[..count] {
            match event.data() {
                LISTENER => events.listener = true,
                TEMPLATE => events.template = true,
                THREADS => events.threads = true,
                id => events.channels.push(id),
            }
        }
        self.end_waits(&mut events);
        Ok(events)
    }

    /// Those that had to wait until now may have a question.
    fn end_waits(&mut self, events: &mut Events) {
        if self.waiting.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(&(at, id)) = self.waiting.first()
            && at <= now
        {
            self.set_awaits(id, Awaits::Question);
            events.channels.push(id);
        }
    }
}
