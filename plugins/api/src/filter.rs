//! The configured filter. What its `open` makes for a connection is an [`OpenLayer`].
//! nbdkit-filter(3), "Callbacks".

use std::io::Write;
use std::sync::Arc;

use crate::client::Client;
use crate::configured::Layer;
use crate::error::Result;
use crate::exports::Exports;
use crate::layer::{Below, Next, OpenLayer};
use crate::module::ModuleFile;
use crate::needs::{Isolation, Needs};
use crate::next_config::NextConfig;
use crate::open::Open;
use crate::types::ThreadModel;
use crate::value::Value;
use crate::watcher::Watcher;

/// A filter, from `load` (its constructor) to `unload` (its drop). The order of calls is that of
/// [`Plugin`](crate::Plugin), the layer below first for `get_ready` and `after_fork`.
pub trait Filter: Send + Sync {
    /// The short name, ASCII alphanumerics and `-`.
    fn name(&self) -> &str;

    /// Free text name for messages.
    fn longname(&self) -> Option<&str> {
        None
    }

    /// Description, perhaps of several lines, printed by `--help`.
    fn description(&self) -> Option<&str> {
        None
    }

    /// Text about the parameters, printed by `--help`.
    fn config_help(&self) -> Option<&str> {
        None
    }

    /// Takes a parameter or hands it to `next`, which leads to the plugin in the end.
    ///
    /// # Errors
    /// Bad value; the server does not start.
    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        next.config(key, value)
    }

    /// Called after the last parameter, outermost filter first; must call `next`.
    ///
    /// # Errors
    /// Something is missing or contradictory; the server does not start.
    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        next.config_complete()
    }

    /// The most parallel model that this filter stands, given that of the layer below.
    /// It cannot widen what lies below.
    ///
    /// # Errors
    /// The server does not start.
    fn thread_model(&self, below: ThreadModel) -> Result<ThreadModel> {
        Ok(below)
    }

    /// Last chance for errors that the user sees. `model` is the final thread model.
    ///
    /// # Errors
    /// The server does not start.
    fn get_ready(&mut self, model: ThreadModel) -> Result<()> {
        let _ = model;
        Ok(())
    }

    /// Called once as the final user, before the first client; `below` may open contexts that
    /// outlive connections. See [`Plugin::after_fork`](crate::Plugin::after_fork) about threads.
    ///
    /// # Errors
    /// The server stops.
    fn after_fork(&self, below: &Arc<Layer>) -> Result<()> {
        let _ = below;
        Ok(())
    }

    /// See [`Plugin::warm_up`](crate::Plugin::warm_up).
    ///
    /// # Errors
    /// The server stops.
    fn warm_up(&self) -> Result<()> {
        Ok(())
    }

    /// Called once in the template after the last client has gone, before the layer below.
    fn cleanup(&self, below: &Arc<Layer>) {
        let _ = below;
    }

    /// Called last. See [`Plugin::unload`](crate::Plugin::unload).
    fn unload(&self) {}

    /// See [`Plugin::file`](crate::Plugin::file).
    fn file(&self) -> Option<&ModuleFile> {
        None
    }

    /// Called in the template after a worker has ended, however it ended, so that what it left
    /// undone can be noticed. Not called with [`Isolation::Shared`].
    fn worker_ended(&self) {}

    /// What is to run beside the clients in a process of its own, if anything. Asked once, after
    /// `get_ready`; the template drops it once that process has it.
    fn watcher(&self) -> Option<Box<dyn Watcher>> {
        None
    }

    /// Called in the template after the filter's watcher has called
    /// [`Server::notify`](crate::watcher::Server::notify), perhaps once for several calls.
    fn notified(&self) {}

    /// The names of its debug flags, `-D MODULE.FLAG=N`, which [`log::flag`](crate::log::flag)
    /// tells; others are warned about. A module that was loaded from a file has variables instead.
    fn debug_flags(&self) -> &'static [&'static str] {
        &[]
    }

    /// Prints further `key=value` lines for `--dump-plugin`.
    ///
    /// # Errors
    /// Standard output cannot be written.
    fn dump_plugin(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let _ = out;
        Ok(())
    }

    /// What connections will touch, this filter's and those of the layers `below`, asked after
    /// `get_ready`. A filter that opens the layer below read-only returns
    /// [`Needs::read_only`].
    fn needs(&self, below: Needs) -> Needs {
        below
    }

    /// As [`needs`](Self::needs), of code whose declaration has to be checked: see
    /// [`Plugin::checked_needs`](crate::Plugin::checked_needs). `readonly`: no client may write
    /// (`-r`).
    ///
    /// # Errors
    /// The declaration cannot be used; the server does not start.
    fn checked_needs(&self, below: Needs, readonly: bool) -> Result<Needs> {
        let _ = readonly;
        Ok(self.needs(below))
    }

    /// How clients may be divided over processes as far as this filter is concerned.
    fn isolation(&self) -> Isolation {
        Isolation::Connection
    }

    /// See [`Plugin::default_isolation`](crate::Plugin::default_isolation).
    fn default_isolation(&self) -> Isolation {
        self.isolation()
    }

    /// See [`Plugin::keeps_state`](crate::Plugin::keeps_state).
    fn keeps_state(&self) -> bool {
        false
    }

    /// See [`Plugin::can_park`](crate::Plugin::can_park).
    fn can_park(&self) -> bool {
        false
    }

    /// Called when a client has connected, before any negotiation; calls on to `below`.
    ///
    /// # Errors
    /// The client is dropped.
    fn preconnect(&self, below: &Arc<Layer>, client: &Arc<Client>, readonly: bool) -> Result<()> {
        below.preconnect(client, readonly)
    }

    /// Fills the answer to NBD_OPT_LIST.
    ///
    /// # Errors
    /// The option fails.
    fn list_exports(
        &self,
        below: &Arc<Layer>,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        below.list_exports(client, readonly, exports)
    }

    /// The name that the export `""` stands for.
    ///
    /// # Errors
    /// The option fails.
    fn default_export(
        &self,
        below: &Arc<Layer>,
        client: &Arc<Client>,
        readonly: bool,
    ) -> Result<Option<String>> {
        below.default_export(client, readonly)
    }

    /// Opens this filter for a client. Should first call [`Slot::open`] to open the layer below.
    ///
    /// # Errors
    /// The option fails; the client may try another export.
    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>>;
}

/// Where `open` puts the layer below (`nbdkit_context`).
pub struct Slot<'a> {
    layer: &'a Arc<Layer>,
    below: Below,
}

impl<'a> Slot<'a> {
    pub(crate) fn new(layer: &'a Arc<Layer>) -> Slot<'a> {
        Slot { layer, below: Below::default() }
    }

    pub(crate) fn into_below(self) -> Below {
        self.below
    }

    /// Opens the layer below for this connection (`next` in nbdkit-filter(3), `.open`): it is
    /// prepared before this filter and finalized and closed after it.
    ///
    /// # Errors
    /// Those of the layer below.
    pub fn open(&mut self, open: &Open<'_>) -> Result<&Next> {
        self.below = Below { next: self.layer.open(open)?, owned: true };
        Ok(&self.below.next)
    }

    /// The same for a filter that calls [`reopen`](crate::Backend::reopen). Each request takes a
    /// lock to find the layer, and none goes around the callbacks of the layers below.
    ///
    /// # Errors
    /// Those of the layer below.
    pub fn open_to_reopen(&mut self, open: &Open<'_>) -> Result<&Next> {
        self.below = Below { next: self.layer.open_to_reopen(open)?, owned: true };
        Ok(&self.below.next)
    }

    /// Uses a context that the filter opened, and prepares and finalizes, itself
    /// (`nbdkit_context_set_next`).
    pub fn share(&mut self, next: Next) {
        self.below = Below { next, owned: false };
    }

    /// The layer below, for contexts under the filter's own control.
    pub fn layer(&self) -> &'a Arc<Layer> {
        self.layer
    }
}
