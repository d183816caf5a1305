//! A LUKS1 disk, for tests.

use super::cipher::{Cipher, Iv, Mode};
pub(crate) use super::example2::PASSPHRASE;
pub(super) use super::example2::{KEY, STRIPES};
use super::hash::Hash;
use super::kdf::split;

/// Sectors.
pub(super) const MATERIAL: usize = 8;
pub(super) const PAYLOAD: usize = 16;

/// A LUKS1 disk of `data`, whose second key slot is in use.
pub(crate) fn image(data: &[u8]) -> Vec<u8> {
    let (mode, hash) = (Mode::Xts(Iv::Plain64), Hash::Sha256);
    let mut image = vec![0; PAYLOAD * 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..][..bytes.len()].copy_from_slice(bytes);
    put(0, b"LUKS\xba\xbe\x00\x01");
    put(8, b"aes");
    put(40, b"xts-plain64");
    put(72, b"sha256");
    put(104, &(PAYLOAD as u32).to_be_bytes());
    put(108, &(KEY.len() as u32).to_be_bytes());
    put(112, &hash.pbkdf2(None, &KEY, &[1; 32], 3, 20).unwrap());
    put(132, &[1; 32]);
    put(164, &3_u32.to_be_bytes());
    for slot in 0..8 {
        put(208 + slot * 48, &0x0000_dead_u32.to_be_bytes());
    }
    let slot = 208 + 48;
    put(slot, &0x00ac_71f3_u32.to_be_bytes());
    put(slot + 4, &5_u32.to_be_bytes());
    put(slot + 8, &[2; 32]);
    put(slot + 40, &(MATERIAL as u32).to_be_bytes());
    put(slot + 44, &(STRIPES as u32).to_be_bytes());
    let mut material = split(hash, &KEY, STRIPES, 0xc3);
    material.resize(material.len().next_multiple_of(512), 0);
    let opens = hash.pbkdf2(None, PASSPHRASE.as_bytes(), &[2; 32], 5, KEY.len()).unwrap();
    Cipher::new(mode, &opens).unwrap().encrypt(0, &mut material);
    put(MATERIAL * 512, &material);
    let mut encrypted = data.to_vec();
    encrypted.resize(data.len().next_multiple_of(512), 0);
    Cipher::new(mode, &KEY).unwrap().encrypt(0, &mut encrypted);
    image.extend(encrypted);
    image
}
