//! Standard error, or a file, whose reader may have stopped: the server must not wait for it. Lines
//! that it does not take wait in a bounded queue; lines for which there is no room are dropped and
//! counted.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;

/// Most bytes in the queue.
const MOST: usize = 256 * 1024;

/// What a pipe that polls as writable takes without blocking, and atomically: PIPE_BUF, pipe(7).
const AT_ONCE: usize = 4096;

/// Backoff before the next attempt: the shortest after some was taken, doubling up to the longest
/// while nothing is. A slow reader is served as fast as it reads, and one that has stopped costs
/// little.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// A descriptor, and the lines that it has not taken.
pub(super) struct Output<F> {
    fd: F,
    /// The queue. Of the first line perhaps only the remaining part.
    queue: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines that were dropped since the last one that was queued.
    dropped: u64,
    /// Some was taken since the backoff was chosen.
    progress: bool,
    pause: Duration,
}

impl<F: AsFd> Output<F> {
    pub(super) fn new(fd: F) -> Output<F> {
        let (queue, pause) = (VecDeque::new(), PAUSE.0);
        Output { fd, queue, bytes: 0, dropped: 0, progress: false, pause }
    }

    pub(super) fn fd(&self) -> &F {
        &self.fd
    }

    /// Writes to another descriptor from now on. Returns the one before.
    pub(super) fn replace(&mut self, fd: F, note: &impl Fn(u64) -> String) -> F {
        self.flush(note);
        std::mem::replace(&mut self.fd, fd)
    }

    /// Whether lines are queued.
    pub(super) fn is_behind(&self) -> bool {
        !self.queue.is_empty() || self.dropped != 0
    }

    /// Writes a line with its newline, now or when that does not block. `note` makes the line that
    /// reports how many were dropped.
    pub(super) fn write(&mut self, line: String, note: impl Fn(u64) -> String) {
        self.flush(&note);
        if self.is_behind() && self.bytes + line.len() > MOST {
            self.dropped += 1;
            return;
        }
        self.push(line);
        self.flush(&note);
    }

    fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.queue.push_back(line.into_bytes());
    }

    /// Writes the queue, as far as that does not block.
    pub(super) fn flush(&mut self, note: &impl Fn(u64) -> String) {
        loop {
            let Some(line) = self.queue.front_mut() else {
                match std::mem::take(&mut self.dropped) {
                    0 => return,
                    dropped => self.push(note(dropped)),
                }
                continue;
            };
            let events = PollFlags::POLLOUT;
            match poll(&mut [PollFd::new(self.fd.as_fd(), events)], PollTimeout::ZERO) {
                Ok(0) | Err(Errno::EINTR) => return,
                Ok(_) | Err(_) => {}
            }
            match write(&self.fd, &line[..line.len().min(AT_ONCE)]) {
                Ok(written) => {
                    self.progress = true;
                    self.bytes -= written;
                    line.drain(..written);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // The log is full, or closed: there is no other log for the error.
                Err(_) => {
                    self.bytes -= line.len();
                    line.clear();
                }
            }
            if line.is_empty() {
                self.queue.pop_front();
            }
        }
    }

    /// Writes the queue, and returns the backoff before the next attempt; `None` if the queue is
    /// empty.
    pub(super) fn catch_up(&mut self, note: &impl Fn(u64) -> String) -> Option<Duration> {
        if !self.is_behind() {
            return None;
        }
        self.flush(note);
        let progress = std::mem::take(&mut self.progress);
        self.pause = if progress { PAUSE.0 } else { (self.pause * 2).min(PAUSE.1) };
        self.is_behind().then_some(self.pause)
    }

    /// At the end: waits a moment for the reader to catch up.
    pub(super) fn finish(&mut self, note: &impl Fn(u64) -> String) {
        const TIMEOUT: Duration = Duration::from_secs(1);
        const LOOK: Duration = Duration::from_millis(10);
        let end = Instant::now() + TIMEOUT;
        self.flush(note);
        while self.is_behind() && Instant::now() < end {
            let events = PollFlags::POLLOUT;
            let look = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
            let _ = poll(&mut [PollFd::new(self.fd.as_fd(), events)], look);
            self.flush(note);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn note(dropped: u64) -> String {
        format!("{dropped} dropped\n")
    }

    #[test]
    fn a_pipe_without_a_reader_does_not_block_and_its_queue_is_bounded() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut output = Output::new(writer);
        let line = format!("{}\n", "x".repeat(999));
        let begin = Instant::now();
        for _ in 0..1000 {
            output.write(line.clone(), note);
        }
        output.finish(&note);
        assert!(begin.elapsed() < Duration::from_secs(20));
        assert!(output.bytes <= MOST && output.dropped > 500);
        let mut reader = std::io::BufReader::new(reader);
        let dropped = output.dropped;
        // A reader that comes back reads whole lines, and how many are missing.
        let read = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        while output.is_behind() {
            output.finish(&note);
        }
        drop(output);
        let text = read.join().unwrap();
        assert!(text.lines().take(300).all(|it| it == line.trim_end()));
        assert!(text.ends_with(&note(dropped)));
        assert_eq!(text.lines().count() as u64 - 1 + dropped, 1000);
    }

    #[test]
    fn the_backoff_grows_while_nothing_is_read_and_is_reset_when_something_is() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut output = Output::new(writer);
        assert_eq!(output.catch_up(&note), None);
        output.write("x".repeat(MOST / 2), note);
        let (shortest, longest) = PAUSE;
        assert_eq!(output.catch_up(&note), Some(shortest), "the pipe took some");
        assert_eq!(output.catch_up(&note), Some(shortest * 2));
        for _ in 0..10 {
            output.catch_up(&note);
        }
        assert_eq!(output.catch_up(&note), Some(longest));
        reader.read_exact(&mut [0; 2 * AT_ONCE]).unwrap();
        assert_eq!(output.catch_up(&note), Some(shortest));
    }

    #[test]
    fn a_reader_that_is_gone_is_not_waited_for() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut output = Output::new(writer);
        output.write("x\n".to_owned(), note);
        assert!(!output.is_behind());
    }
}
