//! Asks for the block status of a whole export, as `nbdinfo --map` does, and compares it with what
//! the file is made of.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nbd_protocol::constants::Command;
use nbd_protocol::transmission::BlockStatus;

use crate::client::Client;
use crate::failure::Failure;
use crate::load::Tally;
use crate::pattern::PIECE;
use crate::replies::{Check, Replies};

/// What one request asks about: as much as 32 bits hold, in whole pieces of the file.
const STEP: u64 = 0xffff_0000;

/// Maps the export, in which a piece of data begins each `step` bytes, again and again until the
/// time is over. An operation of the tally is one extent.
pub(crate) fn map_for(client: &mut Client, step: u64, time: Duration) -> Result<Tally, Failure> {
    let start = Instant::now();
    let mut all = Tally::default();
    while all.operations == 0 || start.elapsed() < time {
        let once = map(client, step)?;
        all.operations += once.operations;
        all.bytes += once.bytes;
    }
    all.elapsed = start.elapsed();
    Ok(all)
}

/// Maps the export once.
pub(crate) fn map(client: &mut Client, step: u64) -> Result<Tally, Failure> {
    if client.context.is_none() {
        return Err(Failure::Unavailable("the server has no base:allocation".to_owned()));
    }
    let start = Instant::now();
    let mut extents: Vec<(u64, bool)> = Vec::new();
    let mut replies = Replies::new(1, Check::Keep);
    let mut buf = vec![0; 256 * 1024];
    let mut offset = 0;
    while offset < client.size {
        replies.slots[0].begin(offset, 0);
        client.send(Command::BLOCK_STATUS, offset, STEP.min(client.size - offset))?;
        client.wait(&mut replies, &mut buf)?;
        let before = offset;
        for descriptor in BlockStatus::decode(&replies.slots[0].buffer)?.descriptors {
            let (length, hole) = (u64::from(descriptor.length), descriptor.flags != 0);
            offset += length;
            match extents.last_mut() {
                // A server may cut an extent where its reply ends.
                Some(last) if last.1 == hole => last.0 += length,
                _ => extents.push((length, hole)),
            }
        }
        if offset == before {
            return Err(Failure::Wrong(format!("block status: nothing about {offset}")));
        }
    }
    let elapsed = start.elapsed();
    check(&extents, client.size, step)?;
    Ok(Tally { operations: extents.len() as u64, bytes: client.size, elapsed })
}

fn check(extents: &[(u64, bool)], size: u64, step: u64) -> Result<(), Failure> {
    let right = extents.chunks(2).all(|pair| pair == [(PIECE, false), (step - PIECE, true)]);
    if right && extents.len() as u64 == 2 * (size / step) {
        return Ok(());
    }
    Err(Failure::Wrong(format!("block status: {} extents, not those of the file", extents.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_with_a_piece_in_the_wrong_place_is_wrong() {
        const STEP: u64 = 128 << 10;
        let hole = STEP - PIECE;
        let right = [(PIECE, false), (hole, true)];
        assert!(check(&right, STEP, STEP).is_ok());
        assert!(check(&right, 2 * STEP, STEP).is_err());
        assert!(check(&[(hole, true), (PIECE, false)], STEP, STEP).is_err());
    }
}
