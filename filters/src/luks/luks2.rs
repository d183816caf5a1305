//! The two copies of the header of a LUKS2 disk ("LUKS2 On-Disk Format Specification", 1.1.2,
//! section 2): each a binary header of 4096 bytes and behind it an area with text, under a
//! checksum. The newer one of those that are whole counts.

use nbdkit_api::{Error, Result, debug};
use sha2::Digest;

use super::header::{Header, MAGIC};
use super::metadata::{self, bad};

/// Bytes of a binary header.
pub(super) const BINARY: usize = 4096;
/// Of the second copy.
pub(super) const SECOND_MAGIC: [u8; 6] = *b"SKUL\xba\xbe";
/// Bytes that a copy may have (2.2): the second one begins where the first one ends.
const SIZES: [u64; 9] =
    [16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];
/// Where the fields of a binary header are (2.1).
pub(super) mod field {
    use std::ops::Range;

    pub(in crate::luks) const VERSION: Range<usize> = 6..8;
    pub(in crate::luks) const SIZE: Range<usize> = 8..16;
    pub(in crate::luks) const SEQUENCE: Range<usize> = 16..24;
    pub(in crate::luks) const ALGORITHM: Range<usize> = 72..104;
    pub(in crate::luks) const OFFSET: Range<usize> = 256..264;
    pub(in crate::luks) const CHECKSUM: Range<usize> = 448..512;
}

/// Finds and decodes the header of a disk of `disk` bytes. `has_magic`: the disk begins with that
/// of LUKS2.
///
/// # Errors
/// EINVAL: there is none, both copies are damaged, or it needs what there is not.
pub(super) fn read(
    read: impl Fn(&mut [u8], u64) -> Result<()>,
    disk: u64,
    has_magic: bool,
) -> Result<Header> {
    let first = Copy::read(&read, disk, 0, &MAGIC).and_then(|copy| copy.complete(&read));
    let (copy, size) = match first {
        Ok(first) => {
            let second = Copy::read(&read, disk, first.size(), &SECOND_MAGIC)
                .and_then(|second| match second.sequence > first.sequence {
                    true => second.complete(&read).map(Some),
                    false => Ok(None),
                })
                .unwrap_or_else(|why| {
                    debug!("luks: the second copy of the header is not used: {why}");
                    None
                });
            let size = first.size();
            (second.filter(|second| second.size() == size).unwrap_or(first), size)
        }
        Err(why) => {
            let second = SIZES.iter().find_map(|at| {
                let copy = Copy::read(&read, disk, *at, &SECOND_MAGIC).ok()?;
                copy.complete(&read).ok().filter(|copy| copy.size() == *at)
            });
            let second = second.ok_or_else(|| match has_magic {
                true => bad(format_args!("both copies are damaged: {}", why.message())),
                false => Error::msg("this disk does not contain a LUKS header"),
            })?;
            debug!("luks: the first copy of the header is not used: {why}");
            let size = second.size();
            (second, size)
        }
    };
    metadata::decode(copy.text(), size, disk)
}

/// One copy: the binary header, and then all of it.
struct Copy {
    bytes: Vec<u8>,
    offset: u64,
    sequence: u64,
    checksum: Checksum,
    size: usize,
}

impl Copy {
    /// Reads the binary header of the copy that is expected at `offset`.
    fn read(
        read: &impl Fn(&mut [u8], u64) -> Result<()>,
        disk: u64,
        offset: u64,
        magic: &[u8; 6],
    ) -> Result<Copy> {
        let mut bytes = vec![0; BINARY];
        if offset + BINARY as u64 > disk {
            return Err(Error::msg("the disk ends before it"));
        }
        read(&mut bytes, offset)?;
        let number = |field: std::ops::Range<usize>| {
            bytes[field].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        if bytes[..6] != *magic || number(field::VERSION) != 2 {
            return Err(Error::msg("it has another magic or version"));
        }
        let size = number(field::SIZE);
        if !SIZES.contains(&size) || offset + size > disk {
            return Err(Error::msg("its size is wrong"));
        }
        if number(field::OFFSET) != offset {
            return Err(Error::msg("it is not where it says that it is"));
        }
        let name = &bytes[field::ALGORITHM];
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        let checksum = Checksum::by_name(&name[..end]).ok_or_else(|| {
            let name = name[..end].escape_ascii();
            Error::msg(format!("the checksum \"{name}\" is not supported"))
        })?;
        let (sequence, size) = (number(field::SEQUENCE), size as usize);
        Ok(Copy { bytes, offset, sequence, checksum, size })
    }

    /// Reads the rest of it, and checks all of it.
    fn complete(mut self, read: &impl Fn(&mut [u8], u64) -> Result<()>) -> Result<Copy> {
        self.bytes.resize(self.size, 0);
        read(&mut self.bytes[BINARY..], self.offset + BINARY as u64)?;
        let mut stored = [0; 64];
        stored.copy_from_slice(&self.bytes[field::CHECKSUM]);
        self.bytes[field::CHECKSUM].fill(0);
        let sum = self.checksum.of(&self.bytes);
        if stored[..sum.len()] != sum {
            return Err(Error::msg("its checksum differs"));
        }
        Ok(self)
    }

    fn size(&self) -> u64 {
        self.size as u64
    }

    /// The text, which ends with the first NUL.
    fn text(&self) -> &[u8] {
        let text = &self.bytes[BINARY..];
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        &text[..end]
    }
}

/// Over all of a copy, while the field of the checksum is zero.
enum Checksum {
    Sha1,
    Sha256,
    Sha512,
}

impl Checksum {
    fn by_name(name: &[u8]) -> Option<Checksum> {
        match name {
            b"sha1" => Some(Checksum::Sha1),
            b"sha256" => Some(Checksum::Sha256),
            b"sha512" => Some(Checksum::Sha512),
            _ => None,
        }
    }

    fn of(&self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Checksum::Sha1 => sha1::Sha1::digest(bytes).to_vec(),
            Checksum::Sha256 => sha2::Sha256::digest(bytes).to_vec(),
            Checksum::Sha512 => sha2::Sha512::digest(bytes).to_vec(),
        }
    }
}
