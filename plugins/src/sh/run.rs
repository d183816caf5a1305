//! Runs a program with its three standard streams on pipes, all served at once by poll(2): a script
//! may write before it has read, or the other way round, and needs no thread of ours.
//!
//! Runs in the template and in the workers. The program is the user's; what it prints is bounded,
//! since what it prints may be up to a client.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, ExitStatus, Stdio};

use nbdkit_api::programs::{self, Program};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What is kept of standard error, bytes; the rest is read and dropped.
const MAX_STDERR: usize = 64 << 10;
/// What is read at once, bytes.
const PIECE: usize = 64 << 10;
/// How far beyond what was asked for an output is counted before the pipe is closed.
const MAX_EXCESS: usize = 1 << 20;

/// Where standard output goes.
pub(crate) enum Sink<'a> {
    /// Into a growing buffer of at most so many bytes.
    Buffer(Vec<u8>, usize),
    /// Into exactly this place.
    Place(&'a mut [u8]),
}

/// How the program ended.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    /// How many bytes it printed, as far as that was counted.
    pub(crate) printed: usize,
    /// It printed more than the sink holds.
    pub(crate) overflow: bool,
    /// The beginning of what it printed on standard error.
    pub(crate) stderr: Vec<u8>,
}

impl Sink<'_> {
    fn capacity(&self) -> usize {
        match self {
            Sink::Buffer(_, limit) => *limit,
            Sink::Place(place) => place.len(),
        }
    }

    /// Reads once. What does not fit is counted only.
    fn read(
        &mut self,
        from: &mut impl Read,
        printed: usize,
        spare: &mut [u8],
    ) -> io::Result<usize> {
        if let Sink::Place(place) = self
            && printed < place.len()
        {
            return from.read(&mut place[printed..]);
        }
        let length = from.read(spare)?;
        if let Sink::Buffer(buffer, limit) = self {
            let room = limit.saturating_sub(buffer.len()).min(length);
            buffer.extend_from_slice(&spare[..room]);
        }
        Ok(length)
    }
}

/// Runs `command`, feeds it `stdin` (a program that does not read it all does no wrong) and
/// collects what it prints.
///
/// # Errors
/// It could not be run, the pipes failed, or the call was given up (ESHUTDOWN). That it failed
/// itself is known by its status.
pub(super) fn run(
    command: &mut Command,
    stdin: &[u8],
    sink: &mut Sink<'_>,
) -> io::Result<Finished> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    attend(command, stdin, sink, &|| false)
}

/// As [`run`], with standard input and output where the caller has put them: no more than what is
/// a pipe is fed or collected. The program is killed once nobody wants its result, which `unwanted`
/// is asked now and then: a connection that is not yet in transmission is not given up.
///
/// # Errors
/// Those of [`run`].
pub(crate) fn attend(
    command: &mut Command,
    stdin: &[u8],
    sink: &mut Sink<'_>,
    unwanted: &dyn Fn() -> bool,
) -> io::Result<Finished> {
    command.stderr(Stdio::piped());
    let mut program = programs::start(command)?;
    let talked = talk(&mut program, stdin, sink, unwanted);
    if talked.is_err() {
        // Without pipes its output would never be noticed.
        program.kill();
    }
    let status = program.wait()?;
    if program.is_given_up() {
        return Err(nix::Error::ESHUTDOWN.into());
    }
    let (printed, stderr) = talked?;
    Ok(Finished { status, printed, overflow: printed > sink.capacity(), stderr })
}

fn talk(
    program: &mut Program,
    mut input: &[u8],
    sink: &mut Sink<'_>,
    unwanted: &dyn Fn() -> bool,
) -> io::Result<(usize, Vec<u8>)> {
    let child = &mut program.child;
    let mut stdin = child.stdin.take().filter(|_| !input.is_empty());
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    let pipes = [
        stdin.as_ref().map(AsFd::as_fd),
        stdout.as_ref().map(AsFd::as_fd),
        stderr.as_ref().map(AsFd::as_fd),
    ];
    for fd in pipes.into_iter().flatten() {
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let mut printed = 0usize;
    let mut complaint = Vec::new();
    let mut spare = vec![0; PIECE];
    while stdin.is_some() || stdout.is_some() || stderr.is_some() {
        wait([
            stdin.as_ref().map(|fd| (fd.as_fd(), PollFlags::POLLOUT)),
            stdout.as_ref().map(|fd| (fd.as_fd(), PollFlags::POLLIN)),
            stderr.as_ref().map(|fd| (fd.as_fd(), PollFlags::POLLIN)),
        ])?;
        // A pipe may be held open by what was not in the script's group, and so not killed with it.
        if program.is_given_up() || unwanted() {
            return Err(nix::Error::ESHUTDOWN.into());
        }
        // Each is tried; those that are not ready return EAGAIN.
        if let Some(pipe) = &mut stdin {
            match progress(pipe.write(input)) {
                Ok(Some(length)) => input = &input[length..],
                Ok(None) => {}
                // It has closed its standard input, which it may.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => input = &[],
                Err(error) => return Err(error),
            }
            if input.is_empty() {
                stdin = None;
            }
        }
        if let Some(pipe) = &mut stdout
            && let Some(length) = progress(sink.read(pipe, printed, &mut spare))?
        {
            printed += length;
            if length == 0 || printed > sink.capacity().saturating_add(MAX_EXCESS) {
                stdout = None;
            }
        }
        if let Some(pipe) = &mut stderr
            && let Some(length) = progress(pipe.read(&mut spare))?
        {
            let room = (MAX_STDERR - complaint.len()).min(length);
            complaint.extend_from_slice(&spare[..room]);
            if length == 0 {
                stderr = None;
            }
        }
    }
    Ok((printed, complaint))
}

/// How often a call looks whether it was given up, milliseconds.
const LOOK: u16 = 1000;

/// Waits until one of the pipes can go on, but not for ever.
fn wait(pipes: [Option<(BorrowedFd<'_>, PollFlags)>; 3]) -> io::Result<()> {
    let mut fds: Vec<_> =
        pipes.into_iter().flatten().map(|(fd, flags)| PollFd::new(fd, flags)).collect();
    match poll(&mut fds, PollTimeout::from(LOOK)) {
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The bytes that were moved; `None` if the pipe is not ready after all.
fn progress(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(length) => Ok(Some(length)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, stdin: &[u8], sink: &mut Sink<'_>) -> Finished {
        run(Command::new("/bin/sh").arg("-c").arg(script), stdin, sink).unwrap()
    }

    #[test]
    fn megabytes_both_ways_do_not_deadlock() {
        let input: Vec<u8> = (0..4u32 << 20).map(|i| (i % 251) as u8).collect();
        let mut sink = Sink::Buffer(Vec::new(), 8 << 20);
        let finished = sh("tee /dev/stderr", &input, &mut sink);
        assert!(finished.status.success());
        assert_eq!(finished.printed, input.len());
        assert_eq!(finished.stderr, input[..MAX_STDERR]);
        let Sink::Buffer(output, _) = sink else { unreachable!() };
        assert!(output == input);
    }

    #[test]
    fn input_may_be_ignored() {
        let mut sink = Sink::Buffer(Vec::new(), 10);
        let finished = sh("exec <&-; sleep 0.1; echo done; exit 5", &[0; 1 << 20], &mut sink);
        assert_eq!(finished.status.code(), Some(5));
        assert!(matches!(sink, Sink::Buffer(output, _) if output == b"done\n"));
    }

    #[test]
    fn endless_output_is_cut_off() {
        let mut place = [0; 3];
        let finished = sh("yes", &[], &mut Sink::Place(&mut place));
        assert!(finished.overflow);
        assert_eq!(&place, b"y\ny");
        assert!(!finished.status.success());
        let mut sink = Sink::Buffer(Vec::new(), 3);
        assert!(sh("yes", &[], &mut sink).overflow);
        assert!(matches!(sink, Sink::Buffer(output, _) if output == b"y\ny"));
    }

    #[test]
    fn output_that_just_fits_is_no_overflow() {
        let mut place = [0; 3];
        let finished = sh("printf abc", &[], &mut Sink::Place(&mut place));
        assert!(!finished.overflow);
        assert_eq!((finished.printed, &place), (3, b"abc"));
    }
}
