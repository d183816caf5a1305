//! The callbacks of a filter, in the current layout ([`layout`](super::layout)) or with the
//! signatures of nbdkit 1.16 ([`of_1_16`](super::of_1_16)).

use std::ffi::{c_char, c_int, c_void};

use super::layout::{Current, Head, Middle, OfConnection};
use super::of_1_16::{self, Middle116, Of116, OfConnection116};

/// The callbacks of a filter, by the layout that it has.
pub(super) enum Table {
    Current(Middle, OfConnection),
    /// `NBDKIT_FILTER_API` 116.
    Of116(Middle116, OfConnection116),
}

/// What the first two members say.
pub(super) struct Marker {
    pub(super) api_version: c_int,
    /// Of the headers that the filter was compiled with.
    pub(super) version: Option<String>,
}

/// Reads the members that every version has.
///
/// # Safety
/// `table` points to a `struct nbdkit_filter` of whatever version.
pub(super) unsafe fn marker(table: *const c_void) -> Marker {
    #[repr(C)]
    struct First(c_int, *const c_char);
    // SAFETY: they are there in every version, by the interface.
    let First(api_version, version) = unsafe { table.cast::<First>().read() };
    // SAFETY: null or a text of the library's.
    let version = unsafe { super::super::table::text(version) };
    Marker { api_version, version }
}

impl Table {
    /// Copies a table.
    ///
    /// # Safety
    /// `table` points to a `struct nbdkit_filter` of our header, whose `_api_version` is
    /// [`CURRENT`](super::layout::CURRENT) or
    /// [`API`](of_1_16::API).
    pub(super) unsafe fn copy(table: *const c_void, api_version: c_int) -> (Head, Table) {
        if api_version == of_1_16::API {
            // SAFETY: the version says that it has this layout; null pointers are absent callbacks.
            let Of116 { head, middle, connection } = unsafe { table.cast::<Of116>().read() };
            (head, Table::Of116(middle, connection))
        } else {
            // SAFETY: the version says that the table has this layout; null pointers are absent
            // callbacks.
            let Current { head, middle, connection } = unsafe { table.cast::<Current>().read() };
            (head, Table::Current(middle, connection))
        }
    }
}
