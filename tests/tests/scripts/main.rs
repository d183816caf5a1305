//! Scripts of sh, eval and filters: that they work as in nbdkit, what confines them, when they end,
//! and plugins that are scripts.

mod confined;
mod examples;
mod lifetime;
mod plugins;
mod support;
