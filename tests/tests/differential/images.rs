//! Images for the rows of filters that decode some, made by the programs that users make them with.

use std::process::{Command, Stdio};

use nbdkit_tests::TempDir;

/// Whether a program is installed; prints which is not.
///
/// # Panics
/// If it is not and `CI` is set.
pub(crate) fn has(program: &str) -> bool {
    let run = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if run.is_ok() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "CI must have {program}");
    eprintln!("SKIPPED: {program} is not installed");
    false
}

/// The bytes of the disk that images are made of, in the file `disk`: some that can be compressed,
/// some that cannot, and zeroes.
pub(crate) fn image(dir: &TempDir, size: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let byte = |at: usize| match at / 5000 % 4 {
        0 => random(),
        1 => 0,
        _ => (at / 7 % 50) as u8,
    };
    let bytes: Vec<u8> = (0..size).map(byte).collect();
    std::fs::write(dir.join("disk"), &bytes).unwrap();
    bytes
}

/// Writes the executable file `script`.
pub(crate) fn script(dir: &TempDir, text: &str) {
    let path = dir.join("script");
    std::fs::write(&path, text).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, executable).unwrap();
}
