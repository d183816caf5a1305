//! What the fuzz targets need of the filters: rules of the ip filter, lists of extents, maps of
//! ddrescue, hostile images, and a cow filter whose shared memory they may scribble on as a hostile
//! worker could.

#![forbid(unsafe_code)]

pub use crate::compressed::fuzz::image;
pub use crate::cow::fuzz::{Place, Shared};
pub use crate::ip::fuzz::matches;

/// The extents of a list, as offset and length.
pub fn extent_list(text: &str) -> Option<Vec<(u64, u64)>> {
    let extents = crate::extentlist::parse_list(text).ok()?;
    Some(extents.iter().map(|extent| (extent.offset, extent.length)).collect())
}

/// The ranges that a map of ddrescue has as rescued, as first byte and end.
pub fn rescued(text: &str) -> Option<Vec<(u64, u64)>> {
    let ranges = crate::ddrescue::parse_map(text).ok()?;
    Some(ranges.iter().map(|range| (range.start, range.end)).collect())
}
