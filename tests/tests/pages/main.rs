//! The manual pages and completions against what the programs themselves say: every plugin, filter,
//! option and parameter has its entry, no entry is of something that is not there, and what pages
//! tell the reader to type works.

mod completions;
mod examples;
mod language;
mod module_examples;
mod modules;
mod options;
mod page;
mod parameters;
mod prepared;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::command::{Finished, run};

/// Longest time that one command may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace")
}

/// Runs the server in `dir`.
fn nbdkit<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I, dir: &Path) -> Finished {
    let mut command = Command::new(Binary::ours().path());
    let command = command.args(arguments).current_dir(dir);
    run(command.env_remove("LISTEN_FDS").env_remove("LISTEN_PID"), DEADLINE)
}

/// Fails with all that was found.
fn assert_none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}
