//! Which server a test runs: ours by default, another one by `NBDKIT_UNDER_TEST`.
//!
//! | `NBDKIT_UNDER_TEST` | server |
//! |---|---|
//! | unset | `nbdkit` in the cargo profile directory that the test itself was built into |
//! | `debian` | the distribution's `nbdkit` |
//! | a path | that executable, taken to be ours |

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
        let test = std::env::current_exe().expect("the test knows its own path");
        // target/PROFILE/deps/TEST or target/PROFILE/TEST.
        let profile = test.ancestors().skip(1).find(|dir| !dir.ends_with("deps"));
        let profile = profile.expect("a test lies in a directory");
        Binary::Ours(existing(profile.join("nbdkit")))
    }

    /// Ours with the red-team plugin in it (`make red-team`).
    ///
    /// # Panics
    /// If it has not been built.
    #[must_use]
    pub fn red_team() -> Binary {
        let Binary::Ours(ours) = Binary::ours() else { unreachable!("ours is ours") };
        // target/debug/nbdkit and target/red-team/nbdkit.
        let target = ours.ancestors().nth(2).expect("a profile directory");
        let program = target.join("red-team/nbdkit");
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

    /// Whether this is our server, which has what Debian's lacks.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self, Binary::Ours(_))
    }
}

fn existing(path: PathBuf) -> PathBuf {
    assert!(
        path.is_file(),
        "no server at {}: build it first (cargo build), or set NBDKIT_UNDER_TEST",
        path.display()
    );
    path
}
