//! Entry points of the fuzz targets: the command line without a process, log lines without a log,
//! and a listener whose template and workers are the other ends of channels.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use nbdkit_ipc::messages::{LogRecord, Purpose};

use crate::cli::command_line::{Action, CommandLine, TlsMode};
use crate::cli::parse::{Environment, parse};
use crate::cli::uri;
use crate::log::{Speaker, format_line};
pub use crate::serve::fuzz::Listener;
use crate::template::TemplateSpec;
pub use crate::tls::{is_key_file, is_signed};

/// Parses a command line in an environment that the arguments are to describe completely: `files`
/// are the parameter files that there are. Returns what the server would print: an error, or the
/// URI and the start of the `--run` script.
///
/// # Errors
/// The text for standard error.
pub fn command_line(
    args: Vec<OsString>,
    activation: Option<(&OsStr, &OsStr)>,
    files: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
) -> Result<Vec<OsString>, String> {
    let environment = Environment {
        listen_pid: activation.map(|(pid, _)| pid.to_owned()),
        listen_fds: activation.map(|(_, fds)| fds.to_owned()),
        posixly_correct: false,
        pid: 1,
        current_dir: Some(PathBuf::from("/")),
        read_file: files,
    };
    let command = parse(args, &environment).map_err(|error| error.to_string())?;
    let CommandLine { action, options, .. } = command;
    let mut printed = Vec::new();
    if let Action::Serve { stack, service } = action {
        let spec = TemplateSpec::new(&stack, &options, Purpose::Serve, true, None);
        let _ = (spec.stack(), spec.repeatable());
        let endpoint = service.endpoint(Path::new("/private"));
        if let Some(endpoint) = endpoint {
            let mode = options.tls.mode.unwrap_or(TlsMode::Off);
            printed.push(uri::uri(endpoint, &options.export_name, mode, &options.tls).into());
        }
        let endpoint = service.endpoint(Path::new("/private"));
        let run = options.run.as_deref().unwrap_or_default();
        printed.push(uri::run_script(
            run,
            endpoint,
            &options.export_name,
            TlsMode::Off,
            &options.tls,
        ));
    }
    Ok(printed)
}

/// The line that a record becomes, as standard error or a file gets it.
pub fn log_line(record: &LogRecord) -> String {
    let layer = record.layer.as_deref();
    let speaker = Speaker { layer, connection: record.connection, client: None };
    format_line("nbdkit", speaker, record.level, &record.text, false)
}
