//! The program `nbdkit-worker-psk`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nbdkit_worker::main_with_pre_shared_keys()
}
