//! The load generator: keeps a number of requests in flight on one connection, from one thread, and
//! counts replies.
//!
//! In batches, it takes all replies that one receive gives and sends as many new requests in one
//! go, as a client with a queue does. One by one, each new request is a send of its own, as libnbd
//! and the Linux client do.
#![forbid(unsafe_code)]

use std::io::{IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nbd_protocol::constants::{Command, CommandFlags};
use nbd_protocol::transmission::Request;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::client::Client;
use crate::failure::Failure;
use crate::pattern::{Pattern, Random};
use crate::replies::{Check, Replies};
use crate::written::Written;

/// Bytes that one receive can take; more than a socket buffer holds.
const RECEIVE: usize = 256 * 1024;

/// How the export is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// Whether blocks are written rather than read.
    pub(crate) write: bool,
    /// Bytes of each request, which divides the export's size.
    pub(crate) block: u32,
    /// Requests in flight.
    pub(crate) depth: usize,
    /// Blocks at random rather than one after the other.
    pub(crate) random: bool,
    /// Requests are sent together rather than one by one.
    pub(crate) batched: bool,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Requests answered.
    pub(crate) operations: u64,
    /// Bytes read, written or described.
    pub(crate) bytes: u64,
    /// From the first request to the last reply.
    pub(crate) elapsed: Duration,
}

/// When a run ends.
#[derive(Clone, Copy, Debug)]
enum Until {
    Elapsed(Duration),
    Blocks(u64),
}

/// The requests of one run that are on their way, and what has come back.
#[derive(Debug)]
struct Flight {
    access: Access,
    until: Until,
    start: Instant,
    replies: Replies,
    /// Slots that wait for a new request.
    done: Vec<usize>,
    /// Requests still to be sent.
    left: u64,
    in_flight: usize,
    tally: Tally,
}

impl Flight {
    fn new(access: Access, until: Until, check: Check) -> Flight {
        Flight {
            access,
            until,
            start: Instant::now(),
            replies: Replies::new(access.depth, check),
            done: (0..access.depth).collect(),
            left: match until {
                Until::Elapsed(_) => u64::MAX,
                Until::Blocks(blocks) => blocks,
            },
            in_flight: 0,
            tally: Tally::default(),
        }
    }
}

/// Runs several connections at once from one thread, so that it is the server's fairness that shows
/// and not the kernel's towards the threads of a client.
pub(crate) fn run_together(
    loads: &mut [Load],
    time: Duration,
    check: Check,
) -> Result<Vec<Tally>, Failure> {
    let new = |load: &Load| Flight::new(load.access, Until::Elapsed(time), check);
    let mut flights: Vec<Flight> = loads.iter().map(new).collect();
    for (load, flight) in loads.iter_mut().zip(&mut flights) {
        load.refill(flight)?;
    }
    let mut first = 0;
    while flights.iter().any(|flight| flight.in_flight > 0) {
        let mut fds: Vec<PollFd> = loads
            .iter()
            .map(|load| PollFd::new(load.client.stream.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut fds, PollTimeout::NONE)?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        // Each comes first in its turn: the first to get new requests is the first to be ready
        // again.
        first = (first + 1) % ready.len().max(1);
        for index in (first..ready.len()).chain(0..first) {
            let (load, flight) = (&mut loads[index], &mut flights[index]);
            if ready[index] && flight.in_flight > 0 {
                load.receive(flight)?;
                load.refill(flight)?;
            }
        }
    }
    Ok(flights.into_iter().map(|flight| flight.tally).collect())
}

/// One connection under load.
#[derive(Debug)]
pub(crate) struct Load {
    client: Client,
    access: Access,
    random: Random,
    next: u64,
    receive: Vec<u8>,
    written: Written,
}

impl Load {
    /// For a connected client; `seed` makes the offsets of several clients differ.
    pub(crate) fn new(client: Client, access: Access, seed: u64) -> Result<Load, Failure> {
        let block = u64::from(access.block);
        if client.size < block || !client.size.is_multiple_of(block) {
            return Err(Failure::Wrong(format!("export size: {} bytes", client.size)));
        }
        let written =
            Written::new(access.block, if access.write { client.size / block } else { 0 });
        let receive = vec![0; RECEIVE];
        Ok(Load { client, access, random: Random::new(seed), next: 0, receive, written })
    }

    /// Runs for a time, then waits for what is in flight. Data read is checked by `check`.
    pub(crate) fn run(&mut self, time: Duration, check: Check) -> Result<Tally, Failure> {
        self.drive(self.access, Until::Elapsed(time), check)
    }

    /// Reads `bytes` of the export in the way of the timed runs and compares every byte with the
    /// pattern.
    pub(crate) fn verify(&mut self, pattern: Pattern, bytes: u64) -> Result<(), Failure> {
        let blocks = bytes.min(self.client.size) / u64::from(self.access.block);
        self.drive(self.access, Until::Blocks(blocks), Check::All(pattern)).map(drop)
    }

    /// Reads back everything that the runs of this load have written, and compares every byte.
    pub(crate) fn verify_written(&mut self) -> Result<(), Failure> {
        let access = Access { write: false, random: false, batched: true, depth: 4, ..self.access };
        self.next = 0;
        self.drive(access, Until::Blocks(self.written.blocks()), Check::Keep).map(drop)
    }

    /// Writes the hashed pattern to all of the export.
    pub(crate) fn fill(&mut self) -> Result<(), Failure> {
        let mut replies = Replies::new(1, Check::Keep);
        let mut data = vec![0; 1 << 20];
        for offset in (0..self.client.size).step_by(data.len()) {
            let left = usize::try_from(self.client.size - offset).unwrap_or(usize::MAX);
            let data = &mut data[..left.min(1 << 20)];
            Pattern::Hashed.fill(offset, data);
            let request = Request {
                flags: CommandFlags::empty(),
                command: Command::WRITE,
                cookie: 0,
                offset,
                length: data.len() as u64,
            };
            replies.slots[0].begin(offset, 0);
            self.client.stream.write_all(&request.encode())?;
            self.client.stream.write_all(data)?;
            self.client.wait(&mut replies, &mut self.receive)?;
        }
        Ok(())
    }

    fn drive(&mut self, access: Access, until: Until, check: Check) -> Result<Tally, Failure> {
        let mut flight = Flight::new(access, until, check);
        loop {
            self.refill(&mut flight)?;
            if flight.in_flight == 0 {
                return Ok(flight.tally);
            }
            self.receive(&mut flight)?;
        }
    }

    /// Sends new requests in place of those that were answered, unless the run is over.
    fn refill(&mut self, flight: &mut Flight) -> Result<(), Failure> {
        let go_on = match flight.until {
            Until::Elapsed(time) => flight.start.elapsed() < time,
            Until::Blocks(_) => flight.left > 0,
        };
        if go_on {
            let count = flight.done.len().min(usize::try_from(flight.left).unwrap_or(usize::MAX));
            flight.left -= count as u64;
            flight.in_flight += count;
            self.send(flight.access, &mut flight.replies, &flight.done[..count])?;
        }
        flight.done.clear();
        Ok(())
    }

    /// Takes what one receive gives.
    fn receive(&mut self, flight: &mut Flight) -> Result<(), Failure> {
        let length = self.client.stream.read(&mut self.receive)?;
        if length == 0 {
            return Err(Failure::Wrong("the server closed the connection".to_owned()));
        }
        flight.replies.feed(&self.receive[..length], &mut flight.done)?;
        flight.in_flight -= flight.done.len();
        if flight.replies.check == Check::Keep {
            self.written.check(&flight.done, &flight.replies)?;
        }
        let tally = &mut flight.tally;
        tally.operations += flight.done.len() as u64;
        tally.bytes = tally.operations * u64::from(flight.access.block);
        tally.elapsed = flight.start.elapsed();
        Ok(())
    }

    /// Sends a new request in each of these slots.
    fn send(
        &mut self,
        access: Access,
        replies: &mut Replies,
        slots: &[usize],
    ) -> Result<(), Failure> {
        let group = if access.batched { slots.len().max(1) } else { 1 };
        let mut headers = Vec::with_capacity(group * Request::LENGTH);
        for slots in slots.chunks(group) {
            headers.clear();
            let mut blocks = Vec::new();
            for slot in slots {
                let offset = self.choose(access, replies);
                let expected = if access.write { 0 } else { u64::from(access.block) };
                replies.slots[*slot].begin(offset, expected);
                let command = if access.write { Command::WRITE } else { Command::READ };
                let request = Request {
                    flags: CommandFlags::empty(),
                    command,
                    cookie: *slot as u64,
                    offset,
                    length: u64::from(access.block),
                };
                headers.extend_from_slice(&request.encode());
                if access.write {
                    blocks.push(self.written.stamp(offset));
                }
            }
            if blocks.is_empty() {
                self.client.stream.write_all(&headers)?;
                continue;
            }
            let mut slices = Vec::with_capacity(4 * blocks.len());
            for (header, block) in headers.chunks(Request::LENGTH).zip(&blocks) {
                slices.push(IoSlice::new(header));
                slices.extend(self.written.slices(block));
            }
            write_all_vectored(&mut self.client.stream, &mut slices)?;
        }
        Ok(())
    }

    /// The next offset. No two writes of one block are in flight together, since either could win.
    fn choose(&mut self, access: Access, replies: &Replies) -> u64 {
        let block = u64::from(access.block);
        let blocks = self.client.size / block;
        loop {
            let number = if access.random {
                self.random.below(blocks)
            } else {
                self.next += 1;
                (self.next - 1) % blocks
            };
            let offset = number * block;
            let taken = |slot: &crate::replies::Slot| slot.busy && slot.offset == offset;
            if !access.write || !replies.slots.iter().any(taken) {
                return offset;
            }
        }
    }
}

fn write_all_vectored(
    stream: &mut impl Write,
    mut slices: &mut [IoSlice<'_>],
) -> Result<(), Failure> {
    while !slices.is_empty() {
        let length = stream.write_vectored(slices)?;
        if length == 0 {
            return Err(Failure::Unavailable("send: nothing was taken".to_owned()));
        }
        IoSlice::advance_slices(&mut slices, length);
    }
    Ok(())
}
