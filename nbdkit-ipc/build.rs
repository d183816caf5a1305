//! Computes the number of the build, which `Hello` carries (`BUILD`): a hash of what the programs
//! are made of, since a program cannot know the bytes of another that is linked after it. Paths are
//! relative to the tree, so that the same tree has the same number wherever it is built.
//!
//! In a release build: all sources of the programs, `Cargo.lock`, the compiler, and the settings
//! that are compiled in. In a debug build: this crate and `Cargo.lock`, so that a change elsewhere
//! does not compile everything anew; two programs agree about their messages all the same.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// What the programs are made of.
const SOURCES: [&str; 11] = [
    "Cargo.lock",
    "Cargo.toml",
    "filters",
    "nbd-protocol",
    "nbdkit-common",
    "nbdkit-ipc",
    "nbdkit-sandbox",
    "nbdkit-spawner",
    "nbdkit-worker",
    "nbdkitd",
    "plugins",
];
/// What the messages are made of.
const MESSAGES: [&str; 2] = ["Cargo.lock", "nbdkit-ipc"];

/// What is compiled in, beside the sources.
const SETTINGS: [&str; 12] = [
    "NBDKIT_BINDIR",
    "NBDKIT_FILTERDIR",
    "NBDKIT_INCLUDEDIR",
    "NBDKIT_LIBDIR",
    "NBDKIT_LIBEXECDIR",
    "NBDKIT_LISTENER_USER",
    "NBDKIT_PLUGINDIR",
    "NBDKIT_PREFIX",
    "NBDKIT_SBINDIR",
    "NBDKIT_SYSCONFDIR",
    "NBDKIT_VERSION_EXTRA",
    "NBDKIT_ZSTD",
];

/// What cargo says about the target.
const TARGET: [&str; 5] =
    ["TARGET", "PROFILE", "OPT_LEVEL", "CARGO_CFG_PANIC", "CARGO_CFG_TARGET_FEATURE"];

/// Digits of the number: 64 bits.
const DIGITS: usize = 16;

fn main() {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let tree = here.parent().expect("the crate is in the tree").to_owned();
    let release = variable("PROFILE") == "release";
    let sources = if release { &SOURCES[..] } else { &MESSAGES };
    let mut files = Vec::new();
    for source in sources {
        println!("cargo::rerun-if-changed={}", tree.join(source).display());
        collect(&tree.join(source), &mut files);
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let name = file.strip_prefix(&tree).expect("it is in the tree");
        let bytes = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        add(&mut hash, name.as_os_str().as_encoded_bytes());
        add(&mut hash, &bytes);
    }
    for name in TARGET {
        add(&mut hash, env::var(name).unwrap_or_default().as_bytes());
    }
    for name in SETTINGS.iter().filter(|_| release) {
        println!("cargo::rerun-if-env-changed={name}");
        let value = env::var_os(name);
        add(&mut hash, &[u8::from(value.is_some())]);
        add(&mut hash, value.unwrap_or_default().as_encoded_bytes());
    }
    add(&mut hash, &compiler());
    let number: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=NBDKIT_BUILD={}", &number[..DIGITS]);
}

/// A variable that cargo always sets.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The files in `path`, or `path` itself. Not what editors and git leave beside the sources.
fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if !path.is_dir() {
        return files.push(path.to_owned());
    }
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for entry in entries {
        let entry = entry.expect("an entry").path();
        let name = entry.file_name().unwrap_or_default().as_encoded_bytes();
        if !name.starts_with(b".") && !name.ends_with(b"~") {
            collect(&entry, files);
        }
    }
}

/// The version of the compiler.
fn compiler() -> Vec<u8> {
    let output = Command::new(variable("RUSTC")).arg("-vV").output().expect("the compiler runs");
    assert!(output.status.success(), "rustc -vV: {}", output.status);
    output.stdout
}

/// Adds a field, whose length keeps it apart from the next.
fn add(hash: &mut Sha256, field: &[u8]) {
    hash.update((field.len() as u64).to_le_bytes());
    hash.update(field);
}
