//! Runs one row, a command line and a client's script, against Debian's nbdkit and against ours,
//! and compares what a client and a user learn.
//!
//! Where ours means to differ, `differences.txt` says how and why; a row must differ in exactly the
//! listed lines, so a new difference and a vanished one both fail. With `NBDKIT_UNDER_TEST=debian`
//! both sides are Debian's, nothing may differ, and a failure means that the row is not
//! reproducible. With `NBDKIT_TRANSCRIPTS` set, Debian's transcripts are printed.

mod diff;
mod differences;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::binary::Binary;
use crate::command;
use crate::server::Server;
use crate::tempdir::TempDir;
use crate::transcript::Session;

pub use differences::check_rows_exist;

/// How long a command of a row may run.
const DEADLINE: Duration = Duration::from_secs(30);

/// Something to run on both sides. Build it with [`Row::new`], finish it with [`Row::compare`] or
/// [`Row::compare_command`].
#[derive(Clone, Copy)]
pub struct Row<'a> {
    name: &'a str,
    variant: &'a str,
    arguments: &'a [&'a str],
    setup: fn(&TempDir),
    normalise: fn(&str) -> Option<String>,
}

impl<'a> Row<'a> {
    /// A row by the name under which `differences.txt` may list it. `{dir}` in an argument is the
    /// private directory, `{ext2}` the filter of that name, which is a file of its own.
    #[must_use]
    pub fn new(name: &'a str, arguments: &'a [&'a str]) -> Self {
        Row { name, variant: "", arguments, setup: |_| {}, normalise: |line| Some(line.to_owned()) }
    }

    /// Tells rows of one test apart: `differences.txt` lists them as `[name: variant]`.
    #[must_use]
    pub fn variant(mut self, variant: &'a str) -> Self {
        self.variant = variant;
        self
    }

    /// Prepares files in the private directory before the server starts.
    #[must_use]
    pub fn setup(mut self, setup: fn(&TempDir)) -> Self {
        self.setup = setup;
        self
    }

    /// Changes, or with `None` drops, each line that is compared.
    #[must_use]
    pub fn normalise(mut self, normalise: fn(&str) -> Option<String>) -> Self {
        self.normalise = normalise;
        self
    }

    /// Starts a server on each side, runs the script, stops the server, and compares the
    /// transcripts.
    ///
    /// # Panics
    /// If they differ in other lines than the listed ones.
    pub fn compare(self, script: impl Fn(&mut Session)) {
        self.compare_sides(|binary| self.transcript(binary, &script));
    }

    /// Runs the command line to its end on each side and compares exit status, standard output and
    /// standard error.
    ///
    /// # Panics
    /// If they differ in other lines than the listed ones, or a command does not end.
    pub fn compare_command(self) {
        self.compare_sides(|binary| self.output(binary));
    }

    fn label(self) -> String {
        match self.variant {
            "" => self.name.to_owned(),
            variant => format!("{}: {}", self.name, variant.replace('\n', "\\n")),
        }
    }

    fn compare_sides(self, run: impl Fn(&Binary) -> Vec<String>) {
        let label = self.label();
        let Some(debian) = Binary::debian() else {
            assert!(std::env::var_os("CI").is_none(), "CI must have Debian's nbdkit, the oracle");
            eprintln!(
                "SKIPPED {}: Debian's nbdkit is not installed, nothing was compared",
                self.name
            );
            return;
        };
        let ours = Binary::under_test();
        let expected = self.lines(&run(&debian));
        let found = self.lines(&run(&ours));
        if std::env::var_os("NBDKIT_TRANSCRIPTS").is_some() {
            eprintln!("[{label}]\n{}\n", expected.join("\n"));
        }
        let difference = diff::diff(&expected, &found);
        let intended = if ours.is_ours() { differences::of_row(&label) } else { Vec::new() };
        assert!(
            difference == intended,
            "row [{label}]: Debian (-) and the server under test (+) differ:\n{}\n\ndifferences.txt lists:\n{}\n\n\
             Debian's transcript:\n{}\n",
            difference.join("\n"),
            intended.join("\n"),
            expected.join("\n")
        );
    }

    fn lines(self, lines: &[String]) -> Vec<String> {
        let lines = lines.iter().filter(|line| !is_about_confinement(line));
        lines.filter_map(|line| (self.normalise)(line)).collect()
    }

    /// The arguments for one side.
    fn arguments_for(self, binary: &Binary) -> Vec<String> {
        let replaced = |argument: &&str| match argument.contains("{ext2}") {
            true => argument.replace("{ext2}", &binary.filter("ext2")),
            false => (*argument).to_owned(),
        };
        self.arguments.iter().map(replaced).collect()
    }

    fn transcript(self, binary: &Binary, script: &impl Fn(&mut Session)) -> Vec<String> {
        let builder = Server::nbdkit(self.arguments_for(binary)).binary(binary.clone());
        (self.setup)(builder.dir());
        let dir = builder.dir().path().to_owned();
        let mut server = match builder.try_start() {
            Ok(server) => server,
            Err(finished) => {
                let mut lines = vec![format!("did not start: {}", finished.status_text())];
                lines.extend(texts("stderr", &finished.stderr, binary, &dir));
                return lines;
            }
        };
        let mut session = Session::new(server.socket(), &dir);
        script(&mut session);
        let mut lines = session.into_lines();
        let status = server.stop();
        lines.push(format!("server: {status}"));
        lines.iter().map(|line| anonymous(line, binary, &dir)).collect()
    }

    fn output(self, binary: &Binary) -> Vec<String> {
        let dir = TempDir::new();
        (self.setup)(&dir);
        let mut command = Command::new(binary.path());
        command.current_dir(dir.path());
        for argument in self.arguments_for(binary) {
            command.arg(argument.replace("{dir}", &dir.path().to_string_lossy()));
        }
        let finished = command::run(&mut command, DEADLINE);
        let mut lines = vec![finished.status_text()];
        lines.extend(texts("stdout", &finished.stdout, binary, dir.path()));
        lines.extend(texts("stderr", &finished.stderr, binary, dir.path()));
        lines
    }
}

/// Whether a line is one of those that `--dump-plugin` has about the sandbox of a stack, which
/// nbdkit has not.
fn is_about_confinement(line: &str) -> bool {
    let key = line.strip_prefix("stdout: ").unwrap_or_default();
    ["sandbox=", "isolation=", "needs_"].iter().any(|ours| key.starts_with(ours))
}

/// Runs a row for each of several variants, all of them even if some fail.
///
/// # Panics
/// If any of them did.
pub fn for_each<T: Copy>(variants: &[T], row: impl Fn(T)) {
    let run = |variant: &&T| catch_unwind(AssertUnwindSafe(|| row(**variant))).is_err();
    let failed = variants.iter().filter(run).count();
    assert!(failed == 0, "{failed} of {} variants failed, see above", variants.len());
}

fn texts(stream: &str, text: &str, binary: &Binary, dir: &Path) -> Vec<String> {
    text.lines().map(|line| anonymous(&format!("{stream}: {line}"), binary, dir)).collect()
}

/// Removes what differs from run to run and from machine to machine: the private directory, the
/// executable's path, the directory of Debian's plugins.
fn anonymous(line: &str, binary: &Binary, dir: &Path) -> String {
    let words = line.split(' ').map(|word| match word.split_once("/nbdkit/plugins/") {
        Some((before, plugin)) => {
            let before_path = before.split('/').next().unwrap_or_default();
            format!("{before_path}{{plugindir}}/{plugin}")
        }
        None => word.to_owned(),
    });
    let line = words.collect::<Vec<_>>().join(" ");
    line.replace(&*dir.to_string_lossy(), "{dir}")
        .replace(&*binary.path().to_string_lossy(), "nbdkit")
        .trim_end()
        .to_owned()
}

/// The name of the function that it is written in: a test's name and its row's are one.
#[macro_export]
macro_rules! row_name {
    () => {{
        fn here() {}
        let path = std::any::type_name_of_val(&here);
        let names = path.rsplit("::").filter(|name| *name != "here" && *name != "{{closure}}");
        names.into_iter().next().unwrap_or(path)
    }};
}
