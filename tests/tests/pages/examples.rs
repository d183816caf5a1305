//! What pages tell the reader to type is run, in the order of the page, in a directory, a network
//! and a process namespace of its own, which all that was started ends with.
//!
//! Lines behind `$ ` are commands, and those that follow are what they print. Without such lines
//! all of an example is a script. A comment before an example says that it is a file, or why it is
//! not run.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbdkit_tests::TempDir;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::command::run;

use crate::page::{Example, Page, page, pages};
use crate::{DEADLINE, root};

/// The pages whose examples are run as they stand: all but those of single plugins and filters,
/// whose disks are the reader's (`module_examples.rs`).
fn is_run(page: &Page) -> bool {
    const MORE: &[&str] = &["nbdkit-plugin", "nbdkit-filter", "nbdkit-rust-plugin"];
    let is_module = page.name.ends_with("-plugin") || page.name.ends_with("-filter");
    !is_module || page.section == "3" || MORE.contains(&&*page.name)
}

/// Longest time that the commands of a page may take.
pub(crate) const LONG: Duration = Duration::from_secs(300);

/// Stops the servers whose pid files are there, so that they remove what they have made in /tmp.
const STOP: &str = "
for file in *.pid; do
    [ -e \"$file\" ] || continue
    kill \"$(cat \"$file\")\" 2> /dev/null || continue
    while [ -e \"/proc/$(cat \"$file\")\" ]; do sleep 0.01; done
done
";

/// A shell script that does what the page says.
fn script(page: &Page) -> String {
    let mut script = String::from("set -eu\nip link set lo up\n");
    for example in page.examples() {
        let Example { line, not_run, file, text } = example;
        // Writing to a String does not fail.
        let _ = writeln!(script, "echo 'line {line}' > line");
        match (not_run, file) {
            (Some(_), _) => {}
            (None, Some(file)) => write_file(&mut script, &file, &text),
            (None, None) if text.contains("$ ") && text.starts_with("$ ") => {
                write_session(&mut script, &text);
            }
            (None, None) => script.push_str(&text),
        }
    }
    script.push_str(STOP);
    script
}

pub(crate) fn write_file(script: &mut String, name: &str, text: &str) {
    let _ = write!(script, "cat > {name} << 'END OF EXAMPLE'\n{text}END OF EXAMPLE\n");
}

/// Commands, each followed by what it prints.
pub(crate) fn write_session(script: &mut String, text: &str) {
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let mut command = line.strip_prefix("$ ").expect("a command").to_owned();
        while command.ends_with('\\') {
            let more = lines.next().expect("the rest of the command");
            command = format!("{command}\n{more}");
        }
        let mut expected = String::new();
        while let Some(printed) = lines.next_if(|line| !line.starts_with("$ ")) {
            let _ = writeln!(expected, "{printed}");
        }
        write_file(script, "expected", &expected);
        let _ = writeln!(script, "{{ {command}\n}} > printed\ndiff -u expected printed >&2");
    }
}

/// `nbdkit.pc`, for the headers in this tree.
fn write_package(dir: &Path) {
    let template = std::fs::read_to_string(root().join("include/nbdkit.pc.in")).expect("a file");
    let include = root().join("include");
    let text = template.replace("@INCLUDEDIR@", &include.to_string_lossy());
    std::fs::write(dir.join("nbdkit.pc"), text).expect("a file");
}

/// A command that runs in namespaces of its own.
pub(crate) fn isolated(arguments: &[&str], dir: &Path) -> Command {
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]).args(arguments);
    let programs = Binary::ours().path().parent().expect("a directory").to_owned();
    let path = std::env::var("PATH").unwrap_or_default();
    // The system's own Python has the module of libnbd.
    command.env("PATH", format!("{}:/usr/bin:{path}", programs.display()));
    command.env("PKG_CONFIG_PATH", dir).env("HOME", dir).env("LC_ALL", "C.UTF-8");
    command.env_remove("LISTEN_FDS").env_remove("LISTEN_PID").current_dir(dir);
    command
}

/// Whether this user may have namespaces; a line says that not.
pub(crate) fn has_namespaces() -> bool {
    let dir = TempDir::new();
    let tried = run(&mut isolated(&["true"], dir.path()), DEADLINE);
    if !tried.status.success() {
        assert!(std::env::var_os("CI").is_none(), "CI must have namespaces: {}", tried.stderr);
        eprintln!("SKIPPED: unshare: {}", tried.stderr);
    }
    tried.status.success()
}

#[test]
fn what_pages_tell_the_reader_to_type_works() {
    if !has_namespaces() {
        return;
    }
    let pages = pages();
    let pages: Vec<&Page> = pages.iter().filter(|page| is_run(page)).collect();
    assert!(pages.len() >= 13, "{} pages", pages.len());
    let mut failed = Vec::new();
    for page in pages {
        let dir = TempDir::new();
        write_package(dir.path());
        let mut command = isolated(&["sh", "-c", &script(page)], dir.path());
        let finished = run(&mut command, LONG);
        if !finished.status.success() {
            let line = std::fs::read_to_string(dir.join("line")).unwrap_or_default();
            failed.push(format!("{}, {line}{}{}", page.title(), finished.stdout, finished.stderr));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn an_example_that_fails_or_prints_something_else_is_noticed() {
    let with = |example: &str| Page {
        name: String::new(),
        section: String::new(),
        text: format!(".Bd -literal -offset indent\n{example}\n.Ed\n"),
    };
    let dir = TempDir::new();
    let ends_well = |example: &str| {
        let script = script(&with(example)).replace("ip link set lo up\n", "");
        let mut command = Command::new("sh");
        let command = command.args(["-c", &script]).current_dir(dir.path());
        run(command, DEADLINE).status.success()
    };
    assert!(ends_well("true\nls"));
    assert!(!ends_well("false\ntrue"));
    assert!(ends_well("$ echo a\na\n$ printf 'b\\n\\n' | \\e\n    head -1\nb"));
    assert!(!ends_well("$ echo a\nb"));
    assert!(!ends_well("$ true\na"));
}

/// README.md, "TLS from nothing", is the script of nbdkit-tls(1) in short.
#[test]
fn the_commands_of_the_readme_work() {
    let text = std::fs::read_to_string(root().join("README.md")).expect("a file");
    let (_, section) = text.split_once("\n## TLS from nothing\n").expect("a section");
    let lines = section.lines().skip_while(|line| !line.starts_with("    "));
    let lines = lines.take_while(|line| line.starts_with("    ")).map(|line| &line[4..]);
    let text: Vec<&str> = lines.collect();
    assert!(text.len() >= 5 && text.len() <= 10, "{text:?}");
    let dir = TempDir::new();
    let script = format!("set -eu\nip link set lo up\n{}", text.join("\n"));
    if !has_namespaces() {
        return;
    }
    let finished = run(&mut isolated(&["sh", "-c", &script], dir.path()), DEADLINE);
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stdout.contains("with TLS"), "{}", finished.stdout);
}

#[test]
fn every_example_that_is_not_run_says_why() {
    let client = page("nbdkit-client");
    let reasons: Vec<String> =
        client.examples().into_iter().filter_map(|example| example.not_run).collect();
    assert!(reasons.iter().all(|reason| reason.starts_with("needs ")), "{reasons:?}");
    // Most of them are run.
    let run = client.examples().len() - reasons.len();
    assert!(run >= 5, "{run} examples are run");
}
