//! The callbacks of a plugin in C, and how each is called: for whom, and what its failure is.

#![expect(unsafe_code, reason = "shares a table of functions between threads")]

use std::sync::Arc;

use nbdkit_api::{Errno, Result};

use super::context::{self, Served};
use super::table::PluginTable;

/// The callbacks of a loaded plugin.
pub(super) struct Callbacks {
    pub(super) table: PluginTable,
}

// SAFETY: the table is a copy that nobody changes. Its pointers are to functions and texts of a
// library that stays open, and the functions are called from several threads only as far as the
// thread model that the plugin declares allows.
unsafe impl Send for Callbacks {}
// SAFETY: the copy of the table is never written to. What a callback does on several threads is
// bounded by the thread model that the plugin declares, which the layer above upholds.
unsafe impl Sync for Callbacks {}

impl Callbacks {
    /// Runs a callback for `served` that returns -1 for failure, and anything else otherwise.
    ///
    /// # Errors
    /// The plugin's.
    pub(super) fn checked<T: Copy + PartialEq + From<i8>>(
        &self,
        served: Option<&Arc<Served>>,
        callback: impl FnOnce() -> T,
    ) -> Result<T> {
        self.checked_for(T::from(-1), served, callback)
    }

    /// Runs a callback for `served` that returns `failure` for failure.
    ///
    /// # Errors
    /// The plugin's, with the errno that it set, or left if that can be relied on.
    pub(super) fn checked_for<T: Copy + PartialEq>(
        &self,
        failure: T,
        served: Option<&Arc<Served>>,
        callback: impl FnOnce() -> T,
    ) -> Result<T> {
        let _entered = context::enter(served);
        Errno::clear();
        let result = callback();
        let errno = Errno::last_raw();
        if result != failure {
            return Ok(result);
        }
        Err(context::failure((self.table.errno_is_preserved != 0).then_some(errno)))
    }
}
