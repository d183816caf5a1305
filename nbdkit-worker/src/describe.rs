//! What `--help`, `--version` and `--dump-plugin` print about the modules of a stack. nbdkit-probing(1).

#![forbid(unsafe_code)]

use std::io::{self, Write};

use nbdkit_api::{Plugin, Stack, ThreadModel};

/// The nbdkit version whose behaviour we keep to, which modules without one of their own report.
const COMPATIBILITY: &str = "1.40.4";

/// Name, long name, description and parameters of each filter and the plugin.
pub(crate) fn help(stack: &Stack) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for filter in stack.filters() {
        let texts = [filter.longname(), filter.description(), filter.config_help()];
        describe(&mut out, "filter", filter.name(), texts)?;
    }
    let plugin = stack.plugin();
    let texts = [plugin.longname(), plugin.description(), plugin.config_help()];
    describe(&mut out, "plugin", plugin.name(), texts)?;
    out.flush()
}

fn describe(
    out: &mut dyn Write,
    what: &str,
    name: &str,
    [longname, description, config_help]: [Option<&str>; 3],
) -> io::Result<()> {
    match longname {
        Some(longname) => writeln!(out, "{what}: {name} ({longname})")?,
        None => writeln!(out, "{what}: {name}")?,
    }
    writeln!(out, "(built-in)")?;
    for text in [description, config_help].into_iter().flatten() {
        writeln!(out, "{}", text.trim_end_matches('\n'))?;
    }
    Ok(())
}

/// Name and version of each.
pub(crate) fn version(stack: &Stack) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for filter in stack.filters() {
        writeln!(out, "{} {COMPATIBILITY}", filter.name())?;
    }
    writeln!(
        out,
        "{} {}",
        stack.plugin().name(),
        stack.plugin().version().unwrap_or(COMPATIBILITY)
    )?;
    out.flush()
}

/// `key=value` lines for scripts. nbdkit-probing(1), "--dump-plugin".
pub(crate) fn dump_plugin(stack: &Stack, model: ThreadModel) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let plugin = stack.plugin();
    // Where the code of a built-in module is.
    let path = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    writeln!(out, "path={}", path.display())?;
    writeln!(out, "name={}", plugin.name())?;
    writeln!(out, "version={}", plugin.version().unwrap_or(COMPATIBILITY))?;
    writeln!(out, "api_version=2")?;
    writeln!(out, "max_thread_model={}", plugin.max_thread_model().as_str())?;
    writeln!(out, "thread_model={}", model.as_str())?;
    writeln!(out, "errno_is_preserved=1")?;
    if let Some(key) = plugin.magic_config_key() {
        writeln!(out, "magic_config_key={key}")?;
    }
    plugin_callbacks(plugin, &mut out)?;
    plugin.dump_plugin(&mut out)?;
    for filter in stack.filters() {
        writeln!(out, "{}_path={}", filter.name(), path.display())?;
        writeln!(out, "{}_name={}", filter.name(), filter.name())?;
        filter.dump_plugin(&mut out)?;
    }
    out.flush()
}

/// The callbacks that a module in C would have to have; a Rust trait has them all, so just those are named
/// whose absence means something to scripts.
fn plugin_callbacks(plugin: &dyn Plugin, out: &mut dyn Write) -> io::Result<()> {
    if plugin.has_config() {
        writeln!(out, "has_config=1")?;
    }
    for callback in ["open", "get_size", "pread"] {
        writeln!(out, "has_{callback}=1")?;
    }
    Ok(())
}
