//! A LUKS2 disk, for tests and fuzz targets.

use base64ct::{Base64, Encoding};
use sha2::Digest;

use super::cipher::{Cipher, Iv, Mode};
use super::hash::Hash;
use super::header::MAGIC;
use super::kdf::split;
use super::luks2::{BINARY, SECOND_MAGIC, field};

/// Opens the second key slot.
pub(crate) const PASSPHRASE: &str = "correct horse";
/// Opens the first one, by Argon2.
pub(super) const OTHER: &str = "battery staple";
pub(super) const KEY: [u8; 32] = [0x5a; 32];
pub(super) const STRIPES: usize = 40;
/// Bytes of each copy of the header.
pub(super) const COPY: usize = 16 << 10;
/// Where the keys are, and where the disk begins, bytes.
pub(super) const MATERIAL: [usize; 2] = [2 * COPY, 2 * COPY + 4096];
pub(super) const PAYLOAD: usize = 3 * COPY;
/// Bytes of a sector.
pub(super) const SECTOR: usize = 4096;

const TWEAK: u64 = 3;

fn salt(byte: u8) -> [u8; 32] {
    [byte; 32]
}

/// The metadata of [`image`].
pub(super) fn text() -> String {
    let salt = |byte| Base64::encode_string(&salt(byte));
    let digest = Hash::Sha512.pbkdf2(None, &KEY, &self::salt(3), 3, 64).unwrap_or_default();
    let slot = |number: usize, kdf: String| {
        format!(
            r#""{number}":{{"type":"luks2","key_size":32,
                "af":{{"type":"luks1","stripes":{STRIPES},"hash":"sha256"}},
                "area":{{"type":"raw","offset":"{}","size":"4096",
                    "encryption":"aes-xts-plain64","key_size":32}},
                "kdf":{{{kdf}}}}}"#,
            MATERIAL[number]
        )
    };
    let argon2 = format!(r#""type":"argon2id","time":2,"memory":16,"cpus":2,"salt":"{}""#, salt(1));
    let pbkdf2 = format!(r#""type":"pbkdf2","hash":"sha1","iterations":5,"salt":"{}""#, salt(2));
    format!(
        r#"{{"keyslots":{{{},{}}},
            "tokens":{{}},
            "segments":{{"0":{{"type":"crypt","offset":"{PAYLOAD}","size":"dynamic",
                "iv_tweak":"{TWEAK}","encryption":"aes-xts-plain64","sector_size":{SECTOR}}}}},
            "digests":{{"0":{{"type":"pbkdf2","keyslots":["0","1"],"segments":["0"],
                "hash":"sha512","iterations":3,"salt":"{}","digest":"{}"}}}},
            "config":{{"json_size":"12288","keyslots_size":"16384"}}}}"#,
        slot(0, argon2),
        slot(1, pbkdf2),
        salt(3),
        Base64::encode_string(&digest),
    )
}

/// A copy of a header that is at `offset`, with its checksum.
pub(super) fn copy(text: &[u8], sequence: u64, offset: usize) -> Vec<u8> {
    let mut copy = vec![0; COPY];
    copy[..6].copy_from_slice(if offset == 0 { &MAGIC } else { &SECOND_MAGIC });
    copy[field::VERSION].copy_from_slice(&2_u16.to_be_bytes());
    copy[field::SIZE].copy_from_slice(&(COPY as u64).to_be_bytes());
    copy[field::SEQUENCE].copy_from_slice(&sequence.to_be_bytes());
    copy[field::ALGORITHM][..6].copy_from_slice(b"sha256");
    copy[field::OFFSET].copy_from_slice(&(offset as u64).to_be_bytes());
    let text = &text[..text.len().min(COPY - BINARY - 1)];
    copy[BINARY..][..text.len()].copy_from_slice(text);
    let sum = sha2::Sha256::digest(&copy);
    copy[field::CHECKSUM][..32].copy_from_slice(&sum);
    copy
}

/// What the slots hold, and the encrypted `data`, under a header without anything.
pub(super) fn body(data: &[u8]) -> Vec<u8> {
    let mode = Mode::Xts(Iv::Plain64);
    let mut image = vec![0; PAYLOAD];
    let mut opens = [[0; 32]; 2];
    let params = argon2::Params::new(16, 2, 2, Some(32)).unwrap_or_default();
    let _ = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(OTHER.as_bytes(), &salt(1), &mut opens[0]);
    let key = Hash::Sha1.pbkdf2(None, PASSPHRASE.as_bytes(), &salt(2), 5, 32).unwrap_or_default();
    opens[1].copy_from_slice(&key);
    for (at, key) in MATERIAL.iter().zip(&opens) {
        let mut material = split(Hash::Sha256, &KEY, STRIPES, 0x3c);
        material.resize(material.len().next_multiple_of(512), 0);
        if let Some(cipher) = Cipher::new(mode, key) {
            cipher.encrypt(0, &mut material);
        }
        image[*at..][..material.len()].copy_from_slice(&material);
    }
    let mut encrypted = data.to_vec();
    encrypted.resize(data.len().next_multiple_of(SECTOR), 0);
    if let Some(cipher) = Cipher::with_sectors(mode, &KEY, SECTOR) {
        cipher.encrypt(TWEAK, &mut encrypted);
    }
    image.extend(encrypted);
    image
}

/// A LUKS2 disk of `data`, whose copies of the header have these texts and numbers.
#[cfg(test)]
pub(super) fn image_of(copies: [(&str, u64); 2], data: &[u8]) -> Vec<u8> {
    let mut image = body(data);
    for (number, (text, sequence)) in copies.into_iter().enumerate() {
        let at = number * COPY;
        image[at..][..COPY].copy_from_slice(&copy(text.as_bytes(), sequence, at));
    }
    image
}

/// A LUKS2 disk of `data`.
#[cfg(test)]
pub(super) fn image(data: &[u8]) -> Vec<u8> {
    image_of([(&text(), 7), (&text(), 7)], data)
}
