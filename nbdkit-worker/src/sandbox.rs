//! Confines the template, and thereby every worker, to what the stack has declared to need.
//!
//! The layers, in order: [`namespaces`] while the process may still make them; another user, no
//! capabilities, no new privileges ([`crate::privileges`]); [`paths`] (Landlock); [`filter`]
//! (seccomp), whose lists are in [`policy`]. A fork inherits all of them, so a connection costs one
//! short filter more, which denies what only the template needs.
//!
//! The levels (`--sandbox`): `strict` has every layer. `programs`, for stacks that run scripts,
//! does not restrict network, paths and namespaces, and keeps root's capabilities about files, so
//! that scripts that people paste work as they do in nbdkit. `compat`, for code that declares
//! nothing, does not restrict network and paths. Both deny only what no server of disks calls.
//! `off` changes the user and nothing else.
//!
//! A layer that this kernel does not have is logged once, and the server starts without it, unless
//! the command line demands `--sandbox=strict`.

#![forbid(unsafe_code)]

mod filter;
mod namespaces;
mod paths;
mod policy;
mod skip;

use nbdkit_api::log::notice;
use nbdkit_api::{Access, Error, Isolation, Needs, Network, Result, ResultExt, debug};
use nbdkit_ipc::messages::{Allowed, Sandbox as Level};
use nbdkit_sandbox::landlock::lacks;
use nbdkit_sandbox::seccomp::Program;
use nbdkit_sandbox::threads::{self, Statuses};

use crate::privileges::{self, Files, failed};
use crate::process;
use paths::Rules;
pub(crate) use skip::landlock;
pub(crate) use skip::{Layer, has_filters, skips};

/// How this process is confined, and what follows for its forks.
pub(crate) struct Sandbox {
    level: Level,
    /// Whether the command line has `--sandbox=strict`: then no layer may be missing.
    demanded: bool,
    needs: Needs,
    /// Whether one process serves all clients.
    shared: bool,
    /// Whether this kernel has filters.
    filters: bool,
    /// The filters of the template, from [`prepare`](Self::prepare) on, until they are installed.
    of_template: Vec<Program>,
    /// The filter that each worker installs, compiled by the template.
    given_up: Option<Program>,
    /// Whether this process is in its namespaces already.
    separated: bool,
}

impl Sandbox {
    /// `wanted`: the level of the command line. Without one it follows from the needs
    /// ([`Needs::level`]).
    pub(crate) fn new(wanted: Option<Level>, needs: Needs, isolation: Isolation) -> Sandbox {
        let level = wanted.unwrap_or(match needs.level() {
            nbdkit_api::Level::Strict => Level::Strict,
            nbdkit_api::Level::Programs => Level::Programs,
            nbdkit_api::Level::Compat => Level::Compat,
        });
        match level {
            Level::Off => notice("--sandbox=off: clients are served without a sandbox"),
            Level::Compat if needs.undeclared => {
                notice("sandbox=compat: this plugin or filter does not declare what it needs");
            }
            Level::Programs => debug!("sandbox=programs: scripts work as the final user's do"),
            Level::Compat | Level::Strict => {}
        }
        debug!("sandbox={} isolation={}", name(level), isolation.as_str());
        let shared = isolation == Isolation::Shared;
        let demanded = wanted == Some(Level::Strict);
        Sandbox {
            level,
            demanded,
            needs,
            shared,
            filters: has_filters(),
            of_template: Vec::new(),
            given_up: None,
            separated: false,
        }
    }

    /// Whether there is any sandbox at all.
    pub(crate) fn is_on(&self) -> bool {
        self.level != Level::Off
    }

    /// Adds what the command line allows: `--allow-path`, `--allow-net`.
    ///
    /// # Errors
    /// The level restricts neither paths nor the network; a path does not exist.
    pub(crate) fn allowing(mut self, allowed: &Allowed) -> Result<Sandbox> {
        if *allowed == Allowed::default() {
            return Ok(self);
        }
        if self.level != Level::Strict {
            return Err(Error::msg(format!(
                "--allow-path and --allow-net add to --sandbox=strict, but the level of this stack is {}",
                name(self.level)
            )));
        }
        for (path, write) in &allowed.paths {
            // A Landlock rule is about a file: for one that does not exist there would be none.
            std::fs::metadata(path).or_error(|| format!("--allow-path: {}", path.display()))?;
            let access = if *write { Access::Write } else { Access::Read };
            self.needs.paths.push((path.into(), access));
        }
        if allowed.network {
            self.needs.network = Network::Inet;
        }
        Ok(self)
    }

    /// The files that root may have to open although another user owns them.
    pub(crate) fn files(&self) -> Files {
        match self.level {
            Level::Strict => {
                let declared = self.needs.declared.iter().filter(|_| !self.opens_by_broker());
                let declared = declared.map(|it| {
                    let access = if it.writable { Access::Write } else { Access::Read };
                    (it.path.clone(), access)
                });
                Files::Declared(self.needs.paths.iter().cloned().chain(declared).collect())
            }
            Level::Programs => Files::OfPrograms,
            Level::Compat | Level::Off => Files::Any,
        }
    }

    /// Whether one process serves all clients.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    /// Whether there is a broker.
    pub(crate) fn has_broker(&self) -> bool {
        self.opens_by_broker() || self.connects_by_broker()
    }

    /// Whether a broker opens the paths that the stack has declared.
    pub(crate) fn opens_by_broker(&self) -> bool {
        self.level == Level::Strict && self.needs.paths_are_brokered()
    }

    /// Whether a broker connects to the endpoints that the stack has declared.
    pub(crate) fn connects_by_broker(&self) -> bool {
        self.level == Level::Strict && self.needs.endpoints_are_brokered()
    }

    /// What the stack needs.
    pub(crate) fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Most descriptors that a process may have open; `None` if the number grows with that of its
    /// clients, or is not known.
    pub(crate) fn descriptors(&self) -> Option<u64> {
        /// More than the sockets, pipes and files of a connection; the soft limit of most systems.
        const ORDINARY: u64 = 1024;
        (self.level == Level::Strict && !self.shared)
            .then(|| ORDINARY + 2 * (self.needs.paths.len() + self.needs.declared.len()) as u64)
    }

    /// Most bytes of data that a process may have, with so many `threads` for one client; `None` if
    /// the amount grows with the number of its clients, or is not known.
    pub(crate) fn memory(&self, threads: usize) -> Option<u64> {
        /// Sixteen times what may be in flight on a connection.
        const ORDINARY: u64 = 1 << 30;
        /// A stack, and what malloc keeps for a thread.
        const THREAD: u64 = 4 << 20;
        (self.level == Level::Strict && !self.shared && !self.needs.programs).then(|| {
            let ordinary = ORDINARY + THREAD * threads as u64;
            privileges::data().saturating_add(ordinary).saturating_add(self.needs.memory)
        })
    }

    /// Enters the namespaces that only a privileged process can make, but for the network. Called
    /// before privileges are dropped, and before the broker is forked, which shares them.
    pub(crate) fn separate(&self) {
        if !self.separated && self.has_namespaces() {
            namespaces::enter();
        }
    }

    /// Programs have the namespaces of the user.
    fn has_namespaces(&self) -> bool {
        matches!(self.level, Level::Strict | Level::Compat) && !skips(Layer::Namespaces)
    }

    /// Confines a watcher that runs programs, which work as those of the final user do: by what no
    /// process of the server may call.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(crate) fn close_watcher_of_programs() -> Result<()> {
        filter::compat()?.iter().try_for_each(filter::install)
    }

    /// Leaves the machine's network. Called before privileges are dropped, and after the broker was
    /// forked, which stays in it.
    pub(crate) fn separate_network(&self) {
        if !self.separated && self.has_network_namespace() {
            namespaces::enter_network();
        }
    }

    fn has_network_namespace(&self) -> bool {
        let wanted = self.level == Level::Strict && self.needs.network == Network::None;
        wanted && !skips(Layer::Namespaces)
    }

    /// Compiles the filters and, where no process is forked later that has to stay in the machine's
    /// namespaces, enters its own: a network takes the kernel half a millisecond, and the listener
    /// opens its sockets meanwhile. Called when nothing is added to the needs any more, and no code
    /// of the stack runs before [`separate_network`](Self::separate_network). `watchers`: whether
    /// there will be any.
    ///
    /// The filters are compiled on a thread, which leaves its small pieces of free memory in a heap
    /// of its own. What workers allocate would stand among them: each would have 16 KiB more. Not
    /// with `swap` (`--swap`): the threads of workers would allocate from that heap, which is not
    /// locked.
    ///
    /// # Errors
    /// EINVAL: a list is wrong; EAGAIN: no thread.
    pub(crate) fn prepare(&mut self, swap: bool, watchers: bool) -> Result<()> {
        let now = !watchers && !self.connects_by_broker();
        let (namespaces, network) =
            (now && self.has_namespaces(), now && self.has_network_namespace());
        let separate = || {
            if namespaces {
                namespaces::enter();
            }
            if network {
                namespaces::enter_network();
            }
        };
        self.separated = now;
        if swap {
            separate();
            return self.compile_here();
        }
        let alone = process::is_single_threaded();
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, || self.compile_here());
            let thread = thread.map_err(failed)?;
            separate();
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        if alone {
            // A fork would fail until then.
            threads::await_end_of_others();
        }
        Ok(())
    }

    fn compile_here(&mut self) -> Result<()> {
        self.of_template = match self.level {
            Level::Strict => filter::template(&self.needs)?,
            Level::Compat | Level::Programs => filter::compat()?,
            Level::Off => Vec::new(),
        };
        // What a worker gives up includes fork, by which programs are started.
        let gives_up = self.level == Level::Strict && !self.needs.programs && self.filters;
        if gives_up && !skips(Layer::Calls) {
            self.given_up = Some(filter::worker(&self.needs, self.shared)?);
        }
        Ok(())
    }

    /// Confines the template: this thread, and the threads that code in C has started. Called last,
    /// after [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// The kernel has a layer and refuses to install it; a thread is not confined.
    pub(crate) fn close(&mut self) -> Result<()> {
        let filters = std::mem::take(&mut self.of_template);
        match self.level {
            Level::Strict => {
                process::report_refusals()?;
                if !skips(Layer::Limits) && self.writes_no_file() {
                    privileges::forbid_file_growth()?;
                }
                let rules = if skips(Layer::Paths) { None } else { self.rules()? };
                if self.needs.programs {
                    nbdkit_api::programs::set_confined_strictly();
                }
                self.install(&filters, rules)
            }
            Level::Compat | Level::Programs => self.install(&filters, None),
            Level::Off => Ok(()),
        }
    }

    /// Whether workers have no regular file to write to, and get none: no disk, no shared memory,
    /// no log.
    fn writes_no_file(&self) -> bool {
        let needs = &self.needs;
        let opened_later =
            needs.writes() || needs.paths.iter().any(|(_, access)| *access == Access::Write);
        // Standard output, as the client's (-s), may be a regular file.
        let client_may_be_file = !nbdkit_api::client::stdio_safe();
        !opened_later
            && !needs.programs
            && !needs.undeclared
            && !client_may_be_file
            && !process::has_writable_file()
    }

    /// The rules for paths, if this kernel has Landlock.
    fn rules(&self) -> Result<Option<Rules>> {
        let version = landlock();
        if version == 0 {
            self.missing(
                "this kernel has no Landlock: paths are not restricted but by permissions",
            )?;
            return Ok(None);
        }
        if let Some(lacks) = lacks(version) {
            notice(&format!(
                "Landlock of this kernel is version {version}, which does not restrict: {lacks}"
            ));
        }
        Rules::new(&self.needs).map(Some)
    }

    /// Logs that a layer is missing.
    ///
    /// # Errors
    /// The command line demands all layers.
    fn missing(&self, layer: &str) -> Result<()> {
        if self.demanded {
            return Err(Error::msg(format!("--sandbox=strict: {layer}")));
        }
        notice(layer);
        Ok(())
    }

    /// Puts paths and filters in force: first other threads are confined as this one is already,
    /// with the paths; in the end every thread is checked.
    fn install(&self, filters: &[Program], rules: Option<Rules>) -> Result<()> {
        threads::confine(rules.as_ref().and_then(Rules::of_others)).map_err(failed)?;
        let statuses = Statuses::open().map_err(failed)?;
        rules.map_or(Ok(()), Rules::restrict)?;
        if skips(Layer::Calls) {
            return statuses.check(false).map_err(failed);
        }
        if !self.filters {
            self.missing("this kernel has no seccomp filters: system calls are not restricted")?;
            return statuses.check(false).map_err(failed);
        }
        for filter in filters {
            filter::install(filter)?;
        }
        debug!("sandbox: {} seccomp filters installed", filters.len());
        statuses.check(true).map_err(failed)
    }

    /// Denies what only the template needed, to fork this worker, or, with isolation `shared`, to
    /// start. This process starts no other from now on.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(crate) fn close_worker(&self) -> Result<()> {
        match &self.given_up {
            Some(given_up) => filter::install(&filter::of_this_process(given_up)),
            None => Ok(()),
        }
    }
}

/// As `--sandbox` has it.
fn name(level: Level) -> &'static str {
    match level {
        Level::Strict => "strict",
        Level::Programs => "programs",
        Level::Compat => "compat",
        Level::Off => "off",
    }
}
