//! The number of clients that there are descriptors for. The soft limit is for programs that use
//! select(2), which this one does not: it is raised to the hard limit. getrlimit(2).

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors for a client that is served: its worker's channel and the handle on its process. A
/// template that serves all clients has the client's socket and what the plugin opens for it.
const OF_CLIENT: usize = 2;

/// And its socket, if it may be parked.
const OF_PARKED: usize = 3;

/// Descriptors that are open for a moment: both ends of the next client's channels, an accepted
/// socket, what a message brings, files of /proc, the system log, the next template's channel and
/// broker.
const TRANSIENT: usize = 14;

/// The number of clients that there are descriptors for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// Descriptors that this process may have.
    pub(crate) limit: usize,
    /// Clients that are served at a time.
    pub(crate) served: usize,
    /// Clients that wait.
    pub(crate) waiting: usize,
    /// Descriptors for each client that is served.
    of_client: usize,
}

/// Raises the soft limit, and returns how many clients there are descriptors for beside those that
/// are open now. `parking`: whether they may be parked.
pub(crate) fn make_room(parking: bool) -> Room {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    // It fails only if a security module denies it; then there are fewer descriptors.
    let raised = soft == hard || setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let limit = usize::try_from(if raised { hard } else { soft }).unwrap_or(usize::MAX);
    // The lowest number that is free: those below it are open.
    let open = File::open("/dev/null")
        .map_or(limit, |file| usize::try_from(file.as_raw_fd()).unwrap_or(limit));
    room(limit, open, if parking { OF_PARKED } else { OF_CLIENT })
}

fn room(limit: usize, open: usize, of_client: usize) -> Room {
    let free = limit.saturating_sub(open + TRANSIENT);
    // At least a sixteenth is for clients that wait.
    let served = ((free - free / 16) / of_client).max(1);
    Room { limit, served, waiting: free / 16, of_client }
}

impl Room {
    /// The same with at most this many clients: the other descriptors are for clients that wait.
    pub(crate) fn for_clients(self, most: usize) -> Room {
        let served = self.served.min(most);
        Room { served, waiting: self.waiting + (self.served - served) * self.of_client, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_fits_is_below_the_limit_and_few_descriptors_are_enough_for_one() {
        for limit in [0, 20, 32, 64, 256, 1024, 4096, 20_000, usize::MAX] {
            for of_client in [OF_CLIENT, OF_PARKED] {
                let all = room(limit, 16, of_client);
                assert!(all.served >= 1);
                let used = |room: Room| room.served * of_client + room.waiting;
                assert!(used(all) <= limit.saturating_sub(30).max(of_client), "{all:?}");
                let few = all.for_clients(10);
                assert!(few.served <= 10 && used(few) <= used(all), "{few:?}");
            }
        }
        assert_eq!(
            room(4096, 16, OF_CLIENT).for_clients(1024),
            Room { limit: 4096, served: 1024, waiting: 2018, of_client: OF_CLIENT }
        );
        assert!(room(1024, 16, OF_CLIENT).served > 400);
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let room = make_room(false);
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
        assert_eq!(room.limit as u64, hard);
    }
}
