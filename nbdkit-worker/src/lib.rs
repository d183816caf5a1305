//! `nbdkit-worker`: the template that configures the stack of plugin and filters, and the workers
//! that are forked from it, one for each client.
//!
//! Started by the listener (`nbdkit`) only, with the number of its control channel as the one
//! argument. A library, so that the fuzz targets reach what no other program should: [`main`] is
//! all that the program is, and [`main_with_pre_shared_keys`] all that the other one is.

#![deny(unsafe_code)]

mod authority;
mod broker;
mod cabi;
mod cc;
mod code_pages;
mod configure;
mod connection;
mod describe;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod log;
mod oom;
mod privileges;
mod process;
mod sandbox;
mod script_plugin;
mod settings;
mod template;
mod tls;
mod watcher;

use std::io::Write;
use std::process::ExitCode;

use nbdkit_ipc::{Channel, inherited, title};

/// The program `nbdkit-worker`.
pub fn main() -> ExitCode {
    run(None)
}

/// The program `nbdkit-worker-psk`: the same, with pre-shared keys. It alone is linked with
/// OpenSSL, which takes as long to load as everything else, and whose pages each worker would have.
pub fn main_with_pre_shared_keys() -> ExitCode {
    tls::lend_pre_shared_keys();
    run(Some(tls::pre_shared_keys))
}

fn run(pre_shared_keys: Option<tls::MakeSessions>) -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    if args.peek().is_some_and(|first| first == "--built-in") {
        return print_built_in();
    }
    let (Some(Ok(number)), None) = (args.next().map(|arg| arg.parse()), args.next()) else {
        eprintln!("nbdkit-worker: this program is started by nbdkit and is of no use on its own");
        return ExitCode::FAILURE;
    };
    let inherited = inherited(number);
    title::adopt();
    // The spawner executes a descriptor, and the kernel names the process by that number.
    let _ = nix::sys::prctl::set_name(c"nbdkit-worker");
    nbdkit_sandbox::signals::survive_file_size_limit();
    match inherited {
        Ok(fd) => template::run(Channel::from_fd(fd), pre_shared_keys),
        Err(error) => {
            eprintln!("nbdkit-worker: control channel {number}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// For "make install": the kind and the name of each built-in module, a line each.
fn print_built_in() -> ExitCode {
    let plugins = configure::built_in_names().map(|name| format!("plugin {name}\n"));
    let filters = nbdkit_filters::names().map(|name| format!("filter {name}\n"));
    let lines: String = plugins.chain(filters).collect();
    match std::io::stdout().write_all(lines.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nbdkit-worker: standard output: {error}");
            ExitCode::FAILURE
        }
    }
}
