//! nbdkit's interfaces for plugins and filters in C: loads a shared library, wraps its table of
//! callbacks in the traits that every plugin or filter has here, and defines the functions that
//! such code calls. nbdkit-plugin(3), nbdkit-filter(3).
//!
//! Runs in the template, which with isolation `shared`, the default for code that may keep its
//! state anywhere, serves the clients too. Trusts the library as far as C must: it can do what the
//! process can do, which is why the sandbox is around the process. What it says is checked all the
//! same.
//!
//! - [`search`]: which file a short name stands for;
//! - [`library`]: opening it, its entry point and its debug flags;
//! - [`table`]: the structure that it returns, which is in a crate of its own;
//! - [`declaration`]: what it says that it needs, if it does;
//! - [`plugin`] and [`connection`]: its [`callbacks`] as traits; [`calls`]: what filters share;
//! - [`filter`]: the same for filters, with what they call the layer below by;
//! - [`context`]: for whom a callback runs, and what it says about its failure;
//! - [`functions`]: `nbdkit_*`, the functions that the library calls.

mod callbacks;
mod calls;
mod connection;
mod context;
mod declaration;
mod filter;
mod functions;
pub(crate) mod library;
mod plugin;
pub(crate) mod search;

use nbdkit_abi::plugin as table;

pub(crate) use filter::load_filter;
pub(crate) use plugin::load_plugin;

/// Size of the newest `struct nbdkit_plugin` that is understood, bytes; what a built-in plugin
/// stands for.
pub(crate) const PLUGIN_STRUCT_SIZE: u64 = size_of::<table::PluginTable>() as u64;
