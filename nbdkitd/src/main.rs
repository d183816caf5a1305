//! The program `nbdkit`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nbdkitd::main()
}
