//! The content of the disk, and so of replies.

use std::ops::Range;

use nbd_protocol::constants::{Command, CommandFlags, NbdError, STATE_ZERO, TransmissionFlags};
use nbd_protocol::transmission::Request;
use nbdkit_tests::client::Reply;

/// A disk.
#[derive(Debug)]
pub(super) struct Model {
    bytes: Vec<u8>,
    /// Where a write that failed may have left anything.
    unknown: Vec<Range<usize>>,
    writable_to: usize,
}

impl Model {
    /// All zero.
    pub(super) fn new(size: usize) -> Model {
        Model { bytes: vec![0; size], unknown: Vec::new(), writable_to: size }
    }

    /// Puts something at the beginning.
    pub(super) fn begin_with(&mut self, bytes: &[u8]) {
        self.bytes[..bytes.len()].copy_from_slice(bytes);
    }

    /// Writes beyond may fail.
    pub(super) fn writable_to(&mut self, end: usize) {
        self.writable_to = end;
    }

    /// The part of the disk that a request is about, if it is on the disk.
    fn range(&self, request: &Request) -> Option<Range<usize>> {
        let (start, length) =
            (usize::try_from(request.offset).ok()?, usize::try_from(request.length).ok()?);
        let end = start.checked_add(length)?;
        (end <= self.bytes.len() && length > 0).then_some(start..end)
    }

    /// Holds a reply against the disk, and notes what the request has changed.
    ///
    /// # Panics
    /// If the reply is wrong.
    pub(super) fn check(
        &mut self,
        request: &Request,
        payload: &[u8],
        reply: &Reply,
        offered: TransmissionFlags,
    ) {
        let range = self.range(request);
        let writes =
            matches!(request.command, Command::WRITE | Command::WRITE_ZEROES | Command::TRIM);
        if let Some(error) = reply.nbd_error() {
            let why = &reply.error;
            assert!(!self.must_succeed(request, offered), "{request:?}: {error} ({why:?})");
            self.unknown.extend(
                range.filter(|_| writes && !matches!(error, NbdError::Perm | NbdError::Inval)),
            );
            return;
        }
        assert!(!writes || !offered.contains(TransmissionFlags::READ_ONLY), "{request:?}");
        match request.command {
            Command::READ => {
                let range = range.expect("a read that succeeded is on the disk");
                assert!(
                    reply.data.len() == range.len(),
                    "{request:?}: as long as it was asked for"
                );
                assert!(self.holds(range, &reply.data), "{request:?}: wrong data");
            }
            Command::WRITE => {
                let range = range.expect("a write that succeeded is on the disk");
                self.bytes[range].copy_from_slice(payload);
            }
            Command::WRITE_ZEROES | Command::TRIM => {
                self.bytes[range.expect("what was zeroed is on the disk")].fill(0);
            }
            Command::BLOCK_STATUS => self.check_status(request, reply),
            Command::FLUSH | Command::CACHE => {}
            other => panic!("{other} succeeded"),
        }
    }

    /// Whether the disk may hold this here.
    fn holds(&self, range: Range<usize>, data: &[u8]) -> bool {
        let held = &self.bytes[range.clone()];
        held == data
            || range.zip(held.iter().zip(data)).all(|(at, (held, byte))| {
                held == byte || self.unknown.iter().any(|range| range.contains(&at))
            })
    }

    fn check_status(&self, request: &Request, reply: &Reply) {
        for (_, runs) in &reply.status {
            let mut at = request.offset;
            for (length, flags) in runs {
                assert!(*length > 0, "{request:?}: an empty extent");
                let end = at.checked_add(*length).filter(|end| *end <= self.bytes.len() as u64);
                let end = end.expect("an extent is on the disk");
                if flags & u64::from(STATE_ZERO) != 0 {
                    let zeroes = vec![0; (end - at) as usize];
                    assert!(
                        self.holds(at as usize..end as usize, &zeroes),
                        "{request:?}: not zero"
                    );
                }
                at = end;
            }
        }
    }

    /// Whether a server has no reason to refuse.
    fn must_succeed(&self, request: &Request, offered: TransmissionFlags) -> bool {
        let writable = !offered.contains(TransmissionFlags::READ_ONLY);
        if !(request.flags - CommandFlags::PAYLOAD_LEN).is_empty() {
            return false;
        }
        let flagged = request.flags.contains(CommandFlags::PAYLOAD_LEN);
        let range = self.range(request);
        let inside = range.as_ref().is_some_and(|range| range.end <= self.writable_to);
        match request.command {
            Command::READ => range.is_some() && !flagged,
            Command::WRITE => inside && writable && !flagged,
            Command::WRITE_ZEROES => {
                inside
                    && writable
                    && !flagged
                    && offered.contains(TransmissionFlags::SEND_WRITE_ZEROES)
            }
            Command::TRIM => {
                inside && writable && !flagged && offered.contains(TransmissionFlags::SEND_TRIM)
            }
            Command::FLUSH => {
                (request.offset, request.length, flagged) == (0, 0, false)
                    && offered.contains(TransmissionFlags::SEND_FLUSH)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(command: Command, offset: u64, length: u64) -> Request {
        Request { flags: CommandFlags::empty(), command, cookie: 1, offset, length }
    }

    fn reply(request: Request, data: &[u8]) -> Reply {
        let (chunks, status) = (Vec::new(), Vec::new());
        Reply { cookie: 1, request, error: None, data: data.to_vec(), chunks, status }
    }

    fn after_a_write() -> Model {
        let mut model = Model::new(100);
        let write = request(Command::WRITE, 10, 3);
        model.check(&write, b"abc", &reply(write, b""), TransmissionFlags::empty());
        model
    }

    #[test]
    fn what_was_written_is_read() {
        let read = request(Command::READ, 9, 5);
        let data = reply(read, b"\0abc\0");
        after_a_write().check(&read, b"", &data, TransmissionFlags::empty());
    }

    #[test]
    #[should_panic(expected = "wrong data")]
    fn a_wrong_byte_is_noticed() {
        let read = request(Command::READ, 9, 5);
        let data = reply(read, b"\0abd\0");
        after_a_write().check(&read, b"", &data, TransmissionFlags::empty());
    }

    #[test]
    #[should_panic(expected = "as long as it was asked for")]
    fn a_short_read_is_noticed() {
        let read = request(Command::READ, 9, 5);
        after_a_write().check(&read, b"", &reply(read, b"\0abc"), TransmissionFlags::empty());
    }

    #[test]
    #[should_panic(expected = "not zero")]
    fn a_hole_that_is_none_is_noticed() {
        let status = request(Command::BLOCK_STATUS, 0, 100);
        let holes = vec![(1, vec![(11, u64::from(STATE_ZERO))])];
        let said = Reply { status: holes, ..reply(status, b"") };
        after_a_write().check(&status, b"", &said, TransmissionFlags::empty());
    }

    #[test]
    #[should_panic(expected = "NBD_EIO")]
    fn an_error_without_reason_is_noticed() {
        let read = request(Command::READ, 9, 5);
        let error =
            nbdkit_tests::client::ReplyError { code: 5, message: String::new(), offset: None };
        let failed = Reply { error: Some(error), ..reply(read, b"") };
        after_a_write().check(&read, b"", &failed, TransmissionFlags::empty());
    }
}
