//! From the listener's `Configure` to a configured stack: loading modules by name, handing out parameters.
//! nbdkit(1), "Plugin name", "Plugin configuration".

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nbdkit_api::{Error, Filter, Plugin, Result, Stack, Value, debug};
use nbdkit_ipc::messages::{Configure, DebugFlag, Parameter};

use crate::cabi;
use crate::script_plugin::ScriptPlugin;

/// If the plugin is a script, puts the plugin of its language in its place and the script before all parameters.
///
/// # Errors
/// The script may not be executed or is for no plugin.
pub(crate) fn expand_script(
    configure: &mut Configure,
    parameters: &mut Vec<Parameter>,
) -> Result<()> {
    if let Some(ScriptPlugin { path, language }) = script_of(&configure.plugin)? {
        configure.plugin = language;
        parameters.insert(0, Parameter { key: None, value: path.into() });
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
    for flag in &configure.debug_flags {
        let known = flag.name == "nbdkit"
            || flag.name == stack.plugin().name()
            || stack.filters().any(|filter| filter.name() == flag.name);
        if !known {
            debug!("debug flag -D {}.{} was not used", flag.name, flag.flag);
        }
        nbdkit_api::log::set_flag(&flag.name, &flag.flag, flag.value);
    }
    Ok(stack)
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
    red_team || name.to_str().and_then(nbdkit_plugins::load).is_some()
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
    match name.to_str().and_then(nbdkit_plugins::load) {
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

/// Hands every parameter to the stack. A bare value goes to the plugin's magic key; the first one, if
/// the plugin has no magic key, is a script (nbdkit(1), "Magic parameters").
///
/// # Errors
/// A layer's, or a bare value that has nowhere to go.
pub(crate) fn parameters(stack: &mut Stack, parameters: &[Parameter]) -> Result<()> {
    let magic = stack.plugin().magic_config_key().map(str::to_owned);
    for (index, Parameter { key, value }) in parameters.iter().enumerate() {
        let key = match (key, &magic) {
            (Some(key), _) => key,
            (None, Some(magic)) => magic,
            (None, None) if index == 0 => "script",
            (None, None) => {
                return Err(Error::msg(format!(
                    "expecting key=value on the command line but got: {}",
                    value.as_bytes().escape_ascii()
                )));
            }
        };
        stack.config(key, Value::new(value))?;
    }
    Ok(())
}
