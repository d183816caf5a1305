//! What a plugin and a filter are: the traits, the values they exchange with the server, and the
//! [`Backend`] that stands between every two layers of the stack and holds nbdkit's contract.
//!
//! Runs in the template (configuration) and in the workers (serving). Nothing here opens a socket
//! or reads the command line; `unsafe` is confined to [`shared`], the module that maps memory
//! which several processes use, and to `inherited`, which takes descriptors by their number.
//!
//! Sources: nbdkit-plugin(3), nbdkit-filter(3).

#![deny(unsafe_code)]

pub mod backend;
pub mod client;
pub mod endpoints;
pub mod error;
pub mod exports;
pub mod extents;
pub mod filter;
mod inherited;
pub mod layer;
pub mod log;
pub mod module;
pub mod needs;
pub mod next;
pub mod parse;
pub mod paths;
pub mod plugin;
mod plugin_layer;
pub mod programs;
pub mod quote;
mod scratch;
pub mod shared;
pub mod shebang;
pub mod stack;
pub mod types;
pub mod value;

pub use backend::Backend;
pub use client::Client;
pub use endpoints::Endpoint;
pub use error::{Errno, Error, Result, ResultExt, strerror};
pub use exports::{Export, Exports};
pub use extents::{Extent, ExtentKind, Extents};
pub use filter::{Filter, NextConfig, Slot};
pub use layer::OpenLayer;
pub use module::ModuleFile;
pub use needs::{Access, Isolation, Level, Needs, Network};
pub use next::Next;
pub use plugin::{Connection, Open, Plugin};
pub use quote::quoted;
pub use stack::{Layer, Stack};
pub use types::{
    BlockSize, Blocking, Cache, DataPath, Direction, FileRange, Flags, Fua, ThreadModel, Zero,
};
pub use value::Value;
