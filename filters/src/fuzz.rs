//! What the fuzz targets need of the filters: rules of the ip filter, a cow filter whose shared
//! memory they may scribble on as a hostile worker could, partition tables, and tar
//! archives.

#![forbid(unsafe_code)]

pub use crate::cow::fuzz::{Place, Shared};
pub use crate::ip::fuzz::matches;
pub use crate::partition::fuzz::{example, find_partition};
pub use crate::tar::fuzz::{archive, find_entry};
