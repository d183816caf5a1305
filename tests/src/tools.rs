//! Programs that judge disks, and disks to give them.

use std::path::Path;
use std::process::Command;

use crate::{Ask, Server};

/// What a program printed that ended well, run in `dir`; `None`, and a line, if there is no such
/// program.
///
/// # Panics
/// If it ends otherwise; in CI, if there is none.
pub fn run(program: &str, arguments: &[&str], dir: &Path) -> Option<String> {
    let mut command = Command::new(program);
    // With other locales mtools changes names.
    match command.args(arguments).current_dir(dir).env("LC_ALL", "C.UTF-8").output() {
        Ok(output) => {
            let all = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&all).into_owned();
            assert!(output.status.success(), "{program} {arguments:?}: {text}");
            Some(text)
        }
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "CI must have {program}: {error}");
            eprintln!("SKIPPED: {program}: {error}");
            None
        }
    }
}

/// All bytes of the server's disk.
///
/// # Panics
/// If they cannot be read.
pub fn disk(server: &Server) -> Vec<u8> {
    const PART: u64 = 1 << 20;
    let mut client = server.connected("");
    let size = client.export().map_or(0, |(size, _)| size);
    let asks = (0..size).step_by(PART as usize).map(|at| Ask::read(at, PART.min(size - at)));
    asks.flat_map(|ask| match client.call(&ask) {
        Ok(reply) if reply.error.is_none() => reply.data,
        other => panic!("{ask:?}: {other:?}"),
    })
    .collect()
}
