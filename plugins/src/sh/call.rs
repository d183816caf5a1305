//! Calling a method of a script: which program runs, with which arguments, and the result.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use nbdkit_api::{Client, Errno, Error, Result, debug, programs, quoted};
use nix::unistd::AccessFlags;

use super::run::{self, Finished, Sink};
use super::status::{self, Verdict};
use super::tmpdir::TempDir;

/// Most bytes that a method other than pread may print: room for the longest list of exports or
/// extents.
const MAX_OUTPUT: usize = 128 << 20;

/// The scripts of one plugin.
pub(crate) trait Scripts: Send + Sync {
    /// What to run for `method`.
    fn find(&self, method: &str) -> Found<'_>;

    /// The directory that all of them share.
    fn tmpdir(&self) -> &TempDir;
}

/// Where a method is.
pub(crate) enum Found<'a> {
    /// In this program.
    Program(Program<'a>),
    /// Nowhere.
    Missing(Cow<'a, Path>),
    /// It succeeds, printing this, and needs no program.
    Known(&'static [u8]),
}

/// A script and how to start it.
pub(crate) struct Program<'a> {
    /// Its file, or what it calls itself if it has none.
    pub(crate) path: &'a Path,
    pub(crate) start: Start<'a>,
}

/// How a script is started.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// The file is executed.
    Execute,
    /// The file is read by /bin/sh.
    Read,
    /// This text is given to /bin/sh.
    Text(&'a OsStr),
}

/// One call.
pub(crate) struct Call<'a> {
    scripts: &'a dyn Scripts,
    client: Option<&'a Client>,
    method: &'static str,
    arguments: Vec<Cow<'a, OsStr>>,
    stdin: &'a [u8],
}

/// What a call came to, with what the script printed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Success.
    Success(Vec<u8>),
    /// The method is missing.
    Missing,
    /// False.
    False,
}

impl<'a> Call<'a> {
    pub(crate) fn new(scripts: &'a dyn Scripts, method: &'static str) -> Call<'a> {
        Call { scripts, client: None, method, arguments: Vec::new(), stdin: &[] }
    }

    /// The client on whose behalf the call is made.
    pub(crate) fn client(mut self, client: Option<&'a Client>) -> Call<'a> {
        self.client = client;
        self
    }

    /// One more argument.
    pub(crate) fn arg(mut self, argument: &'a (impl AsRef<OsStr> + ?Sized)) -> Call<'a> {
        self.arguments.push(Cow::Borrowed(argument.as_ref()));
        self
    }

    /// One more argument, a number.
    pub(crate) fn number(mut self, number: u64) -> Call<'a> {
        self.arguments.push(Cow::Owned(number.to_string().into()));
        self
    }

    /// One more argument, `true` or `false`.
    pub(crate) fn boolean(self, boolean: bool) -> Call<'a> {
        self.arg(if boolean { "true" } else { "false" })
    }

    /// What the script may read on its standard input.
    pub(crate) fn stdin(mut self, stdin: &'a [u8]) -> Call<'a> {
        self.stdin = stdin;
        self
    }

    /// The script in messages: its path.
    fn name(&self) -> String {
        match self.scripts.find(self.method) {
            Found::Program(program) => program.path.display().to_string(),
            Found::Missing(path) => path.display().to_string(),
            Found::Known(_) => self.method.to_owned(),
        }
    }

    /// An error of this call with the script in front, EIO to clients.
    pub(crate) fn error(&self, message: impl std::fmt::Display) -> Error {
        Error::new(Errno::EIO, format!("{}: {message}", self.name()))
    }

    /// Calls it; whatever it prints is collected.
    ///
    /// # Errors
    /// What the script reports; EIO if it cannot be run or prints too much.
    pub(crate) fn answer(&self) -> Result<Answer> {
        let program = match self.scripts.find(self.method) {
            Found::Program(program) => program,
            Found::Missing(_) => return Ok(Answer::Missing),
            Found::Known(output) => return Ok(Answer::Success(output.to_vec())),
        };
        let mut sink = Sink::Buffer(Vec::new(), MAX_OUTPUT);
        let finished = self.run(&program, &mut sink)?;
        if finished.overflow {
            return Err(
                self.error(format!("{} method printed more than {MAX_OUTPUT} bytes", self.method))
            );
        }
        Ok(match self.judge(&finished)? {
            Verdict::Missing => Answer::Missing,
            Verdict::False => Answer::False,
            Verdict::Success => Answer::Success(match sink {
                Sink::Buffer(output, _) => output,
                Sink::Place(_) => Vec::new(),
            }),
        })
    }

    /// Calls it and has it fill `place`, exactly. False if the method is missing.
    ///
    /// # Errors
    /// As [`answer`](Self::answer); EIO if it prints more or less.
    pub(crate) fn fill(&self, place: &mut [u8]) -> Result<bool> {
        let Found::Program(program) = self.scripts.find(self.method) else { return Ok(false) };
        let wanted = place.len();
        let finished = self.run(&program, &mut Sink::Place(place))?;
        let incorrect = || {
            self.error(format!(
                "incorrect amount of data read: expecting {wanted} bytes \
                 but received {} bytes from the script",
                finished.printed
            ))
        };
        if finished.overflow {
            return Err(incorrect());
        }
        match self.judge(&finished)? {
            Verdict::Missing => Ok(false),
            Verdict::False => Err(self.unexpected_false()),
            Verdict::Success if finished.printed == wanted => Ok(true),
            Verdict::Success => Err(incorrect()),
        }
    }

    /// Calls a method that returns nothing. False if it is missing.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub(crate) fn action(&self) -> Result<bool> {
        Ok(self.text()?.is_some())
    }

    /// Calls a method that prints something. `None` if it is missing.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub(crate) fn text(&self) -> Result<Option<Vec<u8>>> {
        match self.answer()? {
            Answer::Success(output) => Ok(Some(output)),
            Answer::Missing => Ok(None),
            Answer::False => Err(self.unexpected_false()),
        }
    }

    /// Calls a method that returns a boolean. `None` if it is missing.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub(crate) fn truth(&self) -> Result<Option<bool>> {
        Ok(match self.answer()? {
            Answer::Success(_) => Some(true),
            Answer::False => Some(false),
            Answer::Missing => None,
        })
    }

    fn unexpected_false(&self) -> Error {
        self.error(format!("{} method returned unexpected code (3/false)", self.method))
    }

    /// The error for a required method that is missing.
    pub(crate) fn required(&self) -> Error {
        self.error(format!("the {} method is required", self.method))
    }

    fn judge(&self, finished: &Finished) -> Result<Verdict> {
        let judged = status::judge(&self.name(), finished.status, &finished.stderr, self.client);
        if judged.is_err() {
            programs::explain_refusal(&finished.stderr);
        }
        judged
    }

    fn run(&self, program: &Program<'_>, sink: &mut Sink<'_>) -> Result<Finished> {
        debug!(
            "calling: {} {} {}",
            program.path.display(),
            self.method,
            quoted(self.arguments.join(OsStr::new(" ")).as_bytes())
        );
        let result = match program.start {
            Start::Text(text) => {
                let mut command = Command::new("/bin/sh");
                command.arg("-c").arg(text).arg(program.path);
                self.start(command, sink)
            }
            Start::Read => self.start_shell(program.path, sink),
            Start::Execute => match self.start(Command::new(program.path), sink) {
                // A script without #! is one for the shell, as for execvp(3).
                Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => {
                    self.start_shell(program.path, sink)
                }
                result => result,
            },
        };
        result.map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            if errno == Errno::ESHUTDOWN {
                // Given up; the reason is reported elsewhere.
                return Error::silent(errno);
            }
            programs::explain_refusal(nbdkit_api::strerror(errno).as_bytes());
            Error::os(format!("{}: {}", program.path.display(), self.method), errno)
                .with_errno(Errno::EIO)
        })
    }

    fn start_shell(&self, script: &Path, sink: &mut Sink<'_>) -> io::Result<Finished> {
        // The shell's status for a file that it cannot read is 2, which means "no such method" to
        // us.
        nix::unistd::access(script, AccessFlags::R_OK)?;
        let mut command = Command::new("/bin/sh");
        command.arg(script);
        self.start(command, sink)
    }

    fn start(&self, mut command: Command, sink: &mut Sink<'_>) -> io::Result<Finished> {
        command.arg(self.method).args(&self.arguments);
        command.env("tmpdir", self.scripts.tmpdir().path());
        run::run(&mut command, self.stdin, sink)
    }
}

/// Drops one newline at the end.
pub(crate) fn chomp(output: &[u8]) -> &[u8] {
    output.strip_suffix(b"\n").unwrap_or(output)
}

/// Whether a script must be given to the shell because it does not name its interpreter.
pub(crate) fn lacks_shebang(text: &[u8]) -> bool {
    !text.starts_with(b"#!")
}
