//! The header of a LUKS1 disk ("LUKS1 On-Disk Format Specification", 1.2.3, section 2). It may be
//! hostile: what is absurd is refused before anything is computed or read.

use nbdkit_api::{Error, Result};

use super::cipher::{Iv, Mode, SECTOR};
use super::hash::Hash;

/// Bytes of the header.
pub(super) const SIZE: usize = 592;

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const SLOTS: usize = 8;
const ENABLED: u32 = 0x00ac_71f3;
/// Every program that makes LUKS1 disks uses 4000.
const MAX_STRIPES: u32 = 10_000;
/// A hundred times what is usual, and about a minute of one processor.
const MAX_ITERATIONS: u32 = 100_000_000;

/// What is encrypted how, and where the keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) master: Master,
    /// Those that are in use.
    pub(super) slots: Vec<Slot>,
}

/// The disk and its key. Two headers that agree on this have one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Master {
    pub(super) mode: Mode,
    pub(super) hash: Hash,
    /// Bytes of the key.
    pub(super) key_size: usize,
    /// Where the encrypted disk begins, bytes.
    pub(super) payload: u64,
    /// Of the key: by this it is recognised.
    pub(super) digest: [u8; 20],
    pub(super) salt: [u8; 32],
    pub(super) iterations: u32,
}

/// The key, encrypted with a passphrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) iterations: u32,
    pub(super) salt: [u8; 32],
    /// Where the split key is, bytes.
    pub(super) material: u64,
    pub(super) stripes: u32,
}

/// Big-endian fields, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The header has room for all fields: its size is checked once.
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        let (bytes, rest) = self.0.split_at_checked(N).unwrap_or_default();
        if bytes.len() == N {
            field.copy_from_slice(bytes);
        }
        self.0 = rest;
        field
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes())
    }

    /// A name that ends with the first NUL.
    fn text(&mut self) -> String {
        let field: [u8; 32] = self.bytes();
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
        field[..end].escape_ascii().to_string()
    }
}

fn bad(why: impl std::fmt::Display) -> Error {
    Error::msg(format!("bad LUKSv1 header: {why}"))
}

impl Header {
    /// Decodes the header of a disk of `size` bytes.
    ///
    /// # Errors
    /// EINVAL: it is none, it cannot be right, or it needs what there is not.
    pub(super) fn decode(bytes: &[u8; SIZE], size: u64) -> Result<Header> {
        let mut fields = Fields(bytes);
        if fields.bytes() != MAGIC {
            return Err(Error::msg("this disk does not contain a LUKS header"));
        }
        let version = u16::from_be_bytes(fields.bytes());
        if version != 1 {
            return Err(Error::msg(format!(
                "this disk contains a LUKS version {version} header, but this filter only supports \
                 LUKSv1"
            )));
        }
        let (cipher, mode, hash) = (fields.text(), fields.text(), fields.text());
        let (payload, key_size) = (fields.u32(), fields.u32());
        let (digest, salt, iterations) = (fields.bytes(), fields.bytes(), fields.u32());
        let _uuid: [u8; 40] = fields.bytes();
        let mut slots = Vec::new();
        for number in 0..SLOTS {
            let state = fields.u32();
            let (iterations, salt) = (fields.u32(), fields.bytes());
            let (material, stripes) = (u64::from(fields.u32()) * SECTOR, fields.u32());
            if state == ENABLED {
                check_iterations(iterations)?;
                if !(1..=MAX_STRIPES).contains(&stripes) {
                    return Err(bad(format_args!("key slot {number} has {stripes} stripes")));
                }
                let length = u64::from(stripes) * u64::from(key_size);
                if material < SECTOR || material + length.next_multiple_of(SECTOR) > size {
                    return Err(bad(format_args!(
                        "key slot {number} points beyond the end of the disk"
                    )));
                }
                slots.push(Slot { iterations, salt, material, stripes });
            }
        }
        check_iterations(iterations)?;
        let payload = u64::from(payload) * SECTOR;
        if payload > size {
            return Err(bad("payload offset points beyond the end of the disk"));
        }
        if payload < SIZE as u64 {
            return Err(bad("payload offset points into the header"));
        }
        let (mode, key_size) = cipher_mode(&cipher, &mode, key_size)?;
        let hash = Hash::by_name(&hash)
            .ok_or_else(|| bad(format_args!("the hash \"{hash}\" is not supported")))?;
        let master = Master { mode, hash, key_size, payload, digest, salt, iterations };
        Ok(Header { master, slots })
    }
}

fn check_iterations(iterations: u32) -> Result<()> {
    if (1..=MAX_ITERATIONS).contains(&iterations) {
        return Ok(());
    }
    Err(bad(format_args!("{iterations} iterations, where 1 to {MAX_ITERATIONS} are allowed")))
}

/// The mode, and the size of the key in bytes, which it must suit.
fn cipher_mode(cipher: &str, mode: &str, key_size: u32) -> Result<(Mode, usize)> {
    if cipher != "aes" {
        return Err(bad(format_args!("the cipher \"{cipher}\" is not supported")));
    }
    let known = match mode {
        "ecb" | "ecb-plain" | "ecb-plain64" => Some(Mode::Ecb),
        "xts-plain" => Some(Mode::Xts(Iv::Plain)),
        "xts-plain64" => Some(Mode::Xts(Iv::Plain64)),
        "cbc-plain" => Some(Mode::Cbc(Iv::Plain)),
        "cbc-plain64" => Some(Mode::Cbc(Iv::Plain64)),
        "cbc-essiv:sha256" => Some(Mode::Cbc(Iv::EssivSha256)),
        _ => None,
    };
    let known = known.ok_or_else(|| bad(format_args!("the mode \"{mode}\" is not supported")))?;
    let suits = match known {
        Mode::Xts(_) => matches!(key_size, 32 | 64),
        Mode::Cbc(_) | Mode::Ecb => matches!(key_size, 16 | 24 | 32),
    };
    if !suits {
        return Err(bad(format_args!("aes-{mode} has no keys of {key_size} bytes")));
    }
    Ok((known, key_size as usize))
}
