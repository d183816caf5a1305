//! What template, workers and their programs print to standard error, where that of the server is a
//! terminal. They get a pipe instead, since a process with a terminal open can type into it, and
//! can send it control sequences. The listener copies the text without control characters, within a
//! quota.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsRawFd;
use std::time::Instant;

use mio::Interest;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::{PRINTED, Server};
use crate::log::{Log, Quota, Verdict, escape};
use crate::system_error::SystemError;

/// How much is read at a time, bytes: as much as a pipe holds, so that a process that prints too
/// much is not blocked at each page.
const BUFFER: usize = 64 * 1024;
/// A page of the quota, bytes.
const PAGE: usize = 4096;
/// Pages at once, and each second.
const PAGES: (u32, u32) = (64, 16);
/// How often the pipe is read at the end: more than enough for a full pipe.
const MOST_AT_END: usize = 64;

/// The listener's end of the pipe.
pub(super) struct Printed {
    pipe: File,
    /// The first bytes of a character whose other bytes have yet to come.
    rest: Vec<u8>,
    quota: Quota,
    more: bool,
    buffer: Box<[u8]>,
}

impl Printed {
    /// The pipe is readable.
    pub(super) fn is_readable(&mut self) {
        self.more = true;
    }

    /// Whether the pipe may have more, and standard error takes it. A terminal that was stopped
    /// blocks the processes that print, but not the listener.
    pub(super) fn has_more(&self, log: &Log) -> bool {
        self.more && !log.is_behind()
    }

    /// Copies what is in the pipe.
    fn copy(&mut self, log: &Log) {
        let pages = |length: usize| u32::try_from(length.div_ceil(PAGE)).unwrap_or(u32::MAX);
        match self.pipe.read(&mut self.buffer) {
            Ok(length @ 1..) => match self.quota.take_many(pages(length), Instant::now()) {
                Verdict::Drop => {}
                Verdict::Write { dropped } => {
                    if dropped != 0 {
                        log.error("some of what the plugin printed was dropped, it came too fast");
                    }
                    self.rest.extend_from_slice(&self.buffer[..length]);
                    log.print(take_text(&mut self.rest));
                }
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Empty.
            Ok(_) | Err(_) => self.more = false,
        }
    }

    /// At the end: copies what is left.
    pub(super) fn copy_rest(&mut self, log: &Log) {
        self.more = true;
        for _ in 0..MOST_AT_END {
            if self.more {
                self.copy(log);
            }
        }
    }
}

impl Server {
    /// Keeps the terminal, if there is one, from all other processes. Must be called before there
    /// are any.
    ///
    /// # Errors
    /// Those of pipe(2) and epoll_ctl(2).
    pub(super) fn keep_terminal(&mut self) -> Result<(), SystemError> {
        if !io::stderr().is_terminal() {
            return Ok(());
        }
        // Their end blocks if the pipe is full; the listener's does not if it is empty.
        let failed = SystemError::in_call("pipe");
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(&failed)?;
        nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(failed)?;
        self.context
            .register(ours.as_raw_fd(), PRINTED, Interest::READABLE)
            .map_err(SystemError::in_call("epoll_ctl"))?;
        self.context.plan_mut().spec.print_to(theirs);
        self.printed = Some(Printed {
            pipe: ours.into(),
            rest: Vec::new(),
            quota: Quota::new(PAGES.0, PAGES.1, Instant::now()),
            more: false,
            buffer: vec![0; BUFFER].into(),
        });
        Ok(())
    }

    /// Copies what was printed, as much as a pipe holds.
    pub(super) fn copy_printed(&mut self) {
        let log = self.context.log();
        if let Some(printed) = self.printed.as_mut().filter(|printed| printed.has_more(log)) {
            printed.copy(log);
        }
    }
}

/// Takes the whole characters of `bytes`, as text for a terminal. The bytes of a last, incomplete
/// one stay.
fn take_text(bytes: &mut Vec<u8>) -> String {
    let (mut text, mut taken) = (String::new(), 0);
    for chunk in bytes.utf8_chunks() {
        for line in chunk.valid().split_inclusive(['\n', '\t']) {
            let plain = line.trim_end_matches(['\n', '\t']);
            escape(&mut text, plain);
            text.push_str(&line[plain.len()..]);
        }
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        // The other bytes of a character may come with the next read.
        if taken + invalid.len() == bytes.len()
            && std::str::from_utf8(invalid).is_err_and(|it| it.error_len().is_none())
        {
            break;
        }
        if !invalid.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        taken += invalid.len();
    }
    bytes.drain(..taken);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_letters_pass_and_what_a_terminal_obeys_does_not() {
        let text = |bytes: &[u8]| take_text(&mut bytes.to_vec());
        assert_eq!(text(b"one\n\ttwo"), "one\n\ttwo");
        assert_eq!(text("sch\u{f6}n\n\n".as_bytes()), "sch\u{f6}n\n\n");
        assert_eq!(text(b"\x1b[2Jred\x07\n"), "\\x1b[2Jred\\a\n");
        assert_eq!(text(b"a\xffb\xc2\x9bc"), "a\u{fffd}b\\xc2\\x9bc");
        assert_eq!(text(b""), "");
    }

    #[test]
    fn a_character_that_is_read_in_two_parts_is_one() {
        let mut bytes = b"a\xe2\x82".to_vec();
        assert_eq!((take_text(&mut bytes), &bytes[..]), ("a".to_owned(), &b"\xe2\x82"[..]));
        bytes.push(0xac);
        assert_eq!((take_text(&mut bytes), &bytes[..]), ("\u{20ac}".to_owned(), &b""[..]));
    }
}
