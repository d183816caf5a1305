//! Runs a command that is expected to end by itself, and gathers what it says.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long what a command has left may go on writing.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How a finished command ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Standard output, with anything that is not UTF-8 replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
}

impl Finished {
    /// `exit N` or `signal N`.
    #[must_use]
    pub fn status_text(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no status".to_owned(),
        }
    }
}

/// Runs `command` to its end with no standard input. Children that it leaves may write for
/// [`LAST_WORDS`] more, and are killed.
///
/// # Panics
/// If it cannot be started, or does not end within `deadline`: it is then killed, with its
/// children.
pub fn run(command: &mut Command, deadline: Duration) -> Finished {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let stdout = gather(child.stdout.take());
    let stderr = gather(child.stderr.take());
    let end = Instant::now() + deadline;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                kill_group(child.id());
                let _ = child.wait();
                panic!("{command:?} did not end within {deadline:?}");
            }
            Err(error) => panic!("wait: {command:?}: {error}"),
        }
    };
    // A server that a client has started may have something to say still.
    let end = Instant::now() + LAST_WORDS;
    while !(stdout.is_finished() && stderr.is_finished()) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    // A child left in the background would hold the pipes open for ever.
    kill_group(child.id());
    let text = |thread: JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned()
    };
    Finished { status, stdout: text(stdout), stderr: text(stderr) }
}

/// Kills the process group that a child of this test leads; its members, too, are this test's.
pub(crate) fn kill_group(leader: u32) {
    if let Ok(leader) = i32::try_from(leader) {
        let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
    }
}

fn gather(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_leaves_may_have_its_say_and_is_killed() {
        let deadline = Duration::from_secs(20);
        let finished =
            run(Command::new("sh").args(["-c", "(sleep 0.1; echo late >&2) &"]), deadline);
        assert_eq!(finished.stderr, "late\n");
        let start = Instant::now();
        let finished = run(Command::new("sh").args(["-c", "sleep 60 & echo $!"]), deadline);
        assert!(start.elapsed() < deadline);
        let left = finished.stdout.trim().parse().expect("a process id");
        crate::processes::eventually("it was killed", || !crate::processes::is_alive(left));
    }
}
