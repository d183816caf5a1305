//! Whether reads are kept, as parameters of the caching filters say: always, never, or while a path
//! exists.

use std::path::PathBuf;

use nbdkit_api::{Access, Needs, Result, Value};

/// Whether what is read is saved.
#[derive(Debug, Default, Clone)]
pub(crate) enum OnRead {
    #[default]
    Never,
    Always,
    /// While this exists.
    While(PathBuf),
}

impl OnRead {
    /// From `true`, `false` or an absolute path.
    ///
    /// # Errors
    /// The value is none of these.
    pub(crate) fn parse(value: Value<'_>) -> Result<OnRead> {
        if value.as_path().is_absolute() {
            value.absolute_path().map(OnRead::While)
        } else if value.boolean()? {
            Ok(OnRead::Always)
        } else {
            Ok(OnRead::Never)
        }
    }

    /// Whether a read that happens now is saved.
    pub(crate) fn now(&self) -> bool {
        match self {
            OnRead::Never => false,
            OnRead::Always => true,
            OnRead::While(path) => path.exists(),
        }
    }

    /// Whether no read is ever saved.
    pub(crate) fn is_never(&self) -> bool {
        matches!(self, OnRead::Never)
    }

    /// Adds the path, which need not exist yet, to what connections look at.
    pub(crate) fn needs(&self, below: Needs) -> Needs {
        match self {
            OnRead::While(path) => below.path(path, Access::Look),
            OnRead::Never | OnRead::Always => below,
        }
    }
}
