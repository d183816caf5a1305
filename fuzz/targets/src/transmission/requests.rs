//! Requests as bytes: made of operations, and found in bytes as a server finds them.

use nbd_protocol::constants::{Command, CommandFlags, MAX_REQUEST};
use nbd_protocol::transmission::{BlockStatusPayload, Request};

use crate::input::Input;

/// Most requests of a list.
const MAX_OPERATIONS: usize = 48;
/// Longest data of a write in a list, bytes.
const MAX_DATA: u64 = 1 << 16;

/// How the requests end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Between two requests, or with NBD_CMD_DISC.
    Clean,
    /// Within one.
    Cut,
    /// With one after which the server hangs up.
    Violation,
}

/// Makes requests of a list of operations: most are good ones, for a disk of `size` bytes.
pub(super) fn operations(mut input: Input<'_>, extended: bool, size: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 1..=MAX_OPERATIONS as u64 {
        if input.is_empty() {
            break;
        }
        let (kind, bits) = (input.u8(), input.u8());
        let command = match kind & 15 {
            0..=2 => Command::READ,
            3..=5 => Command::WRITE,
            6 | 7 => Command::WRITE_ZEROES,
            8 => Command::TRIM,
            9 => Command::FLUSH,
            10 => Command::CACHE,
            11..=13 => Command::BLOCK_STATUS,
            14 => Command::DISC,
            _ => Command(input.u16()),
        };
        let wild = kind & 0x80 != 0;
        let (offset, mut length) = if wild {
            (input.u64(), input.u64() >> (input.u8() & 63))
        } else if command == Command::FLUSH {
            (0, 0)
        } else {
            (u64::from(input.u32()) % size, u64::from(input.u16()) << (kind >> 4 & 3))
        };
        if !wild {
            length = length.min(size - offset);
        }
        let mut flags = CommandFlags::from_bits_retain(u16::from(bits & 63));
        let mut payload = Vec::new();
        if command == Command::WRITE {
            length = length.min(MAX_DATA);
            let seed = input.u8();
            payload = (0..length).map(|at| seed.wrapping_add((at / 3) as u8)).collect();
            flags.set(CommandFlags::PAYLOAD_LEN, extended && bits & 64 == 0);
        } else if command == Command::BLOCK_STATUS && extended && bits & 64 != 0 {
            let ids: Vec<u32> = (0..input.u8() & 3).map(|_| input.u8().into()).collect();
            BlockStatusPayload::encode(&mut payload, length, &ids);
            length = payload.len() as u64;
            flags |= CommandFlags::PAYLOAD_LEN;
        }
        let cookie = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let request = Request { flags, command, cookie, offset, length };
        if extended {
            bytes.extend(request.encode_extended());
        } else {
            bytes.extend(request.encode());
        }
        bytes.extend(payload);
    }
    bytes
}

/// Finds the requests that a server must answer.
pub(super) fn parse(bytes: &[u8], extended: bool) -> (Vec<(Request, &[u8])>, Ending) {
    let mut input = Input(bytes);
    let mut requests = Vec::new();
    loop {
        if input.is_empty() {
            return (requests, Ending::Clean);
        }
        let header = input.bytes(if extended { Request::EXTENDED_LENGTH } else { Request::LENGTH });
        let request = match (extended, header.try_into(), header.try_into()) {
            (false, Ok(header), _) => Request::decode(header),
            (true, _, Ok(header)) => Request::decode_extended(header),
            _ => return (requests, Ending::Cut),
        };
        let Ok(request) = request else { return (requests, Ending::Violation) };
        if request.command == Command::DISC {
            return (requests, Ending::Clean);
        }
        let flagged = extended && request.flags.contains(CommandFlags::PAYLOAD_LEN);
        let length = if request.command == Command::WRITE || flagged { request.length } else { 0 };
        if length > 2 * u64::from(MAX_REQUEST) {
            return (requests, Ending::Violation);
        }
        let payload = input.bytes(length as usize);
        if payload.len() as u64 != length {
            // Of a bad request the payload is skipped, and nobody is there for the replies.
            return (requests, Ending::Violation);
        }
        requests.push((request, payload));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_become_requests_that_are_found_again() {
        // A write of 64 bytes of 9s at 0x1000, a read, a flush, a goodbye.
        let list = [
            &[3, 0, 0, 16, 0, 0, 64, 0, 9][..],
            &[0, 0, 0, 16, 0, 0, 64, 0],
            &[9, 0],
            &[14, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        for extended in [false, true] {
            let bytes = operations(Input(&list), extended, 10_000);
            let (requests, ending) = parse(&bytes, extended);
            let found: Vec<_> = requests.iter().map(|(it, _)| (it.command, it.length)).collect();
            let expected = [(Command::WRITE, 64), (Command::READ, 64), (Command::FLUSH, 0)];
            assert_eq!((found.as_slice(), ending), (&expected[..], Ending::Clean));
            assert_eq!(requests[0].1.len(), 64);
        }
    }
}
