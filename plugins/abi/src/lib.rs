//! The structures of `include/nbdkit-plugin.h` and `include/nbdkit-confine.h`, for both sides: the
//! server that reads them (`nbdkit-worker/src/cabi/`) and plugins in files that fill them
//! (`plugins/export/`). Layouts and numbers, and no code that calls anything.

#![deny(unsafe_code)]

pub mod declaration;
pub mod plugin;
