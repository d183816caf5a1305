//! The configured plugin. What its `open` makes for a client is a [`Connection`].
//! nbdkit-plugin(3), "Callbacks".

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use crate::client::Client;
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::exports::Exports;
use crate::module::ModuleFile;
use crate::needs::{Isolation, Needs};
use crate::open::Open;
use crate::types::ThreadModel;
use crate::value::Value;

/// A plugin, from `load` (its constructor) to `unload`.
///
/// The order of calls is nbdkit's: `config` for each parameter, `config_complete`, `thread_model`,
/// `get_ready`, `checked_needs` as the invoking user; `after_fork` and `warm_up` once privileges
/// are dropped, and `in_service` once the sandbox is closed; then for each client `preconnect`,
/// `list_exports`, `default_export` and `open`; `cleanup` at the end. Up to and with `warm_up` they
/// run in the template; from `preconnect` to `open` in a process or thread of the client, several
/// at a time as far as the thread model allows. With [`Isolation::Connection`] what a client
/// changes in ordinary memory no other client sees: shared state lives in [`crate::shared`] objects
/// made up to `get_ready`.
pub trait Plugin: Send + Sync {
    /// The short name, ASCII alphanumerics and `-`.
    fn name(&self) -> &str;

    /// Free text name for messages.
    fn longname(&self) -> Option<&str> {
        None
    }

    /// Version of the plugin; `None` stands for the server's own.
    fn version(&self) -> Option<&str> {
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

    /// The key that a bare value is for.
    fn magic_config_key(&self) -> Option<&str> {
        None
    }

    /// Whether there are parameters at all; without, giving one is an error of the server's.
    fn has_config(&self) -> bool {
        true
    }

    /// Takes one parameter. The default knows none.
    ///
    /// # Errors
    /// Unknown key or bad value; the server does not start.
    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        let _ = value;
        Err(Error::unknown_parameter(key))
    }

    /// Called after the last parameter.
    ///
    /// # Errors
    /// Something is missing or contradictory; the server does not start.
    fn config_complete(&mut self) -> Result<()> {
        Ok(())
    }

    /// The most parallel model that the plugin can stand in any configuration.
    fn max_thread_model(&self) -> ThreadModel {
        ThreadModel::Parallel
    }

    /// The model for this configuration, asked after `config_complete`.
    ///
    /// # Errors
    /// The server does not start.
    fn thread_model(&self) -> Result<ThreadModel> {
        Ok(self.max_thread_model())
    }

    /// Last chance for errors that the user sees: open files, allocate, read passwords.
    /// Must not start threads.
    ///
    /// # Errors
    /// The server does not start.
    fn get_ready(&mut self) -> Result<()> {
        Ok(())
    }

    /// Called once as the final user, before the sandbox closes and before the first client. With
    /// [`Isolation::Connection`] it must not start threads, since this process forks.
    ///
    /// # Errors
    /// The server stops.
    fn after_fork(&self) -> Result<()> {
        Ok(())
    }

    /// Called once, behind `after_fork` of every layer and as the last thing before the sandbox
    /// closes: loads what libraries would otherwise load when they are first used, and could not
    /// any more. Name service modules, converters of character sets, locales, OpenSSL's
    /// configuration. Must not start threads.
    ///
    /// # Errors
    /// The server stops.
    fn warm_up(&self) -> Result<()> {
        Ok(())
    }

    /// Called once by the process that serves all clients, with [`Isolation::Shared`], when its
    /// sandbox is closed and before the first client: for programs that run as long as it does, and
    /// for what clients share of connections.
    ///
    /// # Errors
    /// The server stops.
    fn in_service(&self) -> Result<()> {
        Ok(())
    }

    /// Called once in the template after the last client has gone.
    fn cleanup(&self) {}

    /// Called last, in the template and unless the server failed to start.
    fn unload(&self) {}

    /// The file that it was loaded from; `None` for those that are built in.
    fn file(&self) -> Option<&ModuleFile> {
        None
    }

    /// The callbacks that it implements, by the names and in the order of `struct nbdkit_plugin`,
    /// for `--dump-plugin` (`has_can_cache=1`), which programs look through. One that was loaded
    /// from a file says so there.
    fn callbacks(&self) -> &'static [&'static str] {
        &[]
    }

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

    /// What connections will touch, asked after `get_ready`. `readonly`: no client may write
    /// (`-r`).
    fn needs(&self, readonly: bool) -> Needs {
        let _ = readonly;
        Needs::nothing()
    }

    /// As [`needs`](Self::needs), of code whose declaration has to be checked. The server asks this
    /// once, after `get_ready`; `--dump-plugin`, which configures nothing, asks `needs`.
    ///
    /// # Errors
    /// The declaration cannot be used; the server does not start.
    fn checked_needs(&self, readonly: bool) -> Result<Needs> {
        Ok(self.needs(readonly))
    }

    /// How clients may be divided over processes in this configuration.
    fn isolation(&self) -> Isolation {
        Isolation::Connection
    }

    /// How clients are divided unless the command line says otherwise.
    fn default_isolation(&self) -> Isolation {
        self.isolation()
    }

    /// Temporary files and directories that were made during configuration and are used and removed
    /// in service. They are given, with what the directories contain, to the final user (`-u`,
    /// `-g`).
    fn temporary(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Whether the disk, or what clients changed on it, is kept in memory or in unnamed files made
    /// by this process. If so, a template that died is not replaced by a new one with an empty
    /// disk.
    fn keeps_state(&self) -> bool {
        false
    }

    /// Whether a connection may be closed while its client is idle, and opened again when it sends
    /// the next request, without the client noticing: nothing is in it that `open` does not make
    /// again, and both take no time.
    fn can_park(&self) -> bool {
        false
    }

    /// Called when a client has connected, before any negotiation.
    ///
    /// # Errors
    /// The client is dropped.
    fn preconnect(&self, client: &Arc<Client>, readonly: bool) -> Result<()> {
        let _ = (client, readonly);
        Ok(())
    }

    /// Fills the answer to NBD_OPT_LIST. The default advertises the default export.
    ///
    /// # Errors
    /// The option fails.
    fn list_exports(
        &self,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        let _ = (client, readonly);
        exports.use_default();
        Ok(())
    }

    /// The name that the export `""` stands for; `None` if there is no default export.
    ///
    /// # Errors
    /// The option fails.
    fn default_export(&self, client: &Arc<Client>, readonly: bool) -> Result<Option<String>> {
        let _ = (client, readonly);
        Ok(Some(String::new()))
    }

    /// Opens the disk for a client that picked an export.
    ///
    /// # Errors
    /// The option fails; the client may try another export.
    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>>;
}
