//! The program `nbdkit-worker`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nbdkit_worker::main()
}
