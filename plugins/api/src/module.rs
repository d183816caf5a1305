//! A plugin or filter that is a file of its own, as it is described by `--help` and
//! `--dump-plugin`. nbdkit-probing(1).

use std::path::PathBuf;

/// A plugin or filter that was loaded from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleFile {
    /// Where it is, absolute.
    pub path: PathBuf,
    /// The version of the interface that it was written to.
    pub api_version: i32,
    /// Size of its table of callbacks, bytes; 0 for a filter, whose table does not say.
    pub struct_size: u64,
    /// Whether its callbacks leave the errno of their failure.
    pub errno_is_preserved: bool,
    /// What there is in the table, texts included, in the order in which it is to be printed.
    pub members: Vec<&'static str>,
}
