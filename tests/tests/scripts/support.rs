//! Who runs a server, and scripts for it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::command;
use nbdkit_tests::server::Builder;
use nbdkit_tests::{Server, TempDir};
use nix::unistd::{User, geteuid};

/// How long anything may take that takes a moment on an idle machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Who starts a server, and who it is in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Starter {
    /// Whoever runs the tests.
    Caller,
    /// Root, who becomes nobody (`-u nobody`).
    Dropped,
    /// Nobody.
    Ordinary,
}

fn nobody() -> User {
    User::from_name("nobody").expect("users").expect("there is a nobody")
}

/// Runs what follows as nobody.
fn setpriv() -> String {
    let nobody = nobody();
    format!("setpriv --reuid={} --regid={} --clear-groups", nobody.uid, nobody.gid)
}

impl Starter {
    /// Those that can be tested: without root the caller, who is an ordinary user then.
    pub(crate) fn all() -> Vec<Starter> {
        if !geteuid().is_root() {
            eprintln!("SKIPPED: root and -u nobody need root");
            return vec![Starter::Caller];
        }
        let probe = format!("exec {} \"$0\" --dump-config", setpriv());
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(probe).arg(Binary::under_test().path());
        if command::run(&mut command, DEADLINE).status.success() {
            return vec![Starter::Caller, Starter::Dropped, Starter::Ordinary];
        }
        eprintln!("SKIPPED: an ordinary user may not run this build, or there is no setpriv");
        vec![Starter::Caller, Starter::Dropped]
    }

    /// A server with these arguments in a directory that everybody may write to, which is its
    /// current one. `stdin`: a file there.
    pub(crate) fn server(self, binary: Binary, arguments: &[&str], stdin: Option<&str>) -> Builder {
        let mut builder = Server::nbdkit([] as [&str; 0]).binary(binary);
        if self == Starter::Dropped {
            builder = builder.args(["-u", "nobody"]);
        }
        set_mode(builder.dir().path(), 0o777);
        let setpriv = if self == Starter::Ordinary { setpriv() } else { String::new() };
        let stdin = stdin.map(|name| format!("<{name}")).unwrap_or_default();
        builder.args(arguments).through_shell(&format!(
            "cd {{dir}} && umask 022 && exec {setpriv} \"$0\" \"$@\" {stdin}"
        ))
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
}

/// Puts a file there that everybody may use.
pub(crate) fn write(dir: &TempDir, name: &str, text: &str, mode: u32) {
    std::fs::write(dir.join(name), text).expect("written");
    set_mode(&dir.join(name), mode);
}

/// An executable script there, for the sh plugin, with these cases.
pub(crate) fn write_script(dir: &TempDir, name: &str, interpreter: &str, cases: &str) {
    let text = format!("#!{interpreter}\ncase \"$1\" in\n{cases}\n*) exit 2 ;;\nesac\n");
    write(dir, name, &text, 0o755);
}

/// Whether a program of this name is there; says if not.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new("/bin/sh").arg("-c").arg(format!("command -v {program}")).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("SKIPPED: there is no {program}");
    }
    found
}
