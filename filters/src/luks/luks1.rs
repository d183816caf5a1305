//! The header of a LUKS1 disk ("LUKS1 On-Disk Format Specification", 1.2.3, section 2). It may be
//! hostile: what is absurd is refused before anything is computed or read.

use nbdkit_api::{Error, Result};

use super::cipher::SECTOR;
use super::hash::Hash;
use super::header::{
    Area, Digest, Header, Kdf, MAX_STRIPES, Master, SIZE, Slot, check_iterations, cipher_mode,
};

const SLOTS: usize = 8;
const ENABLED: u32 = 0x00ac_71f3;

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

/// Decodes the header of a disk of `size` bytes.
///
/// # Errors
/// EINVAL: it cannot be right, or it needs what there is not.
pub(super) fn decode(bytes: &[u8; SIZE], size: u64) -> Result<Header> {
    let mut fields = Fields(bytes);
    let _magic_and_version: [u8; 8] = fields.bytes();
    let (cipher, mode, hash) = (fields.text(), fields.text(), fields.text());
    let (payload, key_size) = (fields.u32(), fields.u32());
    let digest: [u8; 20] = fields.bytes();
    let (salt, iterations): ([u8; 32], _) = (fields.bytes(), fields.u32());
    let _uuid: [u8; 40] = fields.bytes();
    let mut used = Vec::new();
    for number in 0..SLOTS {
        let state = fields.u32();
        let (iterations, salt): (_, [u8; 32]) = (fields.u32(), fields.bytes());
        let (material, stripes) = (u64::from(fields.u32()) * SECTOR, fields.u32());
        if state == ENABLED {
            check_iterations(iterations).map_err(bad)?;
            if !(1..=MAX_STRIPES).contains(&stripes) {
                return Err(bad(format_args!("key slot {number} has {stripes} stripes")));
            }
            let length = u64::from(stripes) * u64::from(key_size);
            if material < SECTOR || material + length.next_multiple_of(SECTOR) > size {
                return Err(bad(format_args!(
                    "key slot {number} points beyond the end of the disk"
                )));
            }
            used.push((iterations, salt, material, stripes));
        }
    }
    check_iterations(iterations).map_err(bad)?;
    let payload = u64::from(payload) * SECTOR;
    if payload > size {
        return Err(bad("payload offset points beyond the end of the disk"));
    }
    if payload < SIZE as u64 {
        return Err(bad("payload offset points into the header"));
    }
    let (mode, key_size) = cipher_mode(&cipher, &mode, key_size).map_err(bad)?;
    let hash = Hash::by_name(&hash)
        .ok_or_else(|| bad(format_args!("the hash \"{hash}\" is not supported")))?;
    let slots = used.into_iter().map(|(iterations, salt, material, stripes)| Slot {
        kdf: Kdf::Pbkdf2 { hash, iterations },
        salt: salt.to_vec(),
        mode,
        key_size,
        material,
        stripes,
        hash,
    });
    let area = Area { mode, sector: SECTOR as usize, tweak: 0, payload, size: None };
    let digest = Digest { hash, iterations, salt: salt.to_vec(), digest: digest.to_vec() };
    let master = Master { area, key_size, digest };
    Ok(Header { master, slots: slots.collect(), note: None, may_trim: false })
}
