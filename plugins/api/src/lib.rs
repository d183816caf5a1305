//! What a plugin and a filter are: the traits, the values they exchange with the server, and the
//! [`Backend`] that stands between every two layers of the stack and holds nbdkit's contract.
//!
//! Runs in the template (configuration) and in the workers (serving). Nothing here opens a socket
//! or reads the command line; `unsafe` is confined to [`shared`], the module that maps memory
//! which several processes use, to `inherited`, which takes descriptors by their number, and to
//! [`page_cache`].
//!
//! Sources: nbdkit-plugin(3), nbdkit-filter(3).

#![deny(unsafe_code)]

pub mod client;
mod configured;
mod connection;
pub mod endpoints;
pub mod error;
pub mod exports;
pub mod extents;
pub mod filter;
pub mod host;
pub mod inherited;
pub mod layer;
pub mod log;
pub mod module;
pub mod needs;
mod next_config;
mod open;
pub mod page_cache;
pub mod parse;
pub mod paths;
pub mod pipeline;
pub mod plugin;
pub mod programs;
pub mod quote;
mod scratch;
pub mod shared;
pub mod shebang;
pub mod stack;
pub mod types;
pub mod value;
pub mod watcher;

pub use client::Client;
pub use configured::Layer;
pub use connection::Connection;
pub use endpoints::Endpoint;
pub use error::{Errno, Error, Result, ResultExt, strerror};
pub use exports::{Export, Exports};
pub use extents::{Extent, ExtentKind, Extents};
pub use filter::{Filter, Slot};
pub use layer::{Backend, Next, OpenLayer, Range};
pub use module::ModuleFile;
pub use nbdkit_common::NBDKIT_VERSION;
pub use nbdkit_common::partitions;
pub use needs::{Access, Isolation, Level, Needs, Network};
pub use next_config::NextConfig;
pub use open::Open;
pub use pipeline::Pipeline;
pub use plugin::Plugin;
pub use quote::quoted;
pub use stack::Stack;
pub use types::{
    BlockSize, Blocking, Cache, DataPath, Direction, FileRange, Flags, Fua, ThreadModel, Zero,
};
pub use value::Value;
pub use watcher::Watcher;
