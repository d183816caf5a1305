//! What the processes of a stack may touch, as data: the sandbox opens these and nothing else.

use std::path::PathBuf;

use crate::endpoints::Endpoint;
use crate::paths::Declared;

/// What may be done beneath a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Look whether it is there, and open nothing.
    Look,
    /// Open for reading, list a directory.
    Read,
    /// Also write, truncate, create and remove beneath it.
    Write,
    /// Remove empty directories beneath it, and nothing else: where a directory of the stack's own
    /// is removed from.
    RemoveDirs,
}

/// Which sockets a worker may make by itself: what `--allow-net` allows. What a plugin connects to
/// it declares ([`Needs::connect_to`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Network {
    /// None.
    #[default]
    None,
    /// Unix domain sockets.
    Unix,
    /// TCP, UDP and name resolution, and Unix domain sockets.
    Inet,
}

/// Everything that a layer needs from outside its own process once it serves clients.
/// Descriptors that were opened before that need no entry here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// What connections open by [`paths::open`](crate::paths::open), and nothing else: where there
    /// is a broker, it opens it.
    pub declared: Vec<Declared>,
    /// What connections connect to by [`endpoints::connect`](crate::endpoints::connect): where
    /// there is a broker, it connects.
    pub endpoints: Vec<Endpoint>,
    /// Paths (absolute) that connections reach in other ways, and what for.
    pub paths: Vec<(PathBuf, Access)>,
    /// Sockets.
    pub network: Network,
    /// Runs programs: fork and exec of what the system's directories hold.
    pub programs: bool,
    /// Starts threads of its own (those of the server's pool do not count).
    pub threads: bool,
    /// May stop the server for all clients (`nbdkit_shutdown`).
    pub shutdown: bool,
    /// Runs code that does not say what it needs: it cannot be confined strictly.
    pub undeclared: bool,
}

impl Needs {
    /// Nothing at all: the stack works on what is in memory or already open.
    pub fn nothing() -> Needs {
        Needs::default()
    }

    /// What code needs that does not say: anything.
    pub fn undeclared() -> Needs {
        Needs { undeclared: true, shutdown: true, ..Needs::default() }
    }

    /// One more path that [`paths::open`](crate::paths::open) opens.
    #[must_use]
    pub fn declare(mut self, declared: Declared) -> Needs {
        self.declared.push(declared);
        self
    }

    /// One more endpoint that [`endpoints::connect`](crate::endpoints::connect) connects to.
    #[must_use]
    pub fn connect_to(mut self, endpoint: Endpoint) -> Needs {
        self.endpoints.push(endpoint);
        self
    }

    /// The same by a filter that opens what is below it read-only.
    #[must_use]
    pub fn read_only(mut self) -> Needs {
        self.declared.iter_mut().for_each(|declared| declared.writable = false);
        self
    }

    /// Whether anything that is declared may be opened for writing.
    pub fn writes(&self) -> bool {
        self.declared.iter().any(|declared| declared.writable)
    }

    /// Whether a broker opens the paths that are declared, in a strict sandbox. Not where programs
    /// run or code that declares nothing, which open paths by themselves.
    pub fn paths_are_brokered(&self) -> bool {
        !self.declared.is_empty() && !self.programs && !self.undeclared
    }

    /// Whether a broker connects to the endpoints that are declared, in a strict sandbox: then
    /// neither this process nor a program that it runs has sockets. Not where code runs that
    /// declares nothing, which may have threads when the broker would have to be forked.
    pub fn endpoints_are_brokered(&self) -> bool {
        !self.endpoints.is_empty() && !self.undeclared
    }

    /// Whether code of the stack opens paths in other ways than by
    /// [`paths::open`](crate::paths::open).
    pub fn opens_itself(&self) -> bool {
        self.programs || self.paths.iter().any(|(_, access)| *access > Access::Look)
    }

    /// One more path.
    #[must_use]
    pub fn path(mut self, path: impl Into<PathBuf>, access: Access) -> Needs {
        self.paths.push((path.into(), access));
        self
    }

    /// May run programs.
    #[must_use]
    pub fn programs(mut self) -> Needs {
        self.programs = true;
        self
    }

    /// May start threads.
    #[must_use]
    pub fn threads(mut self) -> Needs {
        self.threads = true;
        self
    }

    /// May stop the server.
    #[must_use]
    pub fn shutdown(mut self) -> Needs {
        self.shutdown = true;
        self
    }

    /// May make sockets of this kind.
    #[must_use]
    pub fn network(mut self, network: Network) -> Needs {
        self.network = self.network.max(network);
        self
    }

    /// The union with another layer's needs.
    pub fn merge(&mut self, other: Needs) {
        self.declared.extend(other.declared);
        self.endpoints.extend(other.endpoints);
        self.paths.extend(other.paths);
        self.network = self.network.max(other.network);
        self.programs |= other.programs;
        self.threads |= other.threads;
        self.shutdown |= other.shutdown;
        self.undeclared |= other.undeclared;
    }
}

pub use nbdkit_common::Isolation;
