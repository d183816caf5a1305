//! `nbdkit-worker`: the template that configures the stack of plugin and filters, and the workers
//! that are forked from it, one for each client.
//!
//! Started by the listener (`nbdkit`) only, with the number of its control channel as the one argument. A library, so that
//! the fuzz targets reach what no other program should: [`main`] is all that the program is.

#![deny(unsafe_code)]

mod authority;
mod cabi;
mod configure;
mod connection;
mod describe;
#[doc(hidden)]
pub mod fuzz;
mod log;
mod privileges;
mod process;
mod sandbox;
mod settings;
mod template;
mod tls;

use std::process::ExitCode;

use nbdkit_ipc::{Channel, inherited};

/// The program.
pub fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(Ok(number)), None) = (args.next().map(|arg| arg.parse()), args.next()) else {
        eprintln!("nbdkit-worker: this program is started by nbdkit and is of no use on its own");
        return ExitCode::FAILURE;
    };
    match inherited(number) {
        Ok(fd) => template::run(Channel::from_fd(fd)),
        Err(error) => {
            eprintln!("nbdkit-worker: control channel {number}: {error}");
            ExitCode::FAILURE
        }
    }
}
