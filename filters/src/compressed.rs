//! What the filters for compressed images share. Two kinds of formats:
//!
//! - with an index of blocks that can be decompressed by themselves (`blocks`, `index`);
//! - without, where all of the image is expanded into a temporary file (`expansion`), or, if that
//!   is too large and the format can, an index of points to begin from is made (`points`).
//!
//! Both do the work on an image once for all clients (`by_export`). The image is hostile: sizes and
//! offsets are checked, and memory is bounded, before anything is decompressed.

pub(crate) mod blocks;
mod by_export;
pub(crate) mod expansion;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod index;
pub(crate) mod index_file;
#[cfg(test)]
mod limits;
pub(crate) mod points;
pub(crate) mod reader;
pub(crate) mod sink;

use nbdkit_api::{Errno, Error, Next};

/// The error of an image that is not what it should be.
pub(crate) fn corrupt(filter: &str, why: impl std::fmt::Display) -> Error {
    Error::new(Errno::EIO, format!("{filter}: {why}"))
}

/// What a filter says about an image whose layer below says something.
fn description(filter: &str, next: &Next) -> Option<String> {
    let below = next.export_description()?;
    Some(format!("expansion of {filter}-compressed image: {below}"))
}
