//! The decrypted disk: any bytes of it, by way of whole sectors.

use std::sync::Arc;

use nbdkit_api::{Flags, Next, Result};

use super::cipher::{Cipher, SECTOR};
use super::header::Area;

/// Bytes that are encrypted before they are written together.
const MAX_WRITE: usize = 2 << 20;
/// Bytes of the largest sector.
const LARGEST: usize = 4096;

/// The decrypted disk.
pub(super) struct Disk {
    cipher: Arc<Cipher>,
    area: Area,
    /// Bytes: whole sectors.
    pub(super) size: u64,
    pub(super) may_trim: bool,
}

impl Disk {
    /// That of an area of what is below, which has `below` bytes.
    pub(super) fn new(cipher: Arc<Cipher>, area: Area, may_trim: bool, below: u64) -> Disk {
        let all = below.saturating_sub(area.payload);
        let size = area.size.unwrap_or(all).min(all);
        // A last part of a sector cannot be decrypted.
        Disk { cipher, area, size: size - size % area.sector as u64, may_trim }
    }

    /// Bytes of a sector.
    pub(super) fn sector(&self) -> u64 {
        self.area.sector as u64
    }

    /// Where a byte is below.
    pub(super) fn below(&self, offset: u64) -> u64 {
        self.area.payload + offset
    }

    /// The number that the cipher gets for the sector that begins at a byte.
    fn number(&self, offset: u64) -> u64 {
        (offset / SECTOR).wrapping_add(self.area.tweak)
    }

    /// Divides a range.
    pub(super) fn parts(&self, count: usize, offset: u64) -> Parts {
        Parts::of(count, offset, self.area.sector)
    }

    /// Reads and decrypts whole sectors.
    fn read_sectors(&self, next: &Next, sectors: &mut [u8], offset: u64) -> Result<()> {
        next.pread(sectors, self.below(offset))?;
        self.cipher.decrypt(self.number(offset), sectors);
        Ok(())
    }

    /// Reads a part of one sector by way of a buffer.
    fn read_part(&self, next: &Next, part: &mut [u8], offset: u64) -> Result<()> {
        let (start, within) = self.sector_of(offset);
        let mut buf = [0; LARGEST];
        let sector = &mut buf[..self.area.sector];
        self.read_sectors(next, sector, start)?;
        part.copy_from_slice(&sector[within..][..part.len()]);
        Ok(())
    }

    /// Reads any bytes.
    pub(super) fn read(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let Parts { head, body, .. } = self.parts(buf.len(), offset);
        let (first, rest) = buf.split_at_mut(head);
        let (middle, last) = rest.split_at_mut(body);
        if !first.is_empty() {
            self.read_part(next, first, offset)?;
        }
        let offset = offset + head as u64;
        if !middle.is_empty() {
            self.read_sectors(next, middle, offset)?;
        }
        if !last.is_empty() {
            self.read_part(next, last, offset + body as u64)?;
        }
        Ok(())
    }

    /// Reads any bytes if what is below need not be waited for. By one request: what was done once
    /// is not done again.
    pub(super) fn try_read(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let (start, within) = self.sector_of(offset);
        let sectors = (within + buf.len()).next_multiple_of(self.area.sector);
        if sectors == buf.len() {
            return Some(next.try_pread(buf, self.below(offset))?.map(|()| {
                self.cipher.decrypt(self.number(offset), buf);
            }));
        }
        let mut whole = vec![0; sectors];
        Some(next.try_pread(&mut whole, self.below(start))?.map(|()| {
            self.cipher.decrypt(self.number(start), &mut whole);
            buf.copy_from_slice(&whole[within..][..buf.len()]);
        }))
    }

    /// Where the sector of a byte begins, and where the byte is in it.
    fn sector_of(&self, offset: u64) -> (u64, usize) {
        let within = offset % self.sector();
        (offset - within, within as usize)
    }

    /// Encrypts and writes whole sectors.
    pub(super) fn write(
        &self,
        next: &Next,
        sectors: &[u8],
        offset: u64,
        flags: Flags,
    ) -> Result<()> {
        let mut encrypted = Vec::new();
        let mut at = offset;
        for part in sectors.chunks(MAX_WRITE) {
            encrypted.clear();
            encrypted.extend(part);
            self.cipher.encrypt(self.number(at), &mut encrypted);
            next.pwrite(&encrypted, self.below(at), flags)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes a part of one sector, which must be locked, and puts back what else is in it.
    pub(super) fn write_part(
        &self,
        next: &Next,
        part: &[u8],
        offset: u64,
        flags: Flags,
    ) -> Result<()> {
        let (start, within) = self.sector_of(offset);
        let mut buf = [0; LARGEST];
        let sector = &mut buf[..self.area.sector];
        self.read_sectors(next, sector, start)?;
        sector[within..][..part.len()].copy_from_slice(part);
        self.write(next, sector, start, flags)
    }
}

/// The parts of a range, bytes: that of a sector at the beginning, whole sectors, that of a sector
/// at the end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) head: usize,
    pub(super) body: usize,
    pub(super) tail: usize,
}

impl Parts {
    fn of(count: usize, offset: u64, sector: usize) -> Parts {
        let within = (offset % sector as u64) as usize;
        let head = if within == 0 { 0 } else { count.min(sector - within) };
        let tail = (count - head) % sector;
        Parts { head, body: count - head - tail, tail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_whole_sectors_and_parts_at_its_ends() {
        for (count, offset, parts) in [
            (1, 0, (0, 0, 1)),
            (512, 0, (0, 512, 0)),
            (512, 1, (511, 0, 1)),
            (3, 509, (3, 0, 0)),
            (2000, 1000, (24, 1536, 440)),
        ] {
            let Parts { head, body, tail } = Parts::of(count, offset, 512);
            assert_eq!((head, body, tail), parts, "{count} {offset}");
        }
        assert_eq!(Parts::of(5000, 4000, 4096), Parts { head: 96, body: 4096, tail: 808 });
    }
}
