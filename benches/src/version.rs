//! Which version of each server was measured.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::plan::Kind;

/// What the server says of its version, without its name; "unknown" if it says nothing.
pub(crate) fn version_of(kind: Kind, ours: &Path) -> String {
    let asked = match kind {
        Kind::Ours => ask(ours.as_os_str(), "--version"),
        Kind::Nbdkit => ask(OsStr::new("/usr/bin/nbdkit"), "--version"),
        Kind::QemuNbd => ask(OsStr::new("qemu-nbd"), "--version"),
        Kind::NbdServer => ask(OsStr::new("nbd-server"), "-V"),
        Kind::Floor => Some(env!("CARGO_PKG_VERSION").to_owned()),
        Kind::Peer(peer) => peer.programs().find_map(|program| ask(&program, "--version")),
    };
    asked.unwrap_or_else(|| "unknown".to_owned())
}

/// Whether there is such a program, by its path or in `PATH`.
pub(crate) fn is_program(program: &Path) -> bool {
    let is_executable = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    if program.components().count() > 1 {
        return is_executable(program);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| is_executable(&dir.join(program)))
}

fn ask(program: &OsStr, option: &str) -> Option<String> {
    let mut command = Command::new("timeout");
    command.args(["10".as_ref(), program, option.as_ref()]).stdin(Stdio::null());
    let output = command.output().ok()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    number_in(&text)
}

/// The first line from its first digit on: servers put their name before it.
fn number_in(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit()))?;
    let start = line.find(|c: char| c.is_ascii_digit())?;
    Some(line[start..].replace('\t', " ").trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_begins_with_its_number() {
        assert_eq!(number_in("This is nbd-server version 3.24\n").unwrap(), "3.24");
        assert_eq!(
            number_in("qemu-nbd 10.0.2 (Debian 1:10)\nBy\n").unwrap(),
            "10.0.2 (Debian 1:10)"
        );
        assert_eq!(number_in("sh: no\n"), None);
    }

    #[test]
    fn programs_are_found_by_name_and_by_path() {
        assert!(is_program(Path::new("sh")) && is_program(Path::new("/bin/sh")));
        assert!(!is_program(Path::new("/etc/passwd")) && !is_program(Path::new("no-such-program")));
    }
}
