//! A configured layer of the stack, which serves: what the server calls of it, and a filter of the
//! layer below. It runs the callbacks of a plugin or of a filter, behind [`Module`], in the name of
//! the plugin, and logs their errors.

use std::path::PathBuf;
use std::sync::Arc;

use crate::client::Client;
use crate::debug_control;
use crate::error::{Errno, Error, Result, log_once};
use crate::exports::Exports;
use crate::layer::{Below, Next, OpenLayer, Opened};
use crate::log::{self, Speaker};
use crate::open::Open;
use crate::quote::quoted;
use crate::watcher::{Server, Watcher};

/// The callbacks of a plugin, or of a filter together with the layer below it. Those of the layer
/// below are called by [`Layer`], unless a filter calls them itself.
pub(crate) trait Module: Send + Sync {
    /// The layer below; `None` for a plugin.
    fn below(&self) -> Option<&Arc<Layer>>;

    fn after_fork(&self) -> Result<()>;

    fn warm_up(&self) -> Result<()>;

    /// For plugins.
    fn in_service(&self) -> Result<()>;

    fn cleanup(&self);

    fn unload(&self);

    /// Temporary files, of a plugin.
    fn temporary(&self) -> Vec<PathBuf>;

    fn can_park(&self) -> bool;

    /// A worker has ended; for filters.
    fn worker_ended(&self);

    /// For filters.
    fn watcher(&self) -> Option<Box<dyn Watcher>>;

    /// The watcher has something to tell; for filters.
    fn notified(&self);

    fn preconnect(&self, client: &Arc<Client>, readonly: bool) -> Result<()>;

    fn list_exports(
        &self,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()>;

    fn default_export(&self, client: &Arc<Client>, readonly: bool) -> Result<Option<String>>;

    /// What `open` made, and what it has below.
    fn open(&self, open: &Open<'_>) -> Result<(Box<dyn OpenLayer>, Below)>;
}

/// A configured layer: a plugin, or a filter with the layer below it, as the server and the filter
/// above it see it.
pub struct Layer {
    name: &'static str,
    /// In whose name it logs: the plugin's, as in nbdkit, also for a filter.
    speaker: &'static str,
    module: Box<dyn Module>,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Layer {
    /// `name` logs in the name of `speaker`.
    pub(crate) fn new(name: &'static str, speaker: &'static str, module: Box<dyn Module>) -> Layer {
        Layer { name, speaker, module }
    }

    /// Name of the plugin or filter.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Name of the innermost layer, in which all of them log.
    pub fn plugin_name(&self) -> &'static str {
        self.speaker
    }

    /// The layer below; `None` for the plugin.
    pub fn below(&self) -> Option<&Arc<Layer>> {
        self.module.below()
    }

    fn enter(&self, client: Option<&Client>) -> log::Entered {
        log::enter(Speaker {
            layer: Some(self.speaker),
            connection: client.map_or(0, Client::number),
        })
    }

    /// Runs a callback in the name of this layer; an error that it made is logged here.
    fn call<T>(&self, client: Option<&Client>, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let _entered = self.enter(client);
        body().map_err(log_once)
    }

    /// `after_fork`, the plugin first.
    ///
    /// # Errors
    /// A layer failed; the server stops.
    pub fn after_fork(&self) -> Result<()> {
        if let Some(below) = self.below() {
            below.after_fork()?;
        }
        self.call(None, || {
            debug_control!("{}: after_fork", self.name);
            self.module.after_fork()
        })
    }

    /// `warm_up`, the plugin first.
    ///
    /// # Errors
    /// A layer failed; the server stops.
    pub fn warm_up(&self) -> Result<()> {
        if let Some(below) = self.below() {
            below.warm_up()?;
        }
        self.call(None, || self.module.warm_up())
    }

    /// `in_service`, of the plugin.
    ///
    /// # Errors
    /// It failed; the server stops.
    pub fn in_service(&self) -> Result<()> {
        match self.below() {
            Some(below) => below.in_service(),
            None => self.call(None, || self.module.in_service()),
        }
    }

    /// `cleanup`, the outermost filter first.
    pub fn cleanup(&self) {
        {
            let _entered = self.enter(None);
            debug_control!("{}: cleanup", self.name);
            self.module.cleanup();
        }
        if let Some(below) = self.below() {
            below.cleanup();
        }
    }

    /// `unload`, the plugin first.
    pub fn unload(&self) {
        if let Some(below) = self.below() {
            below.unload();
        }
        self.module.unload();
    }

    /// The plugin's temporary files.
    pub fn temporary(&self) -> Vec<PathBuf> {
        match self.below() {
            Some(below) => below.temporary(),
            None => self.module.temporary(),
        }
    }

    /// Whether the connection of a client that is idle may be closed and opened again: see
    /// [`Plugin::can_park`](crate::Plugin::can_park).
    pub fn can_park(&self) -> bool {
        self.module.can_park() && self.below().is_none_or(|below| below.can_park())
    }

    /// Tells every filter that a worker has ended.
    pub fn worker_ended(&self) {
        {
            let _entered = self.enter(None);
            self.module.worker_ended();
        }
        if let Some(below) = self.below() {
            below.worker_ended();
        }
    }

    /// The watchers of all filters, each with its layer, the outermost first.
    pub fn watchers(self: &Arc<Layer>) -> Vec<(Arc<Layer>, Box<dyn Watcher>)> {
        let layers = std::iter::successors(Some(self), |layer| layer.below());
        let watcher = |layer: &Arc<Layer>| Some((Arc::clone(layer), layer.module.watcher()?));
        layers.filter_map(watcher).collect()
    }

    /// Runs this filter's watcher, in a process of its own.
    pub fn watch(&self, watcher: &dyn Watcher, server: &Server<'_>) {
        let _entered = self.enter(None);
        watcher.run(server);
    }

    /// Tells this filter that its watcher has called.
    pub fn notified(&self) {
        let _entered = self.enter(None);
        self.module.notified();
    }

    /// `preconnect` of this layer (a filter calls on).
    ///
    /// # Errors
    /// The client is not wanted.
    pub fn preconnect(&self, client: &Arc<Client>, readonly: bool) -> Result<()> {
        self.call(Some(client), || {
            debug_control!("{}: preconnect", self.name);
            self.module.preconnect(client, readonly)
        })
    }

    /// Fills `exports`; the default export is resolved here if the layer asked for it.
    ///
    /// # Errors
    /// The list cannot be made.
    pub fn list_exports(
        &self,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        self.call(Some(client), || {
            debug_control!(
                "{}: list_exports readonly={} tls={}",
                self.name,
                u8::from(readonly),
                u8::from(client.is_tls())
            );
            self.module.list_exports(client, readonly, exports)?;
            // A plugin whose default export cannot be found out, which is in the log, advertises
            // none.
            if exports.take_use_default()
                && let Ok(Some(name)) = self.default_export(client, readonly)
            {
                exports.add(name, None)?;
            }
            Ok(())
        })
    }

    /// The name that the export `""` stands for. A name that is too long counts as none.
    ///
    /// # Errors
    /// The layer failed.
    pub fn default_export(&self, client: &Arc<Client>, readonly: bool) -> Result<Option<String>> {
        let asker = (std::ptr::from_ref(self).addr(), readonly, client.is_tls());
        client.default_export(asker, || {
            self.call(Some(client), || {
                debug_control!(
                    "{}: default_export readonly={} tls={}",
                    self.name,
                    u8::from(readonly),
                    u8::from(client.is_tls())
                );
                let name = self.module.default_export(client, readonly)?;
                Ok(name.filter(|name| name.len() <= crate::exports::MAX_STRING))
            })
        })
    }

    /// Opens this layer and, through it, those below. The export `""` is opened by its canonical
    /// name. [`Backend::prepare`](crate::Backend::prepare) must follow.
    ///
    /// # Errors
    /// A layer refused; nothing stays open.
    pub fn open(self: &Arc<Layer>, open: &Open<'_>) -> Result<Next> {
        self.opened(open).map(Next::new)
    }

    /// The same for a context that can be [reopened](crate::Backend::reopen).
    ///
    /// # Errors
    /// A layer refused; nothing stays open.
    pub fn open_to_reopen(self: &Arc<Layer>, open: &Open<'_>) -> Result<Next> {
        let opened = self.opened(open)?;
        let (layer, client) = (Arc::clone(self), open.client.cloned());
        let (export, tls) = (open.export.to_owned(), open.tls);
        let reopen = move |readonly| {
            let client = client.as_ref();
            layer.opened(&Open { client, readonly, export: &export, tls })
        };
        Ok(Next::reopenable(opened, Box::new(reopen)))
    }

    fn opened(&self, open: &Open<'_>) -> Result<Opened> {
        let connection = open.client.map_or(0, |client| client.number());
        let speaker = Speaker { layer: Some(self.speaker), connection };
        self.opening(open, |open| {
            let (layer, below) = self.module.open(open)?;
            Ok(Opened::new(self.name, speaker, layer, below, open.readonly))
        })
    }

    /// Runs `body`, which opens this layer, with the canonical name of the export.
    fn opening<T>(&self, open: &Open<'_>, body: impl FnOnce(&Open<'_>) -> Result<T>) -> Result<T> {
        self.call(open.client.map(|c| &**c), || {
            debug_control!(
                "{}: open readonly={} exportname=\"{}\" tls={}",
                self.name,
                u8::from(open.readonly),
                quoted(open.export),
                u8::from(open.tls)
            );
            let Some(client) = open.client.filter(|_| open.export.is_empty()) else {
                return body(open);
            };
            let Some(name) = self.default_export(client, open.readonly)? else {
                return Err(Error::new(Errno::ENOENT, "default export (\"\") not permitted"));
            };
            body(&open.export(&name))
        })
    }
}
