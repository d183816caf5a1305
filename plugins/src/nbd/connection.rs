//! What a client of this server has open of the upstream server: its requests, passed on.

#![forbid(unsafe_code)]

use std::sync::Arc;

use nbd_protocol::constants::{Command, CommandFlags, MAX_REQUEST, TransmissionFlags};
use nbdkit_api::pipeline::{Awaited, Pipeline, Ticket};
use nbdkit_api::{
    BlockSize, Blocking, Cache, Client, Connection, ExtentKind, Extents, Flags, Fua, Result,
};

use super::haggle::Form;
use super::link::{Asked, Link};
use super::table::Kind;

/// The largest payload for a server that names no block sizes. NBD protocol, "Block size
/// constraints".
const USUAL_MAXIMUM: u32 = 32 * 1024 * 1024;
/// The longest range in a request of 32 bits: a multiple of every minimum block size.
const MAX_RANGE: u64 = 0xffff_0000;

/// A client's use of a link.
pub(super) struct Handle {
    pub(super) link: Arc<Link>,
    pub(super) client: Option<Arc<Client>>,
    pub(super) blocking: Blocking,
}

impl Handle {
    fn has(&self, flag: TransmissionFlags) -> Result<bool> {
        Ok(self.link.facts.flags.contains(flag))
    }

    /// Bytes of data that one request may have.
    fn most_data(&self) -> usize {
        let maximum = self.link.facts.block_sizes.map_or(USUAL_MAXIMUM, |sizes| sizes.maximum);
        // A server that names less than any block is at fault, and will say so.
        maximum.clamp(512, MAX_REQUEST) as usize
    }

    /// Bytes that one request without data may be about.
    fn most_range(&self) -> u64 {
        if self.link.facts.form == Form::Extended { i64::MAX as u64 } else { MAX_RANGE }
    }

    fn write(&self, length: u64, offset: u64, flags: Flags) -> Asked {
        let mut flags = fua(flags);
        if self.link.facts.form == Form::Extended {
            flags |= CommandFlags::PAYLOAD_LEN;
        }
        Asked { command: Command::WRITE, flags, offset, length, kind: Kind::Plain }
    }

    /// Whether a request of so many bytes goes as one.
    fn is_queueable(&self, count: usize) -> bool {
        count <= self.most_data()
    }

    fn call(&self, asked: &Asked, payload: &[u8], buf: &mut [u8]) -> Result<Vec<(u64, u32)>> {
        self.link.call(self.client.as_deref(), asked, payload, buf)
    }

    /// A request without data about a range of any length.
    fn range(&self, command: Command, flags: CommandFlags, count: u64, offset: u64) -> Result<()> {
        let mut done = 0;
        while done < count {
            let length = (count - done).min(self.most_range());
            let offset = offset + done;
            let asked = Asked { command, flags, offset, length, kind: Kind::Plain };
            self.call(&asked, &[], &mut [])?;
            done += length;
        }
        Ok(())
    }
}

fn read(length: u32, offset: u64) -> Asked {
    Asked {
        command: Command::READ,
        flags: CommandFlags::empty(),
        offset,
        length: length.into(),
        kind: Kind::Read { offset, length },
    }
}

fn fua(flags: Flags) -> CommandFlags {
    if flags.contains(Flags::FUA) { CommandFlags::FUA } else { CommandFlags::empty() }
}

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        Ok(self.link.facts.size)
    }

    fn export_description(&self) -> Option<String> {
        self.link.facts.description.clone()
    }

    fn block_size(&self) -> Result<BlockSize> {
        Ok(self.link.facts.block_sizes.map_or_else(BlockSize::default, |sizes| BlockSize {
            minimum: sizes.minimum,
            preferred: sizes.preferred,
            maximum: sizes.maximum,
        }))
    }

    fn can_write(&self) -> Result<bool> {
        Ok(!self.has(TransmissionFlags::READ_ONLY)?)
    }

    fn can_flush(&self) -> Result<bool> {
        self.has(TransmissionFlags::SEND_FLUSH)
    }

    fn is_rotational(&self) -> Result<bool> {
        self.has(TransmissionFlags::ROTATIONAL)
    }

    fn can_trim(&self) -> Result<bool> {
        self.has(TransmissionFlags::SEND_TRIM)
    }

    fn can_zero(&self) -> Result<bool> {
        self.has(TransmissionFlags::SEND_WRITE_ZEROES)
    }

    fn can_fast_zero(&self) -> Result<bool> {
        self.has(TransmissionFlags::SEND_FAST_ZERO)
    }

    fn can_extents(&self) -> Result<bool> {
        Ok(self.link.facts.context.is_some())
    }

    fn can_fua(&self) -> Result<Fua> {
        Ok(if self.has(TransmissionFlags::SEND_FUA)? { Fua::Native } else { Fua::None })
    }

    fn can_multi_conn(&self) -> Result<bool> {
        self.has(TransmissionFlags::CAN_MULTI_CONN)
    }

    fn can_cache(&self) -> Result<Cache> {
        Ok(if self.has(TransmissionFlags::SEND_CACHE)? { Cache::Native } else { Cache::None })
    }

    fn pread(&self, buf: &mut [u8], mut offset: u64) -> Result<()> {
        for part in buf.chunks_mut(self.most_data()) {
            // At most MAX_REQUEST.
            let length = part.len() as u32;
            self.call(&read(length, offset), &[], part)?;
            offset += u64::from(length);
        }
        Ok(())
    }

    fn pwrite(&self, buf: &[u8], mut offset: u64, flags: Flags) -> Result<()> {
        for part in buf.chunks(self.most_data()) {
            let length = part.len() as u64;
            self.call(&self.write(length, offset, flags), part, &mut [])?;
            offset += length;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let asked = Asked {
            command: Command::FLUSH,
            flags: CommandFlags::empty(),
            offset: 0,
            length: 0,
            kind: Kind::Plain,
        };
        self.call(&asked, &[], &mut []).map(drop)
    }

    fn trim(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.range(Command::TRIM, fua(flags), count, offset)
    }

    fn zero(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let mut command_flags = fua(flags);
        command_flags.set(CommandFlags::NO_HOLE, !flags.contains(Flags::MAY_TRIM));
        command_flags.set(CommandFlags::FAST_ZERO, flags.contains(Flags::FAST_ZERO));
        self.range(Command::WRITE_ZEROES, command_flags, count, offset)
    }

    fn extents(&self, count: u64, offset: u64, flags: Flags, extents: &mut Extents) -> Result<()> {
        let context = self.link.facts.context.unwrap_or_default();
        let mut command_flags = CommandFlags::empty();
        command_flags.set(CommandFlags::REQ_ONE, flags.contains(Flags::REQ_ONE));
        let asked = Asked {
            command: Command::BLOCK_STATUS,
            flags: command_flags,
            offset,
            length: count.min(self.most_range()),
            kind: Kind::Status { context },
        };
        let mut at = offset;
        for (length, flags) in self.call(&asked, &[], &mut [])? {
            // The last one may go beyond what was asked for, a hostile one beyond every disk.
            let length = length.min(self.link.facts.size.saturating_sub(at));
            extents.add(at, length, ExtentKind::from_bits_truncate(flags))?;
            at += length;
        }
        Ok(())
    }

    fn cache(&self, count: u64, offset: u64) -> Result<()> {
        self.range(Command::CACHE, CommandFlags::empty(), count, offset)
    }

    fn blocking(&self) -> Blocking {
        self.blocking
    }

    fn pipeline(&self) -> Option<&dyn Pipeline> {
        self.link.is_pipelined().then_some(self)
    }
}

impl Pipeline for Handle {
    fn queue_read(&self, count: u32, offset: u64) -> Option<Ticket> {
        let queueable = self.is_queueable(count as usize);
        queueable.then(|| self.link.queue(&read(count, offset), &[])).flatten()
    }

    fn queue_write(&self, data: &[u8], offset: u64) -> Option<Ticket> {
        let asked = self.write(data.len() as u64, offset, Flags::empty());
        self.is_queueable(data.len()).then(|| self.link.queue(&asked, data)).flatten()
    }

    fn send(&self) {
        self.link.send_queued();
    }

    fn collect(&self, done: &mut dyn FnMut(Ticket, Result<&[u8]>)) {
        self.link.collect(done);
    }

    fn awaited(&self) -> Awaited<'_> {
        self.link.awaited()
    }

    fn shrink(&self) {
        self.link.shrink();
    }
}
