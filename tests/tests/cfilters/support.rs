//! Compiling filters for both servers.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nbdkit_tests::binary::Binary;
use nbdkit_tests::client::Transport;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, Client, Server, command};

pub(crate) use nbdkit_tests::workout::exercise;

/// How long anything may take that takes milliseconds on an idle machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// What has been compiled, by source and flags. Kept until the tests end, and removed with the
/// build.
static COMPILED: LazyLock<Mutex<HashMap<String, String>>> = LazyLock::new(Mutex::default);

/// The flags that find our headers.
fn headers() -> String {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    format!("-I{}", top.join("include").display())
}

/// Compiles `tests/cfilters/SOURCE` with `flags` against our headers, once, to a shared library.
pub(crate) fn compile(source: &str, flags: &[&str]) -> String {
    let headers = headers();
    library(source, &[&[headers.as_str(), "-Wall", "-Werror"], flags].concat())
}

/// The same for `binary`: against Debian's headers if it is Debian's.
pub(crate) fn compile_for(binary: &Binary, source: &str, flags: &[&str]) -> String {
    if binary.is_ours() { compile(source, flags) } else { library(source, flags) }
}

/// Debian's server, if its headers are there too.
pub(crate) fn oracle() -> Option<Binary> {
    let debian = Binary::debian().filter(|_| Path::new("/usr/include/nbdkit-filter.h").exists());
    if debian.is_none() {
        eprintln!("SKIPPED: Debian's nbdkit or its headers are not installed");
    }
    debian
}

fn library(source: &str, flags: &[&str]) -> String {
    let key = format!("{source} {}", flags.join(" "));
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = compiled.get(&key) {
        return path.clone();
    }
    let stem = source.replace('.', "_");
    let name = format!("filter-{stem}-{}-{}.so", std::process::id(), compiled.len());
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let path = library.to_str().unwrap().to_owned();
    let finished = cc(source, &[flags, &["-shared", "-o", &path]].concat());
    assert!(finished.status.success(), "{source}: {}", finished.stderr);
    compiled.insert(key, path.clone());
    path
}

/// Runs the compiler on a source in `tests/cfilters`.
fn cc(source: &str, flags: &[&str]) -> command::Finished {
    let mut command = Command::new(if source.ends_with(".cc") { "c++" } else { "cc" });
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("cfilters");
    command.args(["-fPIC", "-O1", "-pthread"]).args(flags).arg(sources.join(source));
    command::run(&mut command, Duration::from_secs(60))
}

/// What the compiler says about a source of one line that includes our header.
pub(crate) fn check_header(language: &str, flags: &[&str]) -> command::Finished {
    let mut command = Command::new(if language == "c++" { "c++" } else { "cc" });
    command.args([&headers(), "-include", "nbdkit-filter.h", "-Wall", "-Wextra", "-pedantic"]);
    command.args(["-Werror", "-fsyntax-only"]).args(flags).arg(format!("-x{language}"));
    command::run(command.arg("/dev/null"), Duration::from_secs(60))
}

/// Opens the default export.
pub(crate) fn open<T: Transport>(client: &mut Client<T>) {
    client.handshake().expect("a handshake");
    client.structured_replies().expect("structured replies");
    assert!(client.go("", &[]).expect("an answer").export().is_some(), "no default export");
}

/// A client of the default export.
pub(crate) fn connected(server: &Server) -> Client<std::os::unix::net::UnixStream> {
    let mut client = server.connect();
    open(&mut client);
    client
}

/// What a read returns.
pub(crate) fn read<T: Transport>(client: &mut Client<T>, offset: u64, length: u64) -> Vec<u8> {
    let reply = client.call(&Ask::read(offset, length)).expect("a reply");
    assert_eq!(reply.error, None);
    reply.data
}

/// Waits until the server serves reads again.
pub(crate) fn served_again(server: &Server) {
    let end = Instant::now() + DEADLINE;
    loop {
        let mut client = server.connect();
        let reply = client
            .handshake()
            .and_then(|_| client.structured_replies())
            .and_then(|_| client.go("", &[]))
            .and_then(|_| client.call(&Ask::read(0, 4)));
        if reply.is_ok() {
            return;
        }
        assert!(Instant::now() < end, "not served again: {}", server.stderr_text());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What `script` sees of `binary` with these arguments, in which `{FILTER}` stands for the filter.
pub(crate) fn transcript(
    binary: &Binary,
    filter: (&str, &[&str]),
    arguments: &[&str],
    script: impl Fn(&mut Session),
) -> Vec<String> {
    let filter = compile_for(binary, filter.0, filter.1);
    let arguments = arguments.iter().map(|argument| argument.replace("{FILTER}", &filter));
    let mut server = Server::nbdkit(arguments).binary(binary.clone()).start();
    let mut session = Session::new(server.socket(), server.dir().path());
    script(&mut session);
    let status = server.stop();
    assert!(status.success(), "{binary:?}: {status}");
    session.into_lines()
}

/// Debian's plugin of this name if it is installed: the same in both servers, whose own plugins are
/// not of the same age.
pub(crate) fn debian_plugin(name: &str) -> Option<String> {
    let triplet = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let plugin = [triplet.as_str(), "/usr/lib64", "/usr/lib"]
        .iter()
        .map(|lib| format!("{lib}/nbdkit/plugins/nbdkit-{name}-plugin.so"))
        .find(|path| Path::new(path).is_file());
    if plugin.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI must have Debian's plugins");
        eprintln!("SKIPPED: Debian's nbdkit-{name}-plugin.so is not installed");
    }
    plugin
}

/// Asserts that both servers do the same with the filter and Debian's plugin, which stands behind
/// the filter's argument.
pub(crate) fn compare(
    source: &str,
    flags: &[&str],
    arguments: &[&str],
    script: impl Fn(&mut Session) + Copy,
) {
    let Some(plugin) = debian_plugin(arguments[1]) else { return };
    let arguments = [&arguments[..1], &[plugin.as_str()], &arguments[2..]].concat();
    let arguments = arguments.as_slice();
    let ours = transcript(&Binary::under_test(), (source, flags), arguments, script);
    if let Some(debian) = oracle() {
        assert_eq!(ours, transcript(&debian, (source, flags), arguments, script), "{arguments:?}");
    }
}
