//! `nbdkit`, the listener: sockets, privileges, signals, the log. It parses the command line, has
//! `nbdkit-worker` configure plugin and filters and serve the clients, and never reads a byte that
//! a client sent.
//!
//! - `cli`: the command line; `preflight`, `identity`: before anything is started; `tls`: keys, and
//!   their use
//! - `daemon`: into the background; `template`: starting `nbdkit-worker`, and its channel
//! - `sockets`: listening sockets; `made`: files that a failed start removes; `serve`: the loop;
//!   `connections`: its table of clients
//! - `privileges`, `confine`: dropping privileges before the first client; `spawner`: starting
//!   templates from then on
//! - `log`: the only writer of the log; `captive`: `--run`; `notify`: systemd; `datagram`: sockets
//!   for log and systemd; `sys`: the only unsafe code
//!
//! A library, so that the fuzz targets reach its internals. The program is [`main`].

#![deny(unsafe_code)]

mod admission;
mod captive;
mod cli;
mod confine;
mod connections;
mod daemon;
mod datagram;
mod descriptors;
mod error;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
mod identity;
mod log;
mod made;
mod notify;
mod parking;
mod peer_key;
mod pid_file;
mod preflight;
mod privileges;
mod serve;
mod sockets;
mod spawner;
mod sys;
mod system_error;
mod template;
mod tls;

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use nbdkit_common::{errno_text, strerror};
use nbdkit_ipc::messages::Purpose;
use nbdkit_ipc::oom;
use nbdkit_sandbox::signals::survive_file_size_limit;
use nix::unistd::getppid;

use captive::Streams;
use cli::command_line::{Action, CommandLine, Options, Sandbox, ServiceMode, Stack};
use cli::error::EXIT_FAILURE;
use cli::{build_info, options};
use daemon::Forked;
use error::StartError;
use log::Log;
use serve::{End, FirstStart, Plan, Server};
use system_error::SystemError;
use template::TemplateSpec;

/// The program.
pub fn main() -> ExitCode {
    let parent = getppid();
    survive_file_size_limit();
    let command = match cli::from_env() {
        Ok(command) => command,
        Err(error) => {
            eprintln!("{error}");
            if error.wants_usage() {
                print(options::usage().as_ref());
            }
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    for notice in &command.notices {
        eprintln!("{notice}");
    }
    let binary = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("nbdkit"));
    if let Some(answer) = cli::answer(&command.action, &binary) {
        return print(&answer);
    }
    let program = command.program.clone();
    run(command, parent).unwrap_or_else(|error| {
        eprintln!("{program}: error: {error}");
        ExitCode::from(EXIT_FAILURE)
    })
}

/// Runs what needs the plugin.
fn run(command: CommandLine, parent: nix::unistd::Pid) -> Result<ExitCode, StartError> {
    let CommandLine { program, action, options, .. } = command;
    let (stack, purpose, mode) = match action {
        Action::PluginHelp(stack) => (stack, Purpose::Help, None),
        Action::PluginVersion(stack) => (stack, Purpose::Version, None),
        Action::DumpPlugin(stack) => (stack, Purpose::DumpPlugin, None),
        Action::Serve { stack, service } => (stack, Purpose::Serve, Some(service)),
        // Answered before.
        Action::Help
        | Action::Version
        | Action::DumpConfig
        | Action::LongOptions
        | Action::ShortOptions => return Ok(ExitCode::SUCCESS),
    };
    // First of all, before other descriptors could be mistaken for the sockets of socket
    // activation.
    let adopted = match mode {
        Some(ServiceMode::SocketActivation { count }) => sockets::adopt(count)?,
        _ => Vec::new(),
    };
    // Then the fork: from here on this is the process that serves.
    let report = if mode.is_some() && !options.foreground {
        match daemon::fork(&program)? {
            Forked::Launcher(status) => return Ok(status),
            Forked::Server(report) => Some(report),
        }
    } else {
        None
    };
    if options.exit_with_parent {
        preflight::exit_with_parent(parent)?;
    }
    let identity = identity::identity(options.user.as_deref(), options.group.as_deref())?;
    let sandboxed = options.sandbox != Some(Sandbox::Off);
    let listener_user = OnceCell::new();
    if let Some(name) = options.listener_user.as_deref() {
        let _ = listener_user.set(identity::listener_user(Some(name), sandboxed, identity)?);
    }
    let mut log = Log::new(&program, &options)?;
    let single = mode == Some(ServiceMode::Stdin);
    let streams = if single {
        // They are the client's: nothing else may read or write them.
        let streams = Streams::keep().map_err(SystemError::in_call("dup"))?;
        daemon::release_standard_streams()?;
        Some(streams)
    } else {
        None
    };
    let unprotected = if purpose == Purpose::Serve { protect(&options, &log) } else { None };
    let tls = if purpose == Purpose::Serve {
        let directory = build_info::directories().root_tls_certificates_dir;
        tls::load(&options, directory.as_ref(), &log)?
    } else {
        None
    };
    let spec = TemplateSpec::new(&stack, &options, purpose, !single, tls.as_ref());
    log.set_stack(spec.stack());
    let plugin = plugin_name(&stack);
    let first = Some(FirstStart { adopted });
    let plan = Plan {
        options,
        mode,
        first,
        identity,
        listener_user,
        report,
        streams,
        spec,
        plugin,
        tls,
        unprotected,
    };
    Ok(match Server::start(plan, log)?.run() {
        End::Status(status) => ExitCode::from(status),
        End::Signal(signal) => {
            // As if the signal had not been caught: a start-up need not be finished.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            ExitCode::from(EXIT_FAILURE)
        }
    })
}

/// Protects a server of swap space, or of the root disk, from the OOM killer. Returns the score
/// that it had, if it has another one now. Must be called before any other process is started,
/// which inherits the score.
fn protect(options: &Options, log: &Log) -> Option<i32> {
    if !options.swap && !template::is_spared() {
        return None;
    }
    let before = oom::own().ok();
    match oom::protect() {
        Ok(()) => before,
        Err(error) => {
            log.notice(&format!(
                "{}: {}: the kernel may kill this server when memory is short",
                oom::OWN,
                errno_text(&error)
            ));
            None
        }
    }
}

/// The plugin's short name, by its file name: the plugin is not loaded here.
fn plugin_name(stack: &Stack) -> String {
    let name = stack.plugin.to_string_lossy();
    let name = name.rsplit('/').next().unwrap_or_default();
    let name = name.strip_prefix("nbdkit-").unwrap_or(name);
    name.strip_suffix("-plugin.so").unwrap_or(name).to_owned()
}

fn print(text: &OsStr) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has closed the pipe, such as grep -q. Rust ignores SIGPIPE; nbdkit is
        // killed by it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            let _ = signal_hook::low_level::emulate_default_handler(signal_hook::consts::SIGPIPE);
            ExitCode::from(EXIT_FAILURE)
        }
        Err(error) => {
            eprintln!("nbdkit: error: standard output: {}", errno_text(&error));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_named_by_its_name_or_file() {
        for (given, name) in [
            ("memory", "memory"),
            ("./nbdkit-foo-plugin.so", "foo"),
            ("/x/y/nbdkit-a-b-plugin.so", "a-b"),
            ("/x/odd.so", "odd.so"),
        ] {
            let plugin = given.into();
            let stack = Stack { filters: Vec::new(), plugin, parameters: Vec::new() };
            assert_eq!(plugin_name(&stack), name);
        }
    }
}
