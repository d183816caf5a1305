//! The methods outside of connections: configuration, in the template, and what is asked before
//! a client has opened an export, in the workers.

use std::ffi::OsStr;
use std::io::Write;

use nbdkit_api::{Client, Error, Exports, Result, ThreadModel, debug, quoted};

use super::call::{Answer, Call, Scripts};
use super::status::MAX_KNOWN_STATUS;
use super::text;

/// Calls `config` with a parameter. False if there is no such method.
///
/// # Errors
/// The script does not like it.
pub(crate) fn config(scripts: &dyn Scripts, key: &str, value: &OsStr) -> Result<bool> {
    said(&Call::new(scripts, "config").arg(key).arg(value))
}

/// Calls a method without arguments that need not exist: `load`, `config_complete`, `get_ready`,
/// `after_fork`.
///
/// # Errors
/// The script's.
pub(crate) fn step(scripts: &dyn Scripts, method: &'static str) -> Result<()> {
    said(&Call::new(scripts, method)).map(drop)
}

/// The server ends with this error, so unlike in a request it must not be empty.
fn said(call: &Call<'_>) -> Result<bool> {
    call.action().map_err(|why| {
        if why.message().is_empty() { call.error(&why).with_errno(why.errno()) } else { why }
    })
}

/// Asks for the thread model. Without an answer, or with one that means nothing, it is the safe
/// one.
///
/// # Errors
/// The script's.
pub(crate) fn thread_model(scripts: &dyn Scripts) -> Result<ThreadModel> {
    let output = Call::new(scripts, "thread_model").text()?;
    let model = output.as_deref().map(|output| {
        text::thread_model(output).unwrap_or_else(|| {
            debug!("ignoring unrecognized thread model: {}", quoted(&output));
            ThreadModel::SerializeAllRequests
        })
    });
    Ok(model.unwrap_or(ThreadModel::SerializeAllRequests))
}

/// Calls `preconnect`.
///
/// # Errors
/// The client is not wanted.
pub(crate) fn preconnect(scripts: &dyn Scripts, client: &Client, readonly: bool) -> Result<()> {
    Call::new(scripts, "preconnect").client(Some(client)).boolean(readonly).action().map(drop)
}

/// Calls `list_exports`; without it there is the default export.
///
/// # Errors
/// The script's; EIO if what it printed is no list.
pub(crate) fn list_exports(
    scripts: &dyn Scripts,
    client: &Client,
    readonly: bool,
    exports: &mut Exports,
) -> Result<()> {
    let call = exports_call(scripts, "list_exports", client, readonly);
    match call.text()? {
        Some(output) => text::exports(&output, exports).map_err(|why| call.error(why)),
        None => {
            exports.use_default();
            Ok(())
        }
    }
}

/// Calls `default_export`; the first of what it prints is meant, nothing is `""`.
///
/// # Errors
/// The script's; EIO if what it printed is no list.
pub(crate) fn default_export(
    scripts: &dyn Scripts,
    client: &Client,
    readonly: bool,
) -> Result<Option<String>> {
    let call = exports_call(scripts, "default_export", client, readonly);
    let mut exports = Exports::new();
    if let Some(output) = call.text()? {
        text::exports(&output, &mut exports).map_err(|why| call.error(why))?;
    }
    Ok(Some(exports.iter().next().map_or_else(String::new, |export| export.name.clone())))
}

fn exports_call<'a>(
    scripts: &'a dyn Scripts,
    method: &'static str,
    client: &'a Client,
    readonly: bool,
) -> Call<'a> {
    Call::new(scripts, method).client(Some(client)).boolean(readonly).boolean(client.is_tls())
}

/// Prints what `--dump-plugin` prints, ending with what the script has to add.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn dump_plugin(
    scripts: Option<&dyn Scripts>,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    writeln!(out, "max_known_status={MAX_KNOWN_STATUS}")?;
    match scripts.map(|scripts| Call::new(scripts, "dump_plugin").answer()) {
        Some(Ok(Answer::Success(output))) => out.write_all(&output),
        Some(Err(why)) => {
            log(why);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Calls `unload` in the process that made the scripts' directory; in its copies, the workers,
/// nothing ends but a connection.
pub(crate) fn unload(scripts: &dyn Scripts) {
    if scripts.tmpdir().is_owner()
        && let Err(why) = Call::new(scripts, "unload").answer()
    {
        log(why);
    }
}

/// Logs an error that nobody can be given.
pub(super) fn log(mut why: Error) {
    if why.take_for_log() {
        nbdkit_api::error!("{}", why.message());
    }
}
