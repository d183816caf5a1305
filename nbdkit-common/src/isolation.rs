//! How clients are divided over processes: of the command line, the control channel, and what a
//! plugin can do.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// How clients are divided over processes. The order of the variants is the one on the control
/// channel; [`Isolation::Shared`] is the lesser, as what holds for one layer holds for the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// A process of its own for every client.
    Connection,
    /// One process for all clients, on threads: for state that lives in ordinary memory.
    Shared,
}

impl Ord for Isolation {
    fn cmp(&self, other: &Isolation) -> Ordering {
        let separates = |it: &Isolation| *it == Isolation::Connection;
        separates(self).cmp(&separates(other))
    }
}

impl PartialOrd for Isolation {
    fn partial_cmp(&self, other: &Isolation) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Isolation {
    /// As `--isolation` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Isolation::Connection => "connection",
            Isolation::Shared => "shared",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Isolation::{Connection, Shared};

    #[test]
    fn one_layer_that_shares_makes_the_stack_share() {
        assert_eq!([Connection.min(Shared), Shared.min(Connection)], [Shared; 2]);
        assert_eq!(Connection.min(Connection), Connection);
    }
}
