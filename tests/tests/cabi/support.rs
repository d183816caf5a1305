//! Compiling C, and finding Debian's plugins.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use nbdkit_tests::client::Transport;
use nbdkit_tests::{Client, TempDir, command};

pub(crate) use nbdkit_tests::workout::exercise;

/// The top of the source tree.
pub(crate) fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// What has been compiled, by source and flags. Kept until the tests end, and removed with the
/// build.
static COMPILED: LazyLock<Mutex<HashMap<String, String>>> = LazyLock::new(Mutex::default);

/// Compiles `tests/cplugins/SOURCE` with `flags` against our headers, once, to a shared library.
pub(crate) fn compile(source: &str, flags: &[&str]) -> String {
    let key = format!("{source} {}", flags.join(" "));
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = compiled.get(&key) {
        return path.clone();
    }
    let name = format!("{}-{}-{}.so", source.replace('.', "_"), std::process::id(), compiled.len());
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let finished = cc(source, flags, &["-shared", "-o", library.to_str().unwrap()]);
    assert!(finished.status.success(), "{source}: {}", finished.stderr);
    let path = library.to_str().unwrap().to_owned();
    compiled.insert(key, path.clone());
    path
}

/// Runs the compiler on a source in `tests/cplugins` with our headers.
pub(crate) fn cc(source: &str, flags: &[&str], more: &[&str]) -> command::Finished {
    let compiler = if source.ends_with(".cc") || flags.contains(&"-xc++") { "c++" } else { "cc" };
    let mut command = Command::new(compiler);
    command
        .args(["-fPIC", "-O1", "-Wall", "-Werror"])
        .arg("-I")
        .arg(top().join("include"))
        .args(flags)
        .args(more)
        .arg(top().join("tests/cplugins").join(source));
    command::run(&mut command, Duration::from_secs(60))
}

/// A shared library of the workspace, which the build puts beside the server.
pub(crate) fn beside_the_server(name: &str) -> String {
    // The programs of "make listener-user" are elsewhere.
    let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    let path = profile.join(name);
    assert!(path.is_file(), "{} is not built: cargo build --workspace --lib", path.display());
    path.to_str().unwrap().to_owned()
}

/// Debian's plugin of this name, if it is installed.
pub(crate) fn debian_plugin(name: &str) -> Option<String> {
    let triplet = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    [triplet.as_str(), "/usr/lib64", "/usr/lib"]
        .iter()
        .map(|lib| PathBuf::from(format!("{lib}/nbdkit/plugins/nbdkit-{name}-plugin.so")))
        .find(|path| path.is_file())
        .map(|path| path.to_str().unwrap().to_owned())
}

/// Debian's plugin, or a note that it is not there.
pub(crate) fn debian_or_skip(name: &str) -> Option<String> {
    let plugin = debian_plugin(name);
    if plugin.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI must have Debian's plugins");
        eprintln!("SKIPPED: Debian's nbdkit-{name}-plugin.so is not installed");
    }
    plugin
}

/// Opens the default export.
pub(crate) fn open<T: Transport>(client: &mut Client<T>) {
    open_export(client, "");
}

/// Opens an export.
pub(crate) fn open_export<T: Transport>(client: &mut Client<T>, export: &str) {
    client.handshake().expect("a handshake");
    client.structured_replies().expect("structured replies");
    assert!(client.go(export, &[]).expect("an answer").export().is_some(), "no export {export:?}");
}

/// A file in the server's directory.
pub(crate) fn file(dir: &TempDir, name: &str, content: &[u8]) {
    std::fs::write(dir.join(name), content).unwrap();
}
