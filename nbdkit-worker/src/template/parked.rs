//! Which clients may need a file again that was replaced at its path: those that are parked, and
//! those whose workers lived when it was replaced, until they have ended otherwise than by being
//! parked.

#![forbid(unsafe_code)]

use std::collections::HashSet;

use nbdkit_ipc::WorkerExit;
use nbdkit_ipc::messages::Serve;

/// Clients of this template that may be parked, as far as replaced files go.
#[derive(Debug, Default)]
pub(super) struct ParkedClients {
    /// Whether any client may be.
    possible: bool,
    /// How many are.
    parked: usize,
    /// Whether a file was replaced that some of them may have.
    any_replaced: bool,
    /// Connections whose workers lived when a file was replaced.
    waiting: HashSet<u64>,
}

impl ParkedClients {
    /// A client has come, or come back, and gets a worker.
    pub(super) fn served(&mut self, serve: &Serve) {
        self.possible |= serve.park_after.is_some();
        if serve.parked.is_some() {
            // It may have been parked with a template before this one.
            self.parked = self.parked.saturating_sub(1);
            // Which file it has open is not known here.
            if self.any_replaced {
                self.waiting.insert(serve.connection);
            }
        }
    }

    /// A worker has ended.
    pub(super) fn ended(&mut self, connection: u64, exit: WorkerExit) {
        self.waiting.remove(&connection);
        self.parked += usize::from(exit == WorkerExit::Parked);
        self.any_replaced &= self.any();
    }

    /// A file was replaced while these connections had workers. Returns whether any client may need
    /// it again.
    pub(super) fn replaced(&mut self, alive: impl Iterator<Item = u64>) -> bool {
        if self.possible {
            self.waiting.extend(alive);
        }
        self.any_replaced = self.any();
        self.any_replaced
    }

    /// Whether any client may need a replaced file again.
    pub(super) fn any(&self) -> bool {
        self.parked > 0 || !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdkit_ipc::StackId;
    use nbdkit_ipc::messages::{ParkedState, Peer};
    use std::time::Duration;

    fn serve(connection: u64, parked: bool) -> Serve {
        Serve {
            connection,
            stack: StackId::ONLY,
            peer: Peer::default(),
            broker: false,
            park_after: Some(Duration::from_secs(1)),
            parked: parked.then(|| ParkedState::of(&()).unwrap()),
        }
    }

    #[test]
    fn a_replaced_file_is_kept_for_clients_that_are_parked_and_for_those_that_may_be() {
        let mut clients = ParkedClients::default();
        assert!(!clients.replaced([7].into_iter()), "nobody can be parked");
        clients.served(&serve(1, false));
        clients.served(&serve(2, false));
        clients.ended(1, WorkerExit::Parked);
        assert!(clients.replaced([2].into_iter()));
        clients.served(&serve(3, false));
        clients.ended(3, WorkerExit::Clean);
        clients.ended(2, WorkerExit::Parked);
        assert!(clients.any());
        // Back, with the replaced file open, and parked again.
        clients.served(&serve(1, true));
        clients.served(&serve(2, true));
        clients.ended(2, WorkerExit::Clean);
        assert!(clients.any());
        clients.ended(1, WorkerExit::Parked);
        clients.served(&serve(1, true));
        clients.ended(1, WorkerExit::Clean);
        assert!(!clients.any());
    }
}
