//! Which server a test runs: ours by default, another one by `NBDKIT_UNDER_TEST`.
//!
//! | `NBDKIT_UNDER_TEST` | server |
//! |---|---|
//! | unset | `nbdkit` in the cargo profile directory that the test itself was built into |
//! | `debian` | the distribution's `nbdkit` |
//! | a path | that executable, taken to be ours |
//!
//! `NBDKIT_TEST_PROGRAMS` names another directory for ours, with those of the red team in
//! `red-team` in it: `make listener-user` fills one with programs whose listener becomes the user
//! `daemon` wherever root starts it.

use std::path::{Path, PathBuf};

/// A server executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binary {
    /// This project's.
    Ours(PathBuf),
    /// Debian's nbdkit, the oracle.
    Debian(PathBuf),
}

impl Binary {
    /// The executable that tests run, by `NBDKIT_UNDER_TEST`.
    ///
    /// # Panics
    /// If there is none: a missing server is never a passed test.
    #[must_use]
    pub fn under_test() -> Binary {
        match std::env::var_os("NBDKIT_UNDER_TEST") {
            None => Binary::ours(),
            Some(value) if value == "debian" => Binary::debian()
                .expect("NBDKIT_UNDER_TEST=debian, but Debian's nbdkit is not installed"),
            Some(path) => Binary::Ours(existing(PathBuf::from(path))),
        }
    }

    /// Our server, from the directory that this test was built into; never by `PATH`.
    ///
    /// # Panics
    /// If it has not been built.
    #[must_use]
    pub fn ours() -> Binary {
        Binary::Ours(existing(programs().unwrap_or_else(profile).join("nbdkit")))
    }

    /// Ours with the red-team plugin in it (`make red-team`).
    ///
    /// # Panics
    /// If it has not been built.
    #[must_use]
    pub fn red_team() -> Binary {
        // target/debug and target/red-team.
        let target = || profile().parent().expect("a target directory").to_owned();
        let program = programs().unwrap_or_else(target).join("red-team/nbdkit");
        assert!(program.is_file(), "no server at {}: make red-team builds it", program.display());
        Binary::Ours(program)
    }

    /// Debian's nbdkit, if it is installed.
    #[must_use]
    pub fn debian() -> Option<Binary> {
        ["/usr/bin/nbdkit", "/usr/sbin/nbdkit"]
            .into_iter()
            .map(PathBuf::from)
            .find(|path| path.is_file())
            .map(Binary::Debian)
    }

    /// The executable's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Binary::Ours(path) | Binary::Debian(path) => path,
        }
    }

    /// What `--filter=` takes for a filter that is a file of its own: Debian's is found by its
    /// name, ours is where the tests are built.
    ///
    /// # Panics
    /// If ours is not built.
    pub fn filter(&self, name: &str) -> String {
        if !self.is_ours() {
            return name.to_owned();
        }
        // The programs of "make listener-user" are elsewhere.
        let test = std::env::current_exe().expect("the test's own path");
        let profile = test.ancestors().nth(2).unwrap_or(&test);
        let path = profile.join(format!("libnbdkit_{name}_filter.so"));
        assert!(path.is_file(), "{} is not built: cargo build --workspace --lib", path.display());
        path.to_string_lossy().into_owned()
    }

    /// Whether this is our server, which has what Debian's lacks.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self, Binary::Ours(_))
    }
}

/// Where the programs are, if not where they were built.
fn programs() -> Option<PathBuf> {
    std::env::var_os("NBDKIT_TEST_PROGRAMS").map(PathBuf::from)
}

/// The cargo profile directory of this test: `target/PROFILE/deps/TEST` or `target/PROFILE/TEST`.
fn profile() -> PathBuf {
    let test = std::env::current_exe().expect("the test knows its own path");
    let profile = test.ancestors().skip(1).find(|dir| !dir.ends_with("deps"));
    profile.expect("a test lies in a directory").to_owned()
}

fn existing(path: PathBuf) -> PathBuf {
    assert!(
        path.is_file(),
        "no server at {}: build it first (cargo build), or set NBDKIT_UNDER_TEST",
        path.display()
    );
    path
}
