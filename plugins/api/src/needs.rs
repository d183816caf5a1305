//! What the processes of a stack may touch, as data: the sandbox opens these and nothing else.

use std::collections::BTreeSet;
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

/// Which sockets a worker may make by itself: what `--allow-net` allows, and what code in a file
/// declares, which cannot ask a broker. What a built-in plugin connects to it declares
/// ([`Needs::connect_to`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Network {
    /// None.
    #[default]
    None,
    /// Unix domain sockets.
    Unix,
    /// TCP to [`Needs::tcp_ports`], UDP and name resolution, and Unix domain sockets.
    Ports,
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
    /// The TCP ports that code connects to by itself, where `network` is [`Network::Ports`].
    pub tcp_ports: BTreeSet<u16>,
    /// Reads the system's certificates of authorities: a library that speaks TLS.
    pub trust_roots: bool,
    /// Runs programs: fork and exec of what the system's directories hold.
    pub programs: bool,
    /// Starts threads of its own (those of the server's pool do not count).
    pub threads: bool,
    /// May stop the server for all clients (`nbdkit_shutdown`).
    pub shutdown: bool,
    /// Bytes of memory that serving one client may take beyond what requests do: caches.
    pub memory: u64,
    /// Bytes of memory that `after_fork` and `warm_up` may take beyond that, and give back.
    pub memory_at_start: u64,
    /// Has code of a file, which makes the calls that libraries in C make.
    pub in_file: bool,
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
        Needs { undeclared: true, in_file: true, shutdown: true, ..Needs::default() }
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
        self.programs
            || self.trust_roots
            || self.paths.iter().any(|(_, access)| *access > Access::Look)
    }

    /// How closely a stack with these needs can be confined. Nothing else decides that.
    pub fn level(&self) -> Level {
        if self.undeclared {
            Level::Compat
        } else if self.programs {
            Level::Programs
        } else {
            Level::Strict
        }
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

    /// May take so many bytes more of memory for one client.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Needs {
        self.memory = self.memory.saturating_add(bytes);
        self
    }

    /// May take so many bytes more of memory before the first client, and gives them back.
    #[must_use]
    pub fn memory_at_start(mut self, bytes: u64) -> Needs {
        self.memory_at_start = self.memory_at_start.saturating_add(bytes);
        self
    }

    /// May make sockets of this kind.
    #[must_use]
    pub fn network(mut self, network: Network) -> Needs {
        self.network = self.network.max(network);
        self
    }

    /// May connect to this TCP port by itself, and look up names.
    #[must_use]
    pub fn tcp_port(mut self, port: u16) -> Needs {
        self.tcp_ports.insert(port);
        self.network(Network::Ports)
    }

    /// May read the system's certificates of authorities.
    #[must_use]
    pub fn trust_roots(mut self) -> Needs {
        self.trust_roots = true;
        self
    }

    /// The union with another layer's needs.
    pub fn merge(&mut self, other: Needs) {
        self.declared.extend(other.declared);
        self.endpoints.extend(other.endpoints);
        self.paths.extend(other.paths);
        self.network = self.network.max(other.network);
        self.tcp_ports.extend(other.tcp_ports);
        self.trust_roots |= other.trust_roots;
        self.programs |= other.programs;
        self.threads |= other.threads;
        self.shutdown |= other.shutdown;
        self.memory = self.memory.saturating_add(other.memory);
        self.memory_at_start = self.memory_at_start.saturating_add(other.memory_at_start);
        self.in_file |= other.in_file;
        self.undeclared |= other.undeclared;
    }
}

/// How closely a stack is confined unless the command line says otherwise: `--sandbox`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Everything that the stack touches is declared, and nothing else can be touched.
    Strict,
    /// The stack runs programs, which work as those of the final user do.
    Programs,
    /// The stack has code that does not declare what it needs.
    Compat,
}

impl Level {
    /// As `--sandbox` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Strict => "strict",
            Level::Programs => "programs",
            Level::Compat => "compat",
        }
    }
}

pub use nbdkit_common::Isolation;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_confined_layer_decides_the_level() {
        let level = |layers: &[Needs]| {
            let mut needs = Needs::nothing();
            layers.iter().for_each(|layer| needs.merge(layer.clone()));
            needs.level()
        };
        let declared = Needs::nothing().path("/", Access::Write).tcp_port(443).trust_roots();
        let (programs, undeclared) = (Needs::nothing().programs(), Needs::undeclared());
        assert_eq!(level(&[]), Level::Strict);
        assert_eq!(level(&[declared.clone(), Needs::nothing().shutdown()]), Level::Strict);
        assert_eq!(level(&[declared.clone(), programs.clone()]), Level::Programs);
        assert_eq!(level(&[programs, undeclared, declared]), Level::Compat);
    }

    #[test]
    fn the_memory_of_all_layers_is_added_up() {
        let mut needs = Needs::nothing().memory(100);
        needs.merge(Needs::nothing().memory(20).memory(3).memory_at_start(7));
        assert_eq!((needs.memory, needs.memory_at_start), (123, 7));
        needs.merge(Needs::nothing().memory(u64::MAX));
        assert_eq!(needs.memory, u64::MAX);
    }

    #[test]
    fn ports_of_two_layers_are_both_allowed_and_any_port_is_more_than_some() {
        let mut needs = Needs::nothing().tcp_port(80);
        needs.merge(Needs::nothing().tcp_port(443));
        assert_eq!(needs.network, Network::Ports);
        assert_eq!(needs.tcp_ports, BTreeSet::from([80, 443]));
        needs.merge(Needs::nothing().network(Network::Inet));
        assert_eq!(needs.network, Network::Inet);
    }
}
