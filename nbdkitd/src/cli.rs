//! The command line: nbdkit(1)'s options, and those of this server.
//!
//! Everything here is pure except [`from_env`]: arguments and environment in, a typed
//! [`CommandLine`] or an error with nbdkit's text out. Runs in the listener before it has any
//! privilege to lose; the arguments are those of the caller, who is trusted to decide what is
//! served, but not to type well.
//!
//! - `options`: the table of options; `tokens`: cutting the arguments by it; `parse`: what they
//!   mean together
//! - `numbers`, `values`, `parameters`, `activation`: the parts that have a syntax of their own
//! - `uri`, `dump_config`, `build_info`: texts that are printed for other programs

#![forbid(unsafe_code)]

pub(crate) mod activation;
pub(crate) mod build_info;
pub(crate) mod command_line;
pub(crate) mod dump_config;
pub(crate) mod error;
mod numbers;
pub(crate) mod options;
pub(crate) mod parameters;
pub(crate) mod parse;
mod tokens;
pub(crate) mod uri;
mod values;

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use command_line::{Action, CommandLine};
use error::CliError;
use parse::Environment;

/// Parses the command line of this process.
///
/// # Errors
/// See [`parse::parse`]. Print the error, the usage if it wants that, and end with
/// [`error::EXIT_FAILURE`].
pub(crate) fn from_env() -> Result<CommandLine, CliError> {
    let environment = Environment {
        listen_pid: env::var_os("LISTEN_PID"),
        listen_fds: env::var_os("LISTEN_FDS"),
        posixly_correct: env::var_os("POSIXLY_CORRECT").is_some(),
        pid: std::process::id(),
        current_dir: env::current_dir().ok(),
        read_file: &read_file,
    };
    parse::parse(env::args_os().collect(), &environment)
}

/// What to print for an action that needs neither plugin nor socket; `None` for the others.
///
/// `binary` is the path of the running program.
pub(crate) fn answer(action: &Action, binary: &Path) -> Option<OsString> {
    match action {
        Action::Help => Some(options::help().into()),
        Action::Version => Some(build_info::version().into()),
        Action::DumpConfig => Some(dump_config::dump_config(binary, &build_info::directories())),
        Action::LongOptions => Some(options::long_options().into()),
        Action::ShortOptions => Some(options::short_options().into()),
        Action::PluginHelp(_)
        | Action::PluginVersion(_)
        | Action::DumpPlugin(_)
        | Action::Serve { .. } => None,
    }
}

/// Reads a parameter file. It may be a pipe, so its length shows only by reading.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    File::open(path)?.take(parameters::MAX_FILE + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > parameters::MAX_FILE {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_without_a_plugin_have_an_answer() {
        let binary = Path::new("/usr/sbin/nbdkit");
        for (action, beginning) in [
            (Action::Help, "nbdkit [-4|--ipv4-only]"),
            (Action::Version, "nbdkit 1."),
            (Action::DumpConfig, "binary=/usr/sbin/nbdkit\nbindir="),
            (Action::LongOptions, "--ipv4-only\n"),
            (Action::ShortOptions, "-4\n-6\n-D\n"),
        ] {
            let answer = answer(&action, binary).unwrap().into_string().unwrap();
            assert!(answer.starts_with(beginning) && answer.ends_with('\n'), "{answer}");
        }
    }

    #[test]
    fn parameter_files_are_read_whole_or_refused() {
        let path = env::temp_dir().join(format!("nbdkitd-parameters-{}", std::process::id()));
        std::fs::write(&path, "a=1\n").unwrap();
        assert_eq!(read_file(&path).unwrap(), b"a=1\n");
        std::fs::write(&path, vec![b'x'; (1 << 20) + 1]).unwrap();
        assert!(read_file(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
