//! The decoded header of a LUKS disk, of version 1 or 2: the cipher, the encrypted area and the key
//! slots. A header may be hostile: values out of bounds are refused before anything is computed or
//! read.

use super::cipher::{Iv, Mode};
use super::hash::Hash;

/// Bytes that tell the version, and all of a header of LUKS1.
pub(super) const SIZE: usize = 592;
/// Every program that makes LUKS disks uses 4000.
pub(super) const MAX_STRIPES: u32 = 10_000;
/// A hundred times what is usual, and about a minute of one processor.
pub(super) const MAX_ITERATIONS: u32 = 100_000_000;

/// Of LUKS1, and of the first copy of LUKS2.
pub(super) const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";

/// A header, as far as it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) master: Master,
    /// Those that a passphrase may open, in the order in which they are tried.
    pub(super) slots: Vec<Slot>,
    /// Why other slots are not tried, for whoever has the right passphrase for one of them.
    pub(super) note: Option<String>,
    /// Whether the disk may be trimmed, which shows where it has data.
    pub(super) may_trim: bool,
}

/// The disk and its key. Two headers that agree on this have one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Master {
    pub(super) area: Area,
    /// Bytes of the key.
    pub(super) key_size: usize,
    pub(super) digest: Digest,
}

/// The encrypted disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) mode: Mode,
    /// Bytes of a sector: a power of two, 512 to 4096.
    pub(super) sector: usize,
    /// What is added to the number of each sector.
    pub(super) tweak: u64,
    /// Where it begins, bytes.
    pub(super) payload: u64,
    /// Bytes; `None`: all there is.
    pub(super) size: Option<u64>,
}

/// By this the key is recognised: its PBKDF2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digest {
    pub(super) hash: Hash,
    pub(super) iterations: u32,
    pub(super) salt: Vec<u8>,
    pub(super) digest: Vec<u8>,
}

/// The key of the disk, encrypted with a key that is made of a passphrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) kdf: Kdf,
    pub(super) salt: Vec<u8>,
    /// How the material is encrypted, in sectors of 512 bytes.
    pub(super) mode: Mode,
    /// Bytes of the key that opens it.
    pub(super) key_size: usize,
    /// Where the split key is, bytes.
    pub(super) material: u64,
    pub(super) stripes: u32,
    /// Of the splitter.
    pub(super) hash: Hash,
}

/// How a key is made of a passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kdf {
    Pbkdf2 {
        hash: Hash,
        iterations: u32,
    },
    /// RFC 9106.
    Argon2 {
        algorithm: argon2::Algorithm,
        passes: u32,
        /// KiB.
        memory: u32,
        lanes: u32,
    },
}

impl Header {
    /// Whether the key takes much memory.
    pub(super) fn takes_memory(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot.kdf, Kdf::Argon2 { .. }))
    }
}

/// Why a number of iterations is refused, if it is.
pub(super) fn check_iterations(iterations: u32) -> Result<(), String> {
    if (1..=MAX_ITERATIONS).contains(&iterations) {
        return Ok(());
    }
    Err(format!("{iterations} iterations, where 1 to {MAX_ITERATIONS} are allowed"))
}

/// The mode, and the size of the key in bytes, which it must suit; or why there is none.
pub(super) fn cipher_mode(
    cipher: &str,
    mode: &str,
    key_size: u32,
) -> Result<(Mode, usize), String> {
    if cipher != "aes" {
        return Err(format!("the cipher \"{cipher}\" is not supported"));
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
    let known = known.ok_or_else(|| format!("the mode \"{mode}\" is not supported"))?;
    let suits = match known {
        Mode::Xts(_) => matches!(key_size, 32 | 64),
        Mode::Cbc(_) | Mode::Ecb => matches!(key_size, 16 | 24 | 32),
    };
    if !suits {
        return Err(format!("aes-{mode} has no keys of {key_size} bytes"));
    }
    Ok((known, key_size as usize))
}
