//! A plugin in Rust that was made with the `nbdkit` crate of the registry: `tests/rust-plugin`.

use nbdkit_tests::Server;
use nbdkit_tests::differential::Row;
use nbdkit_tests::row_name;

use crate::support::{beside_the_server, exercise};

/// Where the build puts it.
fn plugin() -> String {
    beside_the_server("libnbdkit_rust_plugin.so")
}

#[test]
fn a_plugin_in_rust() {
    Row::new(row_name!(), &[&plugin(), "size=65536"]).compare(exercise);
}

#[test]
fn a_plugin_in_rust_reports_its_errors() {
    let finished = Server::nbdkit([&plugin(), "size=x"]).try_start().expect_err("refused");
    assert!(finished.stderr.contains("could not parse size"), "{}", finished.stderr);
}
