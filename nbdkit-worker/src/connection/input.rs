//! The input buffer of a connection: one recv may bring many requests.

#![forbid(unsafe_code)]

use std::io;
use std::time::{Duration, Instant};

use nix::sys::time::TimeVal;

use super::{DeadlinePassed, Socket};

/// Size of the buffer, bytes. So large that the allocator maps it: pages that were never written
/// take no memory, and a handshake touches one.
pub(super) const CAPACITY: usize = 256 * 1024;
/// A client that sends nothing for this long is idle.
const IDLE_AFTER: TimeVal = TimeVal::new(0, 250_000);
/// Bytes of a payload that the first read waits for.
const PAYLOAD_STEP: usize = 64 * 1024;

/// How the wait for the next request has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// There is one.
    Request,
    /// The client closed the connection.
    Closed,
    /// The client has been idle for so long that it is to be parked.
    Idle,
}

/// When a client that is idle is parked: after this time, if the function permits it then.
pub(super) type ParkAfter<'a> = (Duration, &'a dyn Fn() -> bool);

/// A buffered reader over the client's socket.
#[derive(Debug)]
pub(crate) struct Input {
    socket: Socket,
    buf: Box<[u8]>,
    start: usize,
    end: usize,
    /// Whether the buffer has held data since it was allocated.
    used: bool,
    /// Whether reads of the socket time out when the client is idle.
    idle_timeout: bool,
    /// Whether only the next header is read from the socket.
    narrow: bool,
    /// Whether the buffer is kept while the client is idle.
    kept: bool,
    /// When waiting fails with [`DeadlinePassed`](super::DeadlinePassed), if ever.
    pub(crate) deadline: Option<Instant>,
}

impl Input {
    pub(crate) fn new(socket: Socket, deadline: Option<Instant>) -> Input {
        let buf = vec![0; CAPACITY].into_boxed_slice();
        Input {
            socket,
            buf,
            start: 0,
            end: 0,
            used: false,
            idle_timeout: false,
            narrow: false,
            kept: false,
            deadline,
        }
    }

    /// The bytes in the buffer.
    pub(crate) fn available(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// Whether to read the next request's header without the bytes that follow it: its payload may
    /// be spliced, and then must not be in this buffer.
    pub(super) fn set_narrow(&mut self, narrow: bool) {
        self.narrow = narrow;
    }

    /// Keeps the buffer while the client is idle.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }

    /// The socket behind the buffer.
    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Removes `count` bytes from the front, at most what is available.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count.min(self.end - self.start);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Whether `count` bytes fit in the buffer.
    pub(crate) fn fits(count: usize) -> bool {
        count <= CAPACITY
    }

    /// Waits until at least `count` bytes are available; false if the client closed the connection
    /// before the first of them. `count` must fit.
    ///
    /// # Errors
    /// UnexpectedEof if the client closed the connection in the middle;
    /// [`DeadlinePassed`](super::DeadlinePassed); the kernel's.
    pub(crate) fn fill(&mut self, count: usize) -> io::Result<bool> {
        self.fill_up_to(CAPACITY, count)
    }

    /// As [`fill`](Self::fill), but reads no more than that from the socket.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub(super) fn fill_exactly(&mut self, count: usize) -> io::Result<bool> {
        self.fill_up_to(count, count)
    }

    fn fill_up_to(&mut self, most: usize, count: usize) -> io::Result<bool> {
        debug_assert!(Input::fits(count), "the caller checks");
        while self.end - self.start < count {
            self.make_room(count);
            let end = self.buf.len().min(self.start + most);
            match self.socket.read(&mut self.buf[self.end..end], self.deadline) {
                Ok(0) if self.start == self.end => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.received(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// As [`fill`](Self::fill), for the next request: if the client is idle, calls `idle` once and
    /// frees the buffer until more arrives, or until the client is to be parked.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub(crate) fn fill_or_idle(
        &mut self,
        count: usize,
        idle: impl FnOnce(),
        park: Option<ParkAfter<'_>>,
    ) -> io::Result<Waited> {
        if !self.idle_timeout && self.used && !self.kept {
            self.idle_timeout = true;
            self.socket.set_read_timeout(Some(IDLE_AFTER));
        }
        if (self.idle_timeout || self.kept) && self.start == self.end {
            let room = if self.narrow { count } else { CAPACITY };
            match self.socket.read(&mut self.buf[..room], self.deadline) {
                Ok(0) => return Ok(Waited::Closed),
                Ok(read) => self.received(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.kept => {
                    self.socket.wait_input(self.deadline)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.socket.set_read_timeout(None);
                    self.socket.shrink();
                    self.buf = Box::default();
                    self.used = false;
                    self.idle_timeout = false;
                    idle();
                    if !self.wait_unless_parked(park)? {
                        return Ok(Waited::Idle);
                    }
                    self.buf = vec![0; CAPACITY].into_boxed_slice();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(if self.fill(count)? { Waited::Request } else { Waited::Closed })
    }

    /// Waits for input of a client that is idle; false if it is to be parked.
    fn wait_unless_parked(&self, park: Option<ParkAfter<'_>>) -> io::Result<bool> {
        let Some((after, is_permitted)) = park else {
            self.socket.wait_input(self.deadline)?;
            return Ok(true);
        };
        loop {
            match self.socket.wait_input(Some(Instant::now() + after)) {
                Err(error) if DeadlinePassed::is(&error) => {
                    if is_permitted() {
                        return Ok(false);
                    }
                }
                result => return result.map(|()| true),
            }
        }
    }

    /// Moves the bytes to the front if `count` bytes would not fit behind `start`.
    fn make_room(&mut self, count: usize) {
        if self.buf.len() - self.start < count {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    fn received(&mut self, count: usize) {
        self.end += count;
        self.used = true;
    }

    /// Reads what has arrived of the next `count` bytes, and what follows them unless narrow,
    /// without waiting. False if nothing has, also at the end of input, which the next read finds
    /// again. `count` must fit, and not be available.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn take_more(&mut self, count: usize) -> io::Result<bool> {
        if self.end == self.buf.len() {
            self.make_room(self.buf.len());
        }
        let wanted = if self.narrow { self.start + count } else { self.buf.len() };
        let read = self.socket.read_now(&mut self.buf[self.end..wanted])?;
        self.received(read);
        Ok(read > 0)
    }

    /// Takes exactly `N` bytes; `None` if the client closed the connection before the first.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub(crate) fn take<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        if !self.fill(N)? {
            return Ok(None);
        }
        let bytes = self.available().first_chunk().copied();
        self.consume(N);
        Ok(bytes)
    }

    /// Fills all of `out`, from the buffer first, then directly from the socket.
    ///
    /// # Errors
    /// As [`fill`](Self::fill); UnexpectedEof also before the first byte.
    pub(crate) fn read_exact(&mut self, out: &mut [u8]) -> io::Result<()> {
        let buffered = out.len().min(self.end - self.start);
        let (first, mut rest) = out.split_at_mut(buffered);
        first.copy_from_slice(&self.available()[..buffered]);
        self.consume(buffered);
        while !rest.is_empty() {
            match self.socket.read(rest, self.deadline) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => rest = &mut rest[read..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads `length` bytes of payload into `out`, replacing its content. Memory is allocated as
    /// the bytes arrive: a client that only announces a payload must cost nothing.
    ///
    /// # Errors
    /// As [`read_exact`](Self::read_exact).
    pub(crate) fn read_payload(&mut self, out: &mut Vec<u8>, length: usize) -> io::Result<()> {
        out.truncate(length);
        let mut read = 0;
        while read < length {
            // The buffer's old length first, then twice what has arrived.
            let target = out.len().max(read * 2).max(PAYLOAD_STEP).min(length);
            out.resize(target, 0);
            self.read_exact(&mut out[read..])?;
            read = target;
        }
        Ok(())
    }

    /// Discards `count` bytes.
    ///
    /// # Errors
    /// As [`read_exact`](Self::read_exact).
    pub(crate) fn skip(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            if !self.fill(1)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let buffered = count.min(self.available().len() as u64);
            self.consume(buffered as usize);
            count -= buffered;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, Input) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (theirs, Input::new(Socket::new(ours.into(), None), None))
    }

    #[test]
    fn one_read_brings_many_messages() {
        let (mut client, mut input) = pair();
        client.write_all(b"aabbcc").unwrap();
        assert_eq!(input.take().unwrap(), Some(*b"aa"));
        assert_eq!(input.available(), b"bbcc");
        input.skip(2).unwrap();
        let mut rest = [0; 2];
        input.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"cc");
    }

    #[test]
    fn memory_for_a_payload_is_allocated_as_it_arrives() {
        let (mut client, mut input) = pair();
        let sent = vec![5; CAPACITY + 1];
        let writer = std::thread::spawn(move || client.write_all(&sent));
        let mut payload = vec![1; 10];
        assert!(
            input.read_payload(&mut payload, 64 << 20).is_err(),
            "the client closed the connection"
        );
        assert!(payload.capacity() <= 4 * CAPACITY, "{}", payload.capacity());
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn a_payload_replaces_the_content_of_the_buffer() {
        for length in [0, 3, CAPACITY, 3 * CAPACITY + 5] {
            for before in [0, 3, 1 << 20] {
                let (mut client, mut input) = pair();
                let sent: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
                let expected = sent.clone();
                let writer = std::thread::spawn(move || client.write_all(&sent));
                let mut payload = vec![0xff; before];
                input.read_payload(&mut payload, length).unwrap();
                assert_eq!(payload, expected, "{length} {before}");
                writer.join().unwrap().unwrap();
            }
        }
    }

    #[test]
    fn a_close_between_messages_differs_from_one_within() {
        let (client, mut input) = pair();
        drop(client);
        assert_eq!(input.take::<4>().unwrap(), None);
        let (mut client, mut input) = pair();
        client.write_all(b"abc").unwrap();
        drop(client);
        assert_eq!(input.take::<4>().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_client_is_parked_when_it_has_been_idle_and_that_is_permitted() {
        let (mut client, mut input) = pair();
        client.write_all(b"a").unwrap();
        assert_eq!(input.take().unwrap(), Some(*b"a"));
        let asked = std::cell::Cell::new(0);
        let third = || {
            asked.set(asked.get() + 1);
            asked.get() == 3
        };
        let after = Duration::from_millis(10);
        let waited = input.fill_or_idle(1, || (), Some((after, &third))).unwrap();
        assert_eq!((waited, asked.get()), (Waited::Idle, 3));
        let (mut client, mut input) = pair();
        client.write_all(b"ab").unwrap();
        assert_eq!(input.take().unwrap(), Some(*b"a"));
        let waited = input.fill_or_idle(1, || (), Some((Duration::ZERO, &|| true))).unwrap();
        assert_eq!(waited, Waited::Request, "part of a request has come");
        input.consume(1);
        drop(client);
        let waited = input.fill_or_idle(1, || (), Some((Duration::ZERO, &|| true))).unwrap();
        assert_eq!(waited, Waited::Closed);
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let (_client, mut input) = pair();
        input.deadline = Some(Instant::now() + Duration::from_millis(20));
        assert_eq!(input.take::<1>().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
