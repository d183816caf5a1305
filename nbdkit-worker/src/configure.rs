//! From the listener's `Configure` to a configured stack: loading modules by name, handing out
//! parameters. nbdkit(1), "Plugin name", "Plugin configuration".

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nbdkit_api::{Error, Filter, Plugin, Result, Stack, Value, log, quoted};
use nbdkit_ipc::messages::{Applies, Configure, DebugFlag, Parameter};

use crate::cabi;
use crate::cc::{self, Cc};
use crate::connection::pin;
use crate::script_plugin::ScriptPlugin;

/// If the plugin is a script, puts the plugin of its language in its place and the script before
/// all parameters.
///
/// # Errors
/// The script may not be executed or is for no plugin.
pub(crate) fn expand_script(
    configure: &mut Configure,
    parameters: &mut Vec<Parameter>,
) -> Result<()> {
    if let Some(ScriptPlugin { path, language }) = script_of(&configure.plugin)? {
        configure.plugin = language;
        let applies = Applies::Always;
        parameters.insert(0, Parameter { key: None, value: path.into(), applies });
    }
    Ok(())
}

/// Loads plugin and filters and sets debug flags.
///
/// # Errors
/// A name that is not known.
pub(crate) fn load(configure: &Configure) -> Result<Stack> {
    let plugin = load_plugin(&configure.plugin, &configure.debug_flags)?;
    // The innermost filter first, as they are stacked.
    let filters = configure.filters.iter().rev();
    let filters = filters.map(|name| load_filter(name, &configure.debug_flags));
    let mut filters = filters.collect::<Result<Vec<_>>>()?;
    filters.reverse();
    let stack = Stack::new(filters, plugin);
    for DebugFlag { name, flag, value } in &configure.debug_flags {
        match owner_of(&stack, name) {
            Owner::Nobody => log::warning(&format!("debug flag -D {name}.{flag} was not used")),
            Owner::Knows(flags) if !flags.contains(&flag.as_str()) => {
                log::warning(&unknown_flag(name, flag));
            }
            // A module in C has got its own by now, with a warning about each that it lacks.
            Owner::Knows(_) | Owner::InC => {}
        }
        log::set_flag(name, flag, *value);
    }
    Ok(stack)
}

/// The debug flags of the server. nbdkit(1), "SERVER DEBUG FLAGS".
const SERVER_FLAGS: &[&str] = &[
    "backend.controlpath",
    "backend.datapath",
    "environ",
    pin::ATTEMPTS,
    pin::BUSY_POLL,
    pin::CALLS,
    pin::GROUPS,
    pin::REQUEST_POLL,
    pin::SPLICE,
    pin::TURNS,
    pin::WRITES,
    #[cfg(feature = "red-team")]
    "skip",
    "tls.log",
    "tls.session",
];

/// Whose debug flags those of a name are.
enum Owner {
    Nobody,
    /// The server's, or a built-in module's.
    Knows(&'static [&'static str]),
    InC,
}

fn owner_of(stack: &Stack, name: &str) -> Owner {
    if name == "nbdkit" {
        return Owner::Knows(SERVER_FLAGS);
    }
    let plugin = stack.plugin();
    let filter = stack.filters().find(|filter| filter.name() == name);
    match (plugin.name() == name, filter) {
        (true, _) if plugin.file().is_some() => Owner::InC,
        (true, _) => Owner::Knows(plugin.debug_flags()),
        (false, Some(filter)) if filter.file().is_some() => Owner::InC,
        (false, Some(filter)) => Owner::Knows(filter.debug_flags()),
        // What it compiles has a name of its own.
        (false, None) if plugin.name() == cc::NAME => Owner::InC,
        (false, None) => Owner::Nobody,
    }
}

/// The warning about a debug flag that its module does not have, nbdkit's text.
pub(crate) fn unknown_flag(name: &str, flag: &str) -> String {
    let variable = cabi::library::debug_variable(name, flag);
    format!("-D {name}.{flag}: {name} does not contain a global variable called {variable}")
}

/// The script that a name stands for. Plugins in code come first.
fn script_of(name: &OsStr) -> Result<Option<ScriptPlugin>> {
    if is_path(name) {
        return ScriptPlugin::open(Path::new(name));
    }
    if is_built_in(name) || cabi::search::plugin(name).exists() {
        return Ok(None);
    }
    ScriptPlugin::open(&cabi::search::script(name))
}

fn is_built_in(name: &OsStr) -> bool {
    let red_team = cfg!(feature = "red-team") && name == "redteam";
    red_team || name.to_str().and_then(|name| built_in(name, &[])).is_some()
}

/// A built-in plugin. Only the one that compiles others uses `flags`.
pub(crate) fn built_in(name: &str, flags: &[DebugFlag]) -> Option<Box<dyn Plugin>> {
    match name {
        cc::NAME => Some(Box::new(Cc::new(flags))),
        name => nbdkit_plugins::load(name),
    }
}

/// The names of all built-in plugins.
pub(crate) fn built_in_names() -> impl Iterator<Item = &'static str> {
    [cc::NAME].into_iter().chain(nbdkit_plugins::names())
}

/// An argument with any of these is a path and not a short name (nbdkit 1.40, "Loading plugins").
fn is_path(name: &OsStr) -> bool {
    name.as_bytes().iter().any(|byte| {
        matches!(byte, b'/' | b'\\' | b':' | b';' | b' ' | b'.' | b',' | b'=' | 127 | 0..=31)
    })
}

/// By short name a built-in plugin, or else one from the plugin directories; by path a file.
fn load_plugin(name: &OsStr, flags: &[DebugFlag]) -> Result<Box<dyn Plugin>> {
    if is_path(name) {
        return cabi::load_plugin(name, Path::new(name), flags);
    }
    #[cfg(feature = "red-team")]
    if name == "redteam" {
        return Ok(Box::<nbdkit_redteam::RedTeam>::default());
    }
    match name.to_str().and_then(|name| built_in(name, flags)) {
        Some(plugin) => Ok(plugin),
        None => cabi::load_plugin(name, &cabi::search::plugin(name), flags),
    }
}

/// As plugins.
fn load_filter(name: &OsStr, flags: &[DebugFlag]) -> Result<Box<dyn Filter>> {
    if is_path(name) {
        return cabi::load_filter(name, Path::new(name), flags);
    }
    match name.to_str().and_then(nbdkit_filters::load) {
        Some(filter) => Ok(filter),
        None => cabi::load_filter(name, &cabi::search::filter(name), flags),
    }
}

/// Hands every parameter to the stack. A bare value goes to the plugin's magic key; the first one,
/// if the plugin has no magic key, is a script (nbdkit(1), "Magic parameters").
///
/// # Errors
/// A layer's, or a bare value that has nowhere to go.
pub(crate) fn parameters(stack: &mut Stack, parameters: &[Parameter]) -> Result<()> {
    let magic = stack.plugin().magic_config_key().map(str::to_owned);
    let parameters = parameters.iter().filter(|parameter| match parameter.applies {
        Applies::Always => true,
        Applies::WithMagicKey => magic.is_some(),
        Applies::WithoutMagicKey | Applies::RefusedWithoutMagicKey => magic.is_none(),
    });
    for (index, Parameter { key, value, applies }) in parameters.enumerate() {
        if *applies == Applies::RefusedWithoutMagicKey {
            return Err(Error::msg(value.to_string_lossy().into_owned()));
        }
        let key = match (key, &magic) {
            (Some(key), _) => key,
            (None, Some(magic)) => magic,
            (None, None) if index == 0 => "script",
            (None, None) => {
                return Err(Error::msg(format!(
                    "expecting key=value on the command line but got: {}",
                    quoted(value.as_bytes())
                )));
            }
        };
        stack.config(key, Value::new(value))?;
    }
    Ok(())
}
