//! Many clients with many requests each, all at once, in one process: what is read is what was
//! written.

use nbdkit_tests::workout::stress;

use crate::support::{compile, debian_or_skip};

#[test]
fn eight_clients_64_deep_on_debians_memory_plugin() {
    if let Some(plugin) = debian_or_skip("memory") {
        stress(&[&plugin, "2M"]);
    }
}

#[test]
fn eight_clients_64_deep_on_debians_malloc_allocator() {
    if let Some(plugin) = debian_or_skip("memory") {
        stress(&[&plugin, "2M", "allocator=malloc"]);
    }
}

#[test]
fn eight_clients_64_deep_on_a_plugin_that_makes_strings() {
    stress(&[&compile("strings.c", &[])]);
}
