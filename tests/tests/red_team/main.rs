//! A worker whose code is hostile: the red-team plugin (`plugins/redteam`) attacks from inside the
//! sandbox while a well-behaved client works on, its data checked. Needs `make red-team`.
//!
//! - `confinement`: attacks on the machine and on other processes, and what happens without the
//!   layer that stops them
//! - `files`: attacks on the disk of a read-only stack; `broker`: on the broker; `connect`: on the
//!   network, by the broker or past it
//! - `messages`: attacks on the listener; `shared`: on what clients share
//! - `proc`: what hardening takes away of /proc
//! - `service`: under the restrictions of nbdkit@.service
//! - `terminal`: the terminal of whoever started the server
//! - `legal`: what must work, and how a worker that just breaks is reported; `upstream`: connecting
//!   to what was declared, with `names` of the test's own

mod broker;
#[path = "../hostile/bystander.rs"]
mod bystander;
mod confinement;
mod connect;
mod files;
mod legal;
mod messages;
mod names;
mod proc;
mod service;
mod shared;
mod terminal;
mod upstream;

use nbdkit_tests::Server;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::server::Builder;

fn server(arguments: &[&str]) -> Builder {
    Server::nbdkit(arguments).binary(Binary::red_team())
}

/// Whether this process may mount in a namespace of its own: not as an ordinary user, nor in a
/// container.
fn may_mount() -> bool {
    let output = std::process::Command::new("unshare").args(["-m", "true"]).output();
    output.is_ok_and(|output| output.status.success())
}
