//! The structures of `include/nbdkit-plugin.h`, `include/nbdkit-filter.h` and
//! `include/nbdkit-confine.h`, for both sides: the server that reads them
//! (`nbdkit-worker/src/cabi/`), and plugins and filters in files that fill them (`plugins/export/`,
//! `filters/ext2/`). Layouts and numbers, and no code that calls anything.

#![deny(unsafe_code)]

pub mod declaration;
pub mod filter;
pub mod plugin;
