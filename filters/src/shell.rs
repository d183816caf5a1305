//! Runs the shell scripts that parameters may give (`logscript=`, `exportdesc=script:`), in
//! workers and in the template.
//!
//! The script is the operator's; what it is told may come from a client. Hence that travels in
//! environment variables, never in the text of the script, and needs no quoting.

use std::io::Read;
use std::process::{Command, Stdio};

use nbdkit_api::{Result, ResultExt};

fn command(script: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).stdin(Stdio::null()).envs(variables.iter().copied());
    command
}

/// Runs `script` to its end; how it ended does not matter.
///
/// # Errors
/// It could not be started, or a value holds a NUL.
pub(crate) fn run(script: &str, variables: &[(&str, &str)]) -> Result<()> {
    command(script, variables).status().or_error(|| "run /bin/sh").map(drop)
}

/// Runs `script` and returns what it printed, cut off after `limit` bytes.
///
/// # Errors
/// It could not be started, or a value holds a NUL.
pub(crate) fn output(script: &str, variables: &[(&str, &str)], limit: u64) -> Result<Vec<u8>> {
    let mut child =
        command(script, variables).stdout(Stdio::piped()).spawn().or_error(|| "run /bin/sh")?;
    let mut printed = Vec::new();
    let read = child.stdout.take().map_or(Ok(0), |out| out.take(limit).read_to_end(&mut printed));
    // The pipe is closed now, so a script that prints without end dies of it.
    child.wait().or_error(|| "wait for /bin/sh")?;
    read.or_error(|| "read from /bin/sh")?;
    Ok(printed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_code() {
        let evil = "\"; echo pwned; '$(id)";
        let printed = output("printf %s \"$name\"", &[("name", evil)], 100).unwrap();
        assert_eq!(printed, evil.as_bytes());
        assert!(output("echo", &[("name", "a\0b")], 100).is_err());
    }

    #[test]
    fn endless_output_is_cut() {
        assert_eq!(output("yes", &[], 10).unwrap(), b"y\ny\ny\ny\ny\n");
    }
}
