//! The stack of filters on a plugin: [`Stack`] while it is configured, [`Layer`] once it serves.
//!
//! Two types for two stages: configuration changes the modules and is done by one owner, serving
//! shares them and changes nothing. nbdkit-filter(3), "Next plugin".

use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::Backend;
use crate::client::Client;
use crate::error::{Errno, Error, Result};
use crate::exports::Exports;
use crate::filter::Filter;
use crate::log::{self, Speaker};
use crate::needs::{Isolation, Needs};
use crate::next::Next;
use crate::plugin::{Open, Plugin};
use crate::quote::quoted;
use crate::types::ThreadModel;
use crate::value::Value;
use crate::{debug, debug_control};

/// A stack that is being configured: filters from the outermost in, then the plugin.
pub struct Stack {
    filters: Vec<Box<dyn Filter>>,
    plugin: Box<dyn Plugin>,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut list = f.debug_list();
        list.entries(self.filters.iter().map(|x| x.name()));
        list.entry(&self.plugin.name()).finish()
    }
}

/// The rest of the stack below a filter that is being configured.
pub struct NextConfig<'a> {
    filters: &'a mut [Box<dyn Filter>],
    plugin: &'a mut dyn Plugin,
}

impl NextConfig<'_> {
    /// The same once more, for a filter that hands several parameters on.
    pub fn reborrow(&mut self) -> NextConfig<'_> {
        NextConfig { filters: self.filters, plugin: self.plugin }
    }

    /// Hands a parameter to the layer below.
    ///
    /// # Errors
    /// Those of the layer that took it; the plugin's if none did.
    pub fn config(self, key: &str, value: Value<'_>) -> Result<()> {
        let shown = quoted(value.as_bytes());
        match self.filters.split_first_mut() {
            Some((filter, filters)) => {
                debug_control!("{}: config key={key}, value={shown}", filter.name());
                filter.config(NextConfig { filters, plugin: self.plugin }, key, value)
            }
            None => {
                debug_control!("{}: config key={key}, value={shown}", self.plugin.name());
                if !self.plugin.has_config() {
                    let name = self.plugin.name();
                    return Err(Error::msg(format!(
                        "{name}: this plugin does not need command line configuration. \
                         Try using: nbdkit --help {name}"
                    )));
                }
                self.plugin.config(key, value)
            }
        }
    }

    /// Tells the layer below that there are no more parameters.
    ///
    /// # Errors
    /// Those of the layers below.
    pub fn config_complete(self) -> Result<()> {
        match self.filters.split_first_mut() {
            Some((filter, filters)) => {
                debug_control!("{}: config_complete", filter.name());
                filter.config_complete(NextConfig { filters, plugin: self.plugin })
            }
            None => {
                debug_control!("{}: config_complete", self.plugin.name());
                self.plugin.config_complete()
            }
        }
    }
}

impl Stack {
    /// Filters in command line order (the first is outermost) on a plugin.
    pub fn new(filters: Vec<Box<dyn Filter>>, plugin: Box<dyn Plugin>) -> Stack {
        Stack { filters, plugin }
    }

    /// The plugin.
    pub fn plugin(&self) -> &dyn Plugin {
        &*self.plugin
    }

    /// The filters, outermost first.
    pub fn filters(&self) -> impl Iterator<Item = &dyn Filter> {
        self.filters.iter().map(|f| &**f)
    }

    fn top(&mut self) -> NextConfig<'_> {
        NextConfig { filters: &mut self.filters, plugin: &mut *self.plugin }
    }

    /// Offers a parameter to the outermost layer.
    ///
    /// # Errors
    /// Unknown or bad parameter.
    pub fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        self.top().config(key, value)
    }

    /// Ends the parameters.
    ///
    /// # Errors
    /// A layer misses something.
    pub fn config_complete(&mut self) -> Result<()> {
        self.top().config_complete()
    }

    /// The final thread model: the tightest of all layers'.
    ///
    /// # Errors
    /// A layer cannot tell.
    pub fn thread_model(&self) -> Result<ThreadModel> {
        let mut model = self.plugin.thread_model()?.min(self.plugin.max_thread_model());
        for filter in self.filters.iter().rev() {
            model = model.min(filter.thread_model(model)?);
        }
        debug!("using thread model: {}", model.as_str());
        Ok(model)
    }

    /// `get_ready` of every layer, the plugin first.
    ///
    /// # Errors
    /// A layer is not ready.
    pub fn get_ready(&mut self, model: ThreadModel) -> Result<()> {
        debug_control!("{}: get_ready", self.plugin.name());
        self.plugin.get_ready()?;
        for filter in self.filters.iter_mut().rev() {
            debug_control!("{}: get_ready thread_model={}", filter.name(), model as i32);
            filter.get_ready(model)?;
        }
        Ok(())
    }

    /// What all layers together need from outside the process. `readonly`: no client may write
    /// (`-r`). Before `get_ready` it is what is known then.
    pub fn needs(&self, readonly: bool) -> Needs {
        let plugin = self.plugin.needs(readonly);
        let needs = self.filters.iter().rev().fold(plugin, |below, filter| filter.needs(below));
        // Whatever a plugin makes of it.
        if readonly { needs.read_only() } else { needs }
    }

    /// The same for a stack that is ready.
    ///
    /// # Errors
    /// The declaration of a layer cannot be used.
    pub fn checked_needs(&self, readonly: bool) -> Result<Needs> {
        let plugin = self.plugin.checked_needs(readonly);
        let needs = self.filters.iter().rev().fold(plugin, |below, filter| {
            below.and_then(|below| filter.checked_needs(below, readonly))
        })?;
        Ok(if readonly { needs.read_only() } else { needs })
    }

    /// The least isolation that any layer asks for.
    pub fn isolation(&self) -> Isolation {
        self.filters.iter().map(|f| f.isolation()).fold(self.plugin.isolation(), Isolation::min)
    }

    /// The least isolation that any layer has unless the command line says otherwise.
    pub fn default_isolation(&self) -> Isolation {
        let plugin = self.plugin.default_isolation();
        self.filters.iter().map(|f| f.default_isolation()).fold(plugin, Isolation::min)
    }

    /// `unload` of every layer, the plugin first, for a server that only had something to print.
    pub fn unload(&self) {
        self.plugin.unload();
        for filter in self.filters.iter().rev() {
            filter.unload();
        }
    }

    /// Whether any layer keeps what clients write in this process.
    pub fn keeps_state(&self) -> bool {
        self.plugin.keeps_state() || self.filters.iter().any(|filter| filter.keeps_state())
    }

    /// Ends configuration: the outermost layer of the stack that serves.
    pub fn freeze(self) -> Arc<Layer> {
        let speaker = intern(self.plugin.name());
        let mut layer =
            Arc::new(Layer { name: speaker, speaker, module: Module::Plugin(self.plugin) });
        for filter in self.filters.into_iter().rev() {
            layer = Arc::new(Layer {
                name: intern(filter.name()),
                speaker,
                module: Module::Filter(filter, layer),
            });
        }
        layer
    }
}

/// Names live as long as the process: log records carry them from any thread at any time, and there
/// are as many as there are layers.
fn intern(name: &str) -> &'static str {
    Box::leak(name.to_owned().into_boxed_str())
}

pub(crate) enum Module {
    Plugin(Box<dyn Plugin>),
    Filter(Box<dyn Filter>, Arc<Layer>),
}

/// A configured layer: a plugin, or a filter with the layer below it.
pub struct Layer {
    name: &'static str,
    /// In whose name it logs: the plugin's, as in nbdkit, also for a filter.
    pub(crate) speaker: &'static str,
    pub(crate) module: Module,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Layer {
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
        match &self.module {
            Module::Plugin(_) => None,
            Module::Filter(_, below) => Some(below),
        }
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
            match &self.module {
                Module::Plugin(plugin) => plugin.after_fork(),
                Module::Filter(filter, below) => filter.after_fork(below),
            }
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
        self.call(None, || match &self.module {
            Module::Plugin(plugin) => plugin.warm_up(),
            Module::Filter(filter, _) => filter.warm_up(),
        })
    }

    /// `cleanup`, the outermost filter first.
    pub fn cleanup(&self) {
        {
            let _entered = self.enter(None);
            debug_control!("{}: cleanup", self.name);
            match &self.module {
                Module::Plugin(plugin) => plugin.cleanup(),
                Module::Filter(filter, below) => filter.cleanup(below),
            }
        }
        if let Some(below) = self.below() {
            below.cleanup();
        }
    }

    /// `unload`, the plugin first.
    pub fn unload(&self) {
        match &self.module {
            Module::Plugin(plugin) => plugin.unload(),
            Module::Filter(filter, below) => {
                below.unload();
                filter.unload();
            }
        }
    }

    /// The plugin's temporary files.
    pub fn temporary(&self) -> Vec<PathBuf> {
        match &self.module {
            Module::Plugin(plugin) => plugin.temporary(),
            Module::Filter(_, below) => below.temporary(),
        }
    }

    /// Tells every filter that a worker has ended.
    pub fn worker_ended(&self) {
        if let Module::Filter(filter, below) = &self.module {
            {
                let _entered = self.enter(None);
                filter.worker_ended();
            }
            below.worker_ended();
        }
    }

    /// `preconnect` of this layer (a filter calls on).
    ///
    /// # Errors
    /// The client is not wanted.
    pub fn preconnect(&self, client: &Arc<Client>, readonly: bool) -> Result<()> {
        self.call(Some(client), || {
            debug_control!("{}: preconnect", self.name);
            match &self.module {
                Module::Plugin(plugin) => plugin.preconnect(client, readonly),
                Module::Filter(filter, below) => filter.preconnect(below, client, readonly),
            }
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
            match &self.module {
                Module::Plugin(plugin) => plugin.list_exports(client, readonly, exports)?,
                Module::Filter(filter, below) => {
                    filter.list_exports(below, client, readonly, exports)?;
                }
            }
            // A plugin that cannot tell its default export, and has said why, has none to
            // advertise.
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
                let name = match &self.module {
                    Module::Plugin(plugin) => plugin.default_export(client, readonly)?,
                    Module::Filter(filter, below) => {
                        filter.default_export(below, client, readonly)?
                    }
                };
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
        Backend::open(self, open).map(Next::new)
    }

    /// The same for a context that can be [reopened](crate::Backend::reopen).
    ///
    /// # Errors
    /// A layer refused; nothing stays open.
    pub fn open_to_reopen(self: &Arc<Layer>, open: &Open<'_>) -> Result<Next> {
        Backend::open_to_reopen(self, open).map(Next::new)
    }

    /// Runs `body`, which opens this layer, with the canonical name of the export.
    pub(crate) fn opening<T>(
        &self,
        open: &Open<'_>,
        body: impl FnOnce(&Open<'_>) -> Result<T>,
    ) -> Result<T> {
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

/// Logs an error unless that has been done, in the name of the current speaker.
pub(crate) fn log_once(mut error: Error) -> Error {
    if error.take_for_log() {
        log::error(error.message());
    }
    error
}
