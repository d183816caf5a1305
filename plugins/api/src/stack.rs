//! The stack of filters on a plugin: [`Stack`] while it is configured, [`Layer`] once it serves.
//!
//! Two types for two stages: configuration changes the modules and is done by one owner, serving
//! shares them and changes nothing. nbdkit-filter(3), "Next plugin".

use std::iter::repeat;
use std::path::PathBuf;
use std::sync::Arc;

use crate::client::Client;
use crate::configured::{Layer, Module};
use crate::error::{Error, Result};
use crate::exports::Exports;
use crate::filter::{Filter, Slot};
use crate::layer::{Below, OpenLayer};
use crate::needs::{Isolation, Needs};
use crate::next_config::{Configure, NextConfig};
use crate::open::Open;
use crate::plugin::Plugin;
use crate::quote::quoted;
use crate::types::ThreadModel;
use crate::value::Value;
use crate::watcher::Watcher;
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

/// The layers from some filter, or the plugin, inwards, while they are configured.
struct Inner<'a> {
    filters: &'a mut [Box<dyn Filter>],
    plugin: &'a mut dyn Plugin,
}

impl Configure for Inner<'_> {
    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        let shown = quoted(value.as_bytes());
        match self.filters.split_first_mut() {
            Some((filter, filters)) => {
                debug_control!("{}: config key={key}, value={shown}", filter.name());
                let mut inner = Inner { filters, plugin: self.plugin };
                filter.config(NextConfig::new(&mut inner), key, value)
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

    fn config_complete(&mut self) -> Result<()> {
        match self.filters.split_first_mut() {
            Some((filter, filters)) => {
                debug_control!("{}: config_complete", filter.name());
                let mut inner = Inner { filters, plugin: self.plugin };
                filter.config_complete(NextConfig::new(&mut inner))
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

    fn all(&mut self) -> Inner<'_> {
        Inner { filters: &mut self.filters, plugin: &mut *self.plugin }
    }

    /// Offers a parameter to the outermost layer.
    ///
    /// # Errors
    /// Unknown or bad parameter.
    pub fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        self.all().config(key, value)
    }

    /// Ends the parameters.
    ///
    /// # Errors
    /// A layer misses something.
    pub fn config_complete(&mut self) -> Result<()> {
        self.all().config_complete()
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

    /// As [`needs`](Self::needs), once every layer is ready.
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

    /// Which way a request goes, for the log: nbdkit 1.44, `-v`.
    pub fn describe(&self) -> String {
        let mut text = "request processing: ".to_owned();
        for (filter, place) in self.filters.iter().zip([", first"].into_iter().chain(repeat(""))) {
            text += &format!("{} (filter{place}) -> ", filter.name());
        }
        text + &format!("{} (plugin, last)", self.plugin.name())
    }

    /// Ends configuration: the outermost layer of the stack that serves.
    pub fn freeze(self) -> Arc<Layer> {
        let speaker = intern(self.plugin.name());
        let mut layer = Arc::new(Layer::new(speaker, speaker, Box::new(PluginModule(self.plugin))));
        for filter in self.filters.into_iter().rev() {
            let name = intern(filter.name());
            let module = Box::new(FilterModule { filter, below: layer });
            layer = Arc::new(Layer::new(name, speaker, module));
        }
        layer
    }
}

/// Names live as long as the process: log records carry them from any thread at any time, and there
/// are as many as there are layers.
fn intern(name: &str) -> &'static str {
    Box::leak(name.to_owned().into_boxed_str())
}

struct PluginModule(Box<dyn Plugin>);

impl Module for PluginModule {
    fn below(&self) -> Option<&Arc<Layer>> {
        None
    }

    fn after_fork(&self) -> Result<()> {
        self.0.after_fork()
    }

    fn warm_up(&self) -> Result<()> {
        self.0.warm_up()
    }

    fn in_service(&self) -> Result<()> {
        self.0.in_service()
    }

    fn cleanup(&self) {
        self.0.cleanup();
    }

    fn unload(&self) {
        self.0.unload();
    }

    fn temporary(&self) -> Vec<PathBuf> {
        self.0.temporary()
    }

    fn can_park(&self) -> bool {
        self.0.can_park()
    }

    fn worker_ended(&self) {}

    fn watcher(&self) -> Option<Box<dyn Watcher>> {
        None
    }

    fn notified(&self) {}

    fn preconnect(&self, client: &Arc<Client>, readonly: bool) -> Result<()> {
        self.0.preconnect(client, readonly)
    }

    fn list_exports(
        &self,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        self.0.list_exports(client, readonly, exports)
    }

    fn default_export(&self, client: &Arc<Client>, readonly: bool) -> Result<Option<String>> {
        self.0.default_export(client, readonly)
    }

    fn open(&self, open: &Open<'_>) -> Result<(Box<dyn OpenLayer>, Below)> {
        Ok((self.0.open(open)?.into_layer(), Below::default()))
    }
}

struct FilterModule {
    filter: Box<dyn Filter>,
    below: Arc<Layer>,
}

impl Module for FilterModule {
    fn below(&self) -> Option<&Arc<Layer>> {
        Some(&self.below)
    }

    fn after_fork(&self) -> Result<()> {
        self.filter.after_fork(&self.below)
    }

    fn warm_up(&self) -> Result<()> {
        self.filter.warm_up()
    }

    fn in_service(&self) -> Result<()> {
        Ok(())
    }

    fn cleanup(&self) {
        self.filter.cleanup(&self.below);
    }

    fn unload(&self) {
        self.filter.unload();
    }

    fn temporary(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    fn can_park(&self) -> bool {
        self.filter.can_park()
    }

    fn worker_ended(&self) {
        self.filter.worker_ended();
    }

    fn watcher(&self) -> Option<Box<dyn Watcher>> {
        self.filter.watcher()
    }

    fn notified(&self) {
        self.filter.notified();
    }

    fn preconnect(&self, client: &Arc<Client>, readonly: bool) -> Result<()> {
        self.filter.preconnect(&self.below, client, readonly)
    }

    fn list_exports(
        &self,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        self.filter.list_exports(&self.below, client, readonly, exports)
    }

    fn default_export(&self, client: &Arc<Client>, readonly: bool) -> Result<Option<String>> {
        self.filter.default_export(&self.below, client, readonly)
    }

    fn open(&self, open: &Open<'_>) -> Result<(Box<dyn OpenLayer>, Below)> {
        let mut slot = Slot::new(&self.below);
        let opened = self.filter.open(&mut slot, open)?;
        Ok((opened, slot.into_below()))
    }
}
