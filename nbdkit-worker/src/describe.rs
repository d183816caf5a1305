//! What `--help`, `--version` and `--dump-plugin` print about the modules of a stack.
//! nbdkit-probing(1).

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::PathBuf;

/// The version that modules without one of their own report.
pub(crate) use nbdkit_api::NBDKIT_VERSION as COMPATIBILITY;
use nbdkit_api::{ModuleFile, Plugin, Stack, ThreadModel};

use crate::cabi;

/// The server's own help, then name, long name, description and parameters of each filter and the
/// plugin.
pub(crate) fn help(stack: &Stack, introduction: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(introduction.as_bytes())?;
    for filter in stack.filters() {
        let texts = [filter.longname(), filter.description(), filter.config_help()];
        describe(&mut out, "filter", filter.name(), filter.file(), texts)?;
    }
    let plugin = stack.plugin();
    let texts = [plugin.longname(), plugin.description(), plugin.config_help()];
    describe(&mut out, "plugin", plugin.name(), plugin.file(), texts)?;
    out.flush()
}

fn describe(
    out: &mut dyn Write,
    what: &str,
    name: &str,
    file: Option<&ModuleFile>,
    [longname, description, config_help]: [Option<&str>; 3],
) -> io::Result<()> {
    match longname {
        Some(longname) => writeln!(out, "{what}: {name} ({longname})")?,
        None => writeln!(out, "{what}: {name}")?,
    }
    match file {
        Some(file) => writeln!(out, "({})", file.path.display())?,
        None => writeln!(out, "(built-in)")?,
    }
    for text in [description, config_help].into_iter().flatten() {
        writeln!(out, "{}", text.trim_end_matches('\n'))?;
    }
    Ok(())
}

/// The server's own version, then name and version of each.
pub(crate) fn version(stack: &Stack, introduction: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(introduction.as_bytes())?;
    for filter in stack.filters() {
        writeln!(out, "{} {COMPATIBILITY}", filter.name())?;
    }
    let plugin = stack.plugin();
    match version_of(plugin) {
        Some(version) => writeln!(out, "{} {version}", plugin.name())?,
        None => writeln!(out, "{}", plugin.name())?,
    }
    out.flush()
}

/// A built-in plugin is as old as the server; one of another's making may not say.
fn version_of(plugin: &dyn Plugin) -> Option<&str> {
    plugin.version().or_else(|| plugin.file().is_none().then_some(COMPATIBILITY))
}

/// Where a module is: its file, or of a built-in one the file that is installed for it, or this
/// program.
fn path(what: &str, name: &str, file: Option<&ModuleFile>) -> PathBuf {
    let program = || std::fs::read_link("/proc/self/exe").unwrap_or_default();
    match file {
        Some(file) => file.path.clone(),
        None => cabi::search::stand_in(what, name).unwrap_or_else(program),
    }
}

/// `key=value` lines for scripts. nbdkit-probing(1), "--dump-plugin".
pub(crate) fn dump_plugin(stack: &Stack, model: ThreadModel) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let plugin = stack.plugin();
    let file = plugin.file();
    writeln!(out, "path={}", path("plugin", plugin.name(), file).display())?;
    writeln!(out, "name={}", plugin.name())?;
    if let Some(version) = version_of(plugin) {
        writeln!(out, "version={version}")?;
    }
    writeln!(out, "api_version={}", file.map_or(2, |file| file.api_version))?;
    let struct_size = file.map_or(cabi::PLUGIN_STRUCT_SIZE, |file| file.struct_size);
    writeln!(out, "struct_size={struct_size}")?;
    writeln!(out, "max_thread_model={}", plugin.max_thread_model().as_str())?;
    writeln!(out, "thread_model={}", model.as_str())?;
    let errno_is_preserved = file.is_none_or(|file| file.errno_is_preserved);
    writeln!(out, "errno_is_preserved={}", u8::from(errno_is_preserved))?;
    if let Some(key) = plugin.magic_config_key() {
        writeln!(out, "magic_config_key={key}")?;
    }
    plugin_callbacks(plugin, &mut out)?;
    confinement(stack, &mut out)?;
    plugin.dump_plugin(&mut out)?;
    for filter in stack.filters() {
        let name = filter.name();
        writeln!(out, "{name}_path={}", path("filter", name, filter.file()).display())?;
        writeln!(out, "{name}_name={name}")?;
        filter.dump_plugin(&mut out)?;
    }
    out.flush()
}

/// The callbacks that the plugin has.
fn plugin_callbacks(plugin: &dyn Plugin, out: &mut dyn Write) -> io::Result<()> {
    let members = plugin.file().map_or(plugin.callbacks(), |file| &file.members);
    members.iter().try_for_each(|member| writeln!(out, "has_{member}=1"))
}

/// How the stack is confined unless the command line says otherwise, and what it needs, as far as
/// that is known before `config_complete`. Keys that nbdkit does not have.
fn confinement(stack: &Stack, out: &mut dyn Write) -> io::Result<()> {
    let needs = stack.needs(false);
    writeln!(out, "sandbox={}", needs.level().as_str())?;
    let isolation = stack.default_isolation().min(stack.isolation());
    writeln!(out, "isolation={}", isolation.as_str())?;
    let flags = [
        ("programs", needs.programs),
        ("shutdown", needs.shutdown && !needs.undeclared),
        ("threads", needs.threads),
        ("trust_roots", needs.trust_roots),
    ];
    for (flag, _) in flags.iter().filter(|(_, needed)| *needed) {
        writeln!(out, "needs_{flag}=1")?;
    }
    Ok(())
}
