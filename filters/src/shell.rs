//! Runs the shell scripts that parameters may give (`logscript=`, `exportdesc=script:`), in
//! workers and in the template.
//!
//! The script is the operator's; the values that it gets may come from a client. Hence they are
//! passed in arguments and environment variables, never in the text of the script, and need no
//! quoting.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use nbdkit_api::{Result, ResultExt, programs};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// What is kept of a script's complaints, bytes.
const MAX_COMPLAINT: u64 = 64 << 10;

/// A shell variable of a script for bash.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Variable<'a> {
    /// One value.
    Scalar(&'static str, &'a str),
    /// An array.
    Array(&'static str, &'a [String]),
}

/// Where bash is.
///
/// # Errors
/// ENOENT: nowhere. It may run other shells' scripts, but arrays it alone has.
pub(crate) fn bash() -> Result<&'static Path> {
    const PLACES: [&str; 3] = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"];
    let mut places = PLACES.iter().map(Path::new);
    places.find(|path| path.exists()).ok_or(nbdkit_api::Errno::ENOENT).or_error(|| PLACES[0])
}

/// Runs `script` by bash with these shell variables, which are not exported, to its end; how it
/// ended does not matter. The shell calls itself sh and is as POSIX wants it, as in nbdkit.
///
/// # Errors
/// It could not be started, or a value holds a NUL.
pub(crate) fn run(bash: &Path, script: &str, variables: &[Variable<'_>]) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(bash);
    command.arg0("sh").arg("-c").arg(prologue(variables) + script).arg("sh").stdin(Stdio::null());
    for variable in variables {
        match variable {
            Variable::Scalar(_, value) => command.arg(value),
            Variable::Array(_, values) => command.args(*values),
        };
    }
    finish(command, None).or_error(|| "run bash").map(drop)
}

/// Gives the arguments their names, and takes them away.
fn prologue(variables: &[Variable<'_>]) -> String {
    let mut text = String::new();
    let mut at = 1;
    for variable in variables {
        match variable {
            Variable::Scalar(name, _) => {
                text += &format!("{name}=${{{at}}}\n");
                at += 1;
            }
            Variable::Array(name, values) => {
                text += &format!("{name}=(\"${{@:{at}:{}}}\")\n", values.len());
                at += values.len();
            }
        }
    }
    text + "set --\n"
}

/// Runs `script` by /bin/sh with these environment variables and returns what it printed, cut off
/// after `limit` bytes.
///
/// # Errors
/// It could not be started, or a value holds a NUL.
pub(crate) fn output(script: &str, variables: &[(&str, &str)], limit: u64) -> Result<Vec<u8>> {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).stdin(Stdio::null()).stdout(Stdio::piped());
    command.envs(variables.iter().copied());
    let mut printed = Vec::new();
    finish(command, Some((&mut printed, limit))).or_error(|| "run /bin/sh")?;
    Ok(printed)
}

/// Runs a command to its end.
fn finish(mut command: Command, output: Option<(&mut Vec<u8>, u64)>) -> io::Result<ExitStatus> {
    // In a file and not a pipe, which what the script leaves in the background would keep open.
    let mut complaint = if programs::confined_strictly() {
        let file = File::from(memfd_create(c"stderr", MFdFlags::MFD_CLOEXEC)?);
        command.stderr(Stdio::from(file.try_clone()?));
        Some(file)
    } else {
        None
    };
    let mut program = programs::start(&mut command)?;
    let mut read = Ok(0);
    if let (Some((printed, limit)), Some(out)) = (output, program.child.stdout.take()) {
        read = out.take(limit).read_to_end(printed);
        // The pipe is closed now, so a script that prints without end dies of it.
    }
    let status = program.wait()?;
    if let Some(file) = &mut complaint {
        pass_on(file)?;
    }
    read?;
    Ok(status)
}

/// Writes the script's output to where it would have gone, and looks whether the sandbox was the
/// reason.
fn pass_on(complaint: &mut File) -> io::Result<()> {
    let mut text = Vec::new();
    complaint.seek(SeekFrom::Start(0))?;
    complaint.take(MAX_COMPLAINT).read_to_end(&mut text)?;
    if !text.is_empty() {
        let _ = io::stderr().write_all(&text);
        programs::explain_refusal(&text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(script: &str, variables: &[Variable<'_>]) -> String {
        let path = std::env::temp_dir().join(format!("shell-filter-{}", std::process::id()));
        let place = path.to_str().unwrap();
        run(bash().unwrap(), &format!("({script}) >{place}"), variables).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        text
    }

    #[test]
    fn values_are_not_code() {
        let evil = "\"; echo pwned; '$(id)\n`id`";
        let printed = output("printf %s \"$name\"", &[("name", evil)], 100).unwrap();
        assert_eq!(printed, evil.as_bytes());
        assert!(output("echo", &[("name", "a\0b")], 100).is_err());
        let list = [evil.to_owned(), String::new(), "$(id)".to_owned()];
        let variables = [
            Variable::Scalar("export", evil),
            Variable::Array("list", &list),
            Variable::Array("none", &[]),
            Variable::Scalar("return", "-1"),
        ];
        let script = "printf '<%s>' \"$export\" \"${list[@]}\" ${#none[@]} $return $# \"$0\"";
        let expected = format!("<{evil}><{evil}><><$(id)><0><-1><0><sh>");
        assert_eq!(logged(script, &variables), expected);
        assert_eq!(logged("env", &[Variable::Scalar("act", "Read")]).matches("act=").count(), 0);
    }

    #[test]
    fn endless_output_is_cut() {
        assert_eq!(output("yes", &[], 10).unwrap(), b"y\ny\ny\ny\ny\n");
    }
}
