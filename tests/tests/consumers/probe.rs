//! Which plugins and filters the servers have, asked as programs ask: nbdkit-probing(1), "Detect if
//! a plugin is installed", "Detect if a filter is installed".

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::command::run;

/// A plugin or a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Need {
    Plugin(&'static str),
    Filter(&'static str),
}

use Need::{Filter, Plugin};

/// What rows need and this server has not, neither of its own nor as a shared library of Debian's
/// that it can load.
const MISSING_HERE: &[Need] = &[];

/// The same of Debian's server, nbdkit 1.32.5.
const MISSING_IN_DEBIAN: &[Need] = &[Filter("count")];

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Plugin(name) => write!(f, "plugin {name}"),
            Filter(name) => write!(f, "filter {name}"),
        }
    }
}

/// Those of `needs` that are listed as missing in this server.
///
/// # Panics
/// If one is neither listed nor there. Where the server under test is ours, plugins may be
/// Debian's: without that package a row is skipped, unless `CI` is set.
pub(crate) fn missing(binary: &Binary, needs: &[Need]) -> Vec<String> {
    let mut missing = Vec::new();
    for need in needs {
        let listed = list_of(binary).contains(need);
        if !listed && !is_there(binary, *need) {
            let excused = Binary::debian().is_none() && std::env::var_os("CI").is_none();
            assert!(excused, "{} has no {need}", binary.path().display());
        } else if !listed {
            continue;
        }
        missing.push(need.to_string());
    }
    missing
}

fn list_of(binary: &Binary) -> &'static [Need] {
    if binary.is_ours() { MISSING_HERE } else { MISSING_IN_DEBIAN }
}

/// Whether the server finds it, asked once.
fn is_there(binary: &Binary, need: Need) -> bool {
    static ANSWERS: LazyLock<Mutex<HashMap<(PathBuf, Need), bool>>> = LazyLock::new(Mutex::default);
    let mut answers = ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
    *answers.entry((binary.path().to_owned(), need)).or_insert_with(|| {
        let mut command = Command::new(binary.path());
        match need {
            Plugin(name) => command.args([name, "--version"]),
            Filter(name) => command.args(["null", &format!("--filter={name}"), "--version"]),
        };
        run(&mut command, Duration::from_secs(60)).status.success()
    })
}

#[test]
fn what_is_listed_as_missing_is_missing() {
    let servers = Binary::debian().into_iter().chain([Binary::under_test()]);
    for binary in servers {
        for need in list_of(&binary) {
            assert!(
                !is_there(&binary, *need),
                "{} has {need} by now: take it off the list of what is missing, so that its rows run",
                binary.path().display()
            );
        }
    }
}
