//! The traits of a filter. A [`Filter`] is the configured module, a [`FilterConnection`] what its
//! `open` made for one client. Every method that a filter leaves alone passes through.
//! nbdkit-filter(3), "Callbacks".

use std::io::Write;
use std::sync::Arc;

use crate::backend::Backend;
use crate::client::Client;
use crate::error::Result;
use crate::exports::Exports;
use crate::extents::Extents;
use crate::module::ModuleFile;
use crate::needs::{Isolation, Needs};
use crate::plugin::Open;
use crate::stack::Layer;
pub use crate::stack::NextConfig;
use crate::types::{BlockSize, Blocking, Cache, FileRange, Flags, Fua, ThreadModel, Zero};
use crate::value::Value;

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

    /// Called in the template after a worker has ended, however it ended, so that what it left undone
    /// can be noticed. Not called with [`Isolation::Shared`].
    fn worker_ended(&self) {}

    /// The names of its debug flags, `-D MODULE.FLAG=N`, which [`log::flag`](crate::log::flag) tells; others are warned
    /// about. A module that was loaded from a file has variables instead.
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

    /// What connections will touch, this filter's and those of the layers `below`, asked after `get_ready`. A filter that
    /// opens what is below it read-only says so here: [`Needs::read_only`].
    fn needs(&self, below: Needs) -> Needs {
        below
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
    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn FilterConnection>>;
}

/// Where `open` puts the context of the layer below (`nbdkit_context`).
#[derive(Debug)]
pub struct Slot<'a> {
    layer: &'a Arc<Layer>,
    backend: Option<Arc<Backend>>,
}

impl<'a> Slot<'a> {
    pub(crate) fn new(layer: &'a Arc<Layer>) -> Slot<'a> {
        Slot { layer, backend: None }
    }

    pub(crate) fn into_backend(self) -> Arc<Backend> {
        self.backend.unwrap_or_else(|| Arc::new(Backend::absent()))
    }

    /// Opens the layer below for this connection (`next` in nbdkit-filter(3), `.open`).
    ///
    /// # Errors
    /// Those of the layer below.
    pub fn open(&mut self, open: &Open<'_>) -> Result<()> {
        self.backend = Some(Arc::new(self.layer.open(open)?));
        Ok(())
    }

    /// Uses a context that was opened, prepared and shared by the filter itself
    /// (`nbdkit_context_set_next`). It is not prepared or finalized with this connection.
    pub fn set(&mut self, backend: Arc<Backend>) {
        self.backend = Some(backend);
    }

    /// The layer below, for contexts under the filter's own control.
    pub fn layer(&self) -> &'a Arc<Layer> {
        self.layer
    }
}

/// One client's use of a filter, from `open` to `close` (its drop).
///
/// `next` is the layer below as this connection opened it. It checks ranges and caches what it is
/// asked, so `next.size()` and `next.can_*()` may be called at any time. As the thread model permits,
/// data methods are called from several threads at once. The contract of each method is that of
/// [`Connection`](crate::Connection); what is said here is what differs.
#[expect(
    clippy::missing_errors_doc,
    reason = "each has the errors of the method of the same name in Connection"
)]
pub trait FilterConnection: Send + Sync {
    /// Called after `open`, innermost layer first: the place for reading the disk below.
    fn prepare(&mut self, next: &Backend, readonly: bool) -> Result<()> {
        let _ = (next, readonly);
        Ok(())
    }

    /// Called before close, outermost layer first, if `prepare` succeeded. An error cuts the client off.
    fn finalize(&self, next: &Backend) -> Result<()> {
        let _ = next;
        Ok(())
    }

    /// Size of the disk as this filter shows it.
    fn size(&self, next: &Backend) -> Result<u64> {
        next.size()
    }

    /// Text for NBD_INFO_DESCRIPTION.
    fn export_description(&self, next: &Backend) -> Option<String> {
        next.export_description()
    }

    /// Block size constraints.
    fn block_size(&self, next: &Backend) -> Result<BlockSize> {
        next.block_size()
    }

    /// Whether `pwrite` works.
    fn can_write(&self, next: &Backend) -> Result<bool> {
        next.can_write()
    }

    /// Whether `flush` works.
    fn can_flush(&self, next: &Backend) -> Result<bool> {
        next.can_flush()
    }

    /// Whether the disk behaves like a rotating one.
    fn is_rotational(&self, next: &Backend) -> Result<bool> {
        next.is_rotational()
    }

    /// Whether `trim` works.
    fn can_trim(&self, next: &Backend) -> Result<bool> {
        next.can_trim()
    }

    /// What is done about zeroes. With `Emulate` the server calls this filter's `pwrite`.
    fn can_zero(&self, next: &Backend) -> Result<Zero> {
        next.can_zero()
    }

    /// Whether fast zero may be asked for.
    fn can_fast_zero(&self, next: &Backend) -> Result<bool> {
        next.can_fast_zero()
    }

    /// Whether `extents` works.
    fn can_extents(&self, next: &Backend) -> Result<bool> {
        next.can_extents()
    }

    /// What is done about FUA.
    fn can_fua(&self, next: &Backend) -> Result<Fua> {
        next.can_fua()
    }

    /// Whether a flush on one connection covers the writes of all.
    fn can_multi_conn(&self, next: &Backend) -> Result<bool> {
        next.can_multi_conn()
    }

    /// What is done about cache requests. With `Emulate` the server calls this filter's `pread`.
    fn can_cache(&self, next: &Backend) -> Result<Cache> {
        next.can_cache()
    }

    /// Fills `buf` from `offset`.
    fn pread(&self, next: &Backend, buf: &mut [u8], offset: u64) -> Result<()> {
        next.pread(buf, offset)
    }

    /// Writes `buf` at `offset`.
    fn pwrite(&self, next: &Backend, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        next.pwrite(buf, offset, flags)
    }

    /// Flushes.
    fn flush(&self, next: &Backend) -> Result<()> {
        next.flush()
    }

    /// Trims.
    fn trim(&self, next: &Backend, count: u64, offset: u64, flags: Flags) -> Result<()> {
        next.trim(count, offset, flags)
    }

    /// Zeroes. Must not fail with EOPNOTSUPP unless FAST_ZERO is set: there is no fallback.
    fn zero(&self, next: &Backend, count: u64, offset: u64, flags: Flags) -> Result<()> {
        next.zero(count, offset, flags)
    }

    /// Describes the disk from `offset` on.
    fn extents(
        &self,
        next: &Backend,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        next.extents(count, offset, flags, extents)
    }

    /// Prefetches.
    fn cache(&self, next: &Backend, count: u64, offset: u64) -> Result<()> {
        next.cache(count, offset)
    }

    /// How long the data methods may take, this filter and all below.
    fn blocking(&self, next: &Backend) -> Blocking {
        next.blocking()
    }

    /// `pread` if it can be done at once. The default can tell only if nothing ever blocks;
    /// a filter that adds nothing that blocks may do better.
    fn try_pread(&self, next: &Backend, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        (self.blocking(next) == Blocking::Never).then(|| self.pread(next, buf, offset))
    }

    /// Where the bytes of a read stand in a file. `None` unless the filter knows that they pass
    /// through unchanged and need not see the read, which may then be done without calling it.
    fn file_range<'a>(&self, next: &'a Backend, count: u32, offset: u64) -> Option<FileRange<'a>> {
        let _ = (next, count, offset);
        None
    }

    /// Where the bytes of a write without flags go in a file. `None` unless the filter knows that they pass through unchanged
    /// and need not see the write, which may then be done without calling it, or be called for a part.
    fn write_range<'a>(&self, next: &'a Backend, count: u32, offset: u64) -> Option<FileRange<'a>> {
        let _ = (next, count, offset);
        None
    }
}
