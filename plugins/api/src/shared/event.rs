//! Waiting until another process has changed something in shared memory.
//!
//! A waiter sleeps in futex(2), and looks from time to time whether its client is still there:
//! futex(2) waits for no socket, and what waits for both, epoll(7), workers do not have. A look is
//! two system calls, after 20 ms at first and at most five times a second later.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::client::{self, Client};
use crate::error::{Errno, Result};
use crate::shared::{SharedWords, access, futex};

/// The futex counts signals; its highest bit is set if there may be waiters.
const WAITED_FOR: u32 = 1 << 31;

/// How long to sleep before the first look, and at most.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LAST_LOOK: Duration = Duration::from_millis(200);

/// What processes signal to each other that a condition in shared memory may have changed. Made
/// before the first fork.
#[derive(Debug)]
pub struct SharedEvent {
    words: SharedWords,
}

impl SharedEvent {
    /// # Errors
    /// ENOMEM.
    pub fn new() -> Result<SharedEvent> {
        Ok(SharedEvent { words: SharedWords::new(1)? })
    }

    fn futex(&self) -> &AtomicU32 {
        futex::in_word(&self.words[0])
    }

    /// Wakes all who wait, in all processes. To be called after the change that they wait for: it
    /// is visible to waiters that this wakes, and to later ones. Costs a system call only if there
    /// may be waiters.
    pub fn signal(&self) {
        let count = |seen: u32| Some(seen.wrapping_add(1) & !WAITED_FOR);
        access::step();
        let seen = self.futex().fetch_update(Ordering::AcqRel, Ordering::Acquire, count);
        access::step();
        if seen.is_ok_and(|seen| seen & WAITED_FOR != 0) {
            futex::wake(self.futex(), i32::MAX);
        }
        access::step();
    }

    /// Waits until `condition` returns a value. It is asked at once, after each signal, and now and
    /// then in between, so that it may also ask whether another process is alive. No signal is
    /// lost: the condition is asked after the waiter has announced itself.
    ///
    /// `client` is the one in whose name this is, `None` for what outlives connections.
    ///
    /// # Errors
    /// ESHUTDOWN: the client has gone, or the server stops. Those of `condition`.
    pub fn wait_until<T>(
        &self,
        client: Option<&Client>,
        mut condition: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        let mut patience = FIRST_LOOK;
        loop {
            access::step();
            let seen = self.futex().fetch_or(WAITED_FOR, Ordering::AcqRel) | WAITED_FOR;
            access::step();
            if let Some(value) = condition()? {
                return Ok(value);
            }
            if client::is_gone(client) {
                return Err(client::closing());
            }
            if futex::wait(self.futex(), seen, patience) == Err(Errno::ETIMEDOUT) {
                patience = (patience * 2).min(LAST_LOOK);
            }
        }
    }

    /// Whether there have been waiters since the last signal.
    #[cfg(test)]
    pub(super) fn is_waited_for(&self) -> bool {
        self.futex().load(Ordering::SeqCst) & WAITED_FOR != 0
    }

    /// For the fuzz targets, which are hostile workers: any state.
    #[cfg(any(test, feature = "fuzz"))]
    #[doc(hidden)]
    pub fn scribble(&self, word: u32) {
        self.futex().store(word, Ordering::SeqCst);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::client::Peer;
    use crate::shared::deaths::{self, Child};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::time::Instant;

    /// A client, and its end of the connection.
    pub(in crate::shared) fn client() -> (Arc<Client>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = Some(Arc::new(OwnedFd::from(ours)));
        (Client::new(1, Peer::default(), socket, Box::new(|| ())), theirs)
    }

    struct Shared {
        event: SharedEvent,
        words: SharedWords,
    }

    impl Shared {
        fn new() -> Shared {
            Shared { event: SharedEvent::new().unwrap(), words: SharedWords::new(2).unwrap() }
        }

        fn set(&self, word: usize, value: u64) {
            access::store(&self.words[word], value);
            self.event.signal();
        }

        fn wait(&self, client: Option<&Client>, word: usize, value: u64) -> Result<()> {
            self.event
                .wait_until(client, || Ok((access::load(&self.words[word]) >= value).then_some(())))
        }
    }

    /// Each waits for the other, so a signal that is lost costs at least [`FIRST_LOOK`].
    #[test]
    fn no_signal_is_lost_between_two_processes() {
        const ROUNDS: u64 = 10_000;
        let shared = Shared::new();
        let start = Instant::now();
        let other = Child::new(|| {
            for round in 1..=ROUNDS {
                shared.wait(None, 0, round).unwrap();
                shared.set(1, round);
            }
        });
        for round in 1..=ROUNDS {
            shared.set(0, round);
            shared.wait(None, 1, round).unwrap();
        }
        other.join();
        // Were all lost, it would take 400 seconds.
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    }

    #[test]
    fn a_signal_wakes_all_who_wait() {
        let shared = Shared::new();
        let waiters: Vec<_> = (0..5)
            .map(|_| {
                Child::new(|| {
                    shared.words[1].fetch_add(1, Ordering::SeqCst);
                    shared.wait(None, 0, 1).unwrap();
                })
            })
            .collect();
        while shared.words[1].load(Ordering::SeqCst) < 5 {
            std::thread::yield_now();
        }
        shared.set(0, 1);
        waiters.into_iter().for_each(Child::join);
    }

    #[test]
    fn a_wait_ends_with_its_client() {
        let shared = Shared::new();
        let (client, socket) = client();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| shared.wait(Some(&client), 0, 1));
            while !shared.event.is_waited_for() {
                std::thread::yield_now();
            }
            drop(socket);
            let error = waiter.join().unwrap().unwrap_err();
            assert_eq!(error.errno(), Errno::ESHUTDOWN);
        });
        // What is so already need not be waited for.
        shared.set(0, 1);
        shared.wait(Some(&client), 0, 1).unwrap();
    }

    /// As when the server stops: it shuts the socket down for reading.
    #[test]
    fn a_wait_ends_with_the_server() {
        let shared = Shared::new();
        let (client, _socket) = client();
        let socket = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&client.socket().unwrap()),
            nix::sys::socket::Shutdown::Read,
        );
        socket.unwrap();
        assert_eq!(shared.wait(Some(&client), 0, 1).unwrap_err().errno(), Errno::ESHUTDOWN);
    }

    #[test]
    fn a_signaller_or_waiter_that_dies_at_any_step_holds_up_nobody() {
        deaths::alone(
            "shared::event::tests::a_signaller_or_waiter_that_dies_at_any_step_holds_up_nobody",
            || {
                let goes_on = |shared: &Shared| {
                    let waiter = Child::new(|| shared.wait(None, 0, 7).unwrap());
                    shared.set(0, 7);
                    waiter.join();
                };
                let check = |shared: Shared, _: &str| goes_on(&shared);
                deaths::at_every_step(Shared::new, |shared| shared.set(0, 1), check);
                // A process waits for the one that dies, and looks for the change itself.
                let make = || {
                    let shared = Arc::new(Shared::new());
                    let waiter = Child::new(|| shared.wait(None, 0, 1).unwrap());
                    while !shared.event.is_waited_for() {
                        std::thread::yield_now();
                    }
                    (shared, waiter)
                };
                deaths::at_every_step(
                    make,
                    |(shared, _)| shared.set(0, 1),
                    |(shared, waiter), _| {
                        goes_on(&shared);
                        waiter.join();
                    },
                );
                // A waiter dies.
                let make = || {
                    let shared = Arc::new(Shared::new());
                    let setter = Child::new(|| {
                        while !shared.event.is_waited_for() {
                            if shared.words[1].load(Ordering::SeqCst) != 0 {
                                return;
                            }
                            std::thread::yield_now();
                        }
                        shared.set(0, 1);
                    });
                    (shared, setter)
                };
                deaths::at_every_step(
                    make,
                    |(shared, _)| shared.wait(None, 0, 1).unwrap(),
                    |(shared, setter), _| {
                        shared.words[1].store(1, Ordering::SeqCst);
                        setter.join();
                        goes_on(&shared);
                    },
                );
            },
        );
    }
}
