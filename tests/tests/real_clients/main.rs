//! The clients that people use, against a running server: libnbd's tools, qemu's, fio, and a
//! mounted file system.
//!
//! A program that is not installed is a skip that says which; with `CI` set it is a failure.

mod filesystem;
mod fio;
mod libnbd;
mod qemu;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbdkit_tests::Server;
use nbdkit_tests::command::{Finished, run};

/// Longer than any of these clients takes even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// Whether `program` is there, in the system's directories.
fn has(program: &str) -> bool {
    let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .any(|dir| Path::new(dir).join(program).exists());
    if !found {
        assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

/// Runs a command of the system to its end, which must be success.
fn must(program: &str, arguments: &[&str]) -> Finished {
    let finished = may(program, arguments);
    assert!(
        finished.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        finished.status_text(),
        finished.stdout,
        finished.stderr
    );
    finished
}

/// Runs a command of the system to its end.
fn may(program: &str, arguments: &[&str]) -> Finished {
    // The system's Python has the nbd module; another one earlier on the PATH has not.
    run(
        Command::new(program).args(arguments).env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin"),
        DEADLINE,
    )
}

/// The URI of a server's default export.
fn uri(server: &Server) -> String {
    format!("nbd+unix:///?socket={}", server.socket().display())
}

/// `length` bytes that differ everywhere and are the same in every run.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A sparse disk: data, a hole, data, a hole up to the end. Returns its content.
fn sparse_disk(path: &Path) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    const MIB: usize = 1 << 20;
    let data = noise(3 * MIB);
    let file = std::fs::File::create(path).expect("a file");
    file.set_len(16 * MIB as u64).expect("a size");
    file.write_all_at(&data[..2 * MIB], 0).expect("written");
    file.write_all_at(&data[2 * MIB..], 6 * MIB as u64).expect("written");
    let mut content = vec![0; 16 * MIB];
    content[..2 * MIB].copy_from_slice(&data[..2 * MIB]);
    content[6 * MIB..7 * MIB].copy_from_slice(&data[2 * MIB..]);
    content
}
