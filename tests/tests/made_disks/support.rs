//! What the tests of this suite share.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbdkit_tests::client::Client;
use nbdkit_tests::server::{Builder, Server, ours};
use nbdkit_tests::{Ask, command};

/// A server whose temporary directory is `{dir}/tmp`, which is empty.
pub(crate) fn server(arguments: &[&str]) -> Builder {
    let builder = ours(arguments);
    let tmp = builder.dir().join("tmp");
    std::fs::create_dir(&tmp).unwrap();
    builder.env("TMPDIR", tmp)
}

/// What has a name in the server's temporary directory.
pub(crate) fn left_behind(server: &Server) -> Vec<String> {
    names(&server.dir().join("tmp"))
}

/// The names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

/// The whole disk that a client sees.
pub(crate) fn contents(client: &mut Client<UnixStream>) -> Vec<u8> {
    let (size, _) = client.export().expect("an export");
    let mut contents = Vec::new();
    while (contents.len() as u64) < size {
        let at = contents.len() as u64;
        let reply = client.call(&Ask::read(at, (size - at).min(1 << 20))).expect("a reply");
        assert_eq!(reply.error, None);
        contents.extend(reply.data);
    }
    contents
}

/// What a program prints that must succeed. It is looked for among administrators' programs, too.
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(arguments).env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let finished = command::run(&mut command, Duration::from_secs(60));
    assert!(finished.status.success(), "{program} {arguments:?}: {finished:?}");
    finished.stdout
}

/// That a server does not start, and says why in one line.
pub(crate) fn refused(builder: Builder, why: &str) {
    let finished = builder.try_start().expect_err("refused");
    assert!(finished.stderr.contains(why), "{}", finished.stderr);
    assert_eq!((finished.stderr.lines().count(), finished.status.code()), (1, Some(1)));
}
