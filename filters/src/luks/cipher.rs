//! AES in the modes of disk encryption: each sector by itself, with its number as the initial
//! vector. Many blocks are given to the cipher at a time, which is what the processor's
//! instructions are fast with.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256};
use sha2::Digest;

type Block = aes::Block;

/// Bytes of a sector in the header's offsets, and in the numbers that the cipher gets: those of a
/// larger sector's first 512 bytes.
pub(super) const SECTOR: u64 = 512;
/// Bytes of a block of AES.
const BLOCK: usize = 16;
/// Bytes that are encrypted at a time: whole sectors of any size.
const BATCH: usize = 4096;
/// Most sectors of them.
const SECTORS: usize = BATCH / SECTOR as usize;

/// How blocks and sectors follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Blocks are independent of each other and of where they are.
    Ecb,
    Cbc(Iv),
    /// IEEE 1619.
    Xts(Iv),
}

/// How the initial vector follows from the number of a sector. As in Linux, drivers/md/dm-crypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Iv {
    /// The number, 32 bits, little-endian.
    Plain,
    /// The number, 64 bits, little-endian.
    Plain64,
    /// The number as in `Plain64`, encrypted with the SHA-256 of the key.
    EssivSha256,
}

impl Iv {
    fn number(self, sector: u64) -> Block {
        let number = match self {
            Iv::Plain => sector & u64::from(u32::MAX),
            Iv::Plain64 | Iv::EssivSha256 => sector,
        };
        let mut block = Block::default();
        block[..8].copy_from_slice(&number.to_le_bytes());
        block
    }
}

/// AES with a key of any size. The keys are wiped when it is dropped.
enum Aes {
    Short(Aes128),
    Middle(Aes192),
    Long(Aes256),
}

impl Aes {
    /// `None` if there is no such size of keys.
    fn new(key: &[u8]) -> Option<Aes> {
        match key.len() {
            16 => Aes128::new_from_slice(key).ok().map(Aes::Short),
            24 => Aes192::new_from_slice(key).ok().map(Aes::Middle),
            32 => Aes256::new_from_slice(key).ok().map(Aes::Long),
            _ => None,
        }
    }

    fn encrypt(&self, blocks: &mut [Block]) {
        match self {
            Aes::Short(aes) => aes.encrypt_blocks(blocks),
            Aes::Middle(aes) => aes.encrypt_blocks(blocks),
            Aes::Long(aes) => aes.encrypt_blocks(blocks),
        }
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        match self {
            Aes::Short(aes) => aes.decrypt_blocks(blocks),
            Aes::Middle(aes) => aes.decrypt_blocks(blocks),
            Aes::Long(aes) => aes.decrypt_blocks(blocks),
        }
    }
}

/// What encrypts and decrypts a disk.
pub(super) struct Cipher {
    mode: Mode,
    /// Bytes of a sector: a power of two, 512 to 4096.
    sector: usize,
    data: Aes,
    /// Of XTS for the tweaks, of ESSIV for the vectors.
    vectors: Option<Aes>,
}

impl Cipher {
    /// For sectors of 512 bytes. `None` if the key does not suit the mode.
    pub(super) fn new(mode: Mode, key: &[u8]) -> Option<Cipher> {
        Cipher::with_sectors(mode, key, SECTOR as usize)
    }

    /// For sectors of so many bytes, a power of two, 512 to 4096. `None` if the key does not suit
    /// the mode.
    pub(super) fn with_sectors(mode: Mode, key: &[u8], sector: usize) -> Option<Cipher> {
        let (data, vectors) = match mode {
            Mode::Xts(_) => {
                let (data, tweaks) = key.split_at(key.len() / 2);
                (data, Some(Aes::new(tweaks)?))
            }
            Mode::Cbc(Iv::EssivSha256) => {
                let mut salt = sha2::Sha256::digest(key);
                let aes = Aes::new(&salt);
                zeroize::Zeroize::zeroize(salt.as_mut_slice());
                (key, Some(aes?))
            }
            Mode::Cbc(Iv::Plain | Iv::Plain64) | Mode::Ecb => (key, None),
        };
        Some(Cipher { mode, sector, data: Aes::new(data)?, vectors })
    }

    /// Blocks of a sector.
    fn blocks(&self) -> usize {
        self.sector / BLOCK
    }

    /// Encrypts whole sectors in place, of which the first has this number, in units of 512 bytes.
    pub(super) fn encrypt(&self, sector: u64, data: &mut [u8]) {
        self.each_batch(sector, data, |blocks, vectors| match self.mode {
            Mode::Ecb => self.data.encrypt(blocks),
            Mode::Xts(_) => xts(blocks, self.blocks(), vectors, |blocks| self.data.encrypt(blocks)),
            Mode::Cbc(_) => {
                for (sector, vector) in blocks.chunks_mut(self.blocks()).zip(vectors) {
                    let mut before = *vector;
                    for block in sector {
                        xor(block, &before);
                        self.data.encrypt(std::slice::from_mut(block));
                        before = *block;
                    }
                }
            }
        });
    }

    /// Decrypts whole sectors in place, of which the first has this number, in units of 512 bytes.
    pub(super) fn decrypt(&self, sector: u64, data: &mut [u8]) {
        self.each_batch(sector, data, |blocks, vectors| match self.mode {
            Mode::Ecb => self.data.decrypt(blocks),
            Mode::Xts(_) => xts(blocks, self.blocks(), vectors, |blocks| self.data.decrypt(blocks)),
            Mode::Cbc(_) => {
                let mut encrypted = [Block::default(); BATCH / BLOCK];
                encrypted[..blocks.len()].copy_from_slice(blocks);
                self.data.decrypt(blocks);
                let sectors = blocks.chunks_mut(self.blocks());
                let sectors = sectors.zip(encrypted.chunks(self.blocks()));
                for ((sector, encrypted), vector) in sectors.zip(vectors) {
                    let before = std::iter::once(vector).chain(encrypted);
                    sector.iter_mut().zip(before).for_each(|(block, before)| xor(block, before));
                }
            }
        });
    }

    /// Calls `crypt` with some sectors at a time, and their initial vectors.
    fn each_batch(
        &self,
        first: u64,
        data: &mut [u8],
        mut crypt: impl FnMut(&mut [Block], &[Block]),
    ) {
        let iv = match self.mode {
            Mode::Ecb => None,
            Mode::Cbc(iv) | Mode::Xts(iv) => Some(iv),
        };
        let mut sector = first;
        let step = self.sector / SECTOR as usize;
        for batch in data.chunks_mut(BATCH) {
            let (blocks, _) = Array::slice_as_chunks_mut(batch);
            let mut vectors = [Block::default(); SECTORS];
            let count = blocks.len().div_ceil(self.blocks());
            let vectors = &mut vectors[..count];
            if let Some(iv) = iv {
                for vector in vectors.iter_mut() {
                    *vector = iv.number(sector);
                    sector = sector.wrapping_add(step as u64);
                }
            }
            if let Some(aes) = &self.vectors {
                aes.encrypt(vectors);
            }
            crypt(blocks, vectors);
        }
    }
}

fn xor(block: &mut Block, other: &Block) {
    let sum = u128::from_ne_bytes(block.0) ^ u128::from_ne_bytes(other.0);
    block.0 = sum.to_ne_bytes();
}

/// Encrypts or decrypts sectors of `size` blocks, by `aes`, from the encrypted tweak of each. IEEE
/// 1619, 5.3 and 5.4; sectors are whole blocks.
fn xts(blocks: &mut [Block], size: usize, tweaks: &[Block], aes: impl Fn(&mut [Block])) {
    /// x^128 = x^7 + x^2 + x + 1.
    const POLYNOMIAL: u128 = 0x87;
    let mut all = [Block::default(); BATCH / BLOCK];
    for (sector, tweak) in all.chunks_mut(size).zip(tweaks) {
        let mut tweak = u128::from_le_bytes(tweak.0);
        for block in sector {
            block.0 = tweak.to_le_bytes();
            tweak = (tweak << 1) ^ ((tweak >> 127) * POLYNOMIAL);
        }
    }
    blocks.iter_mut().zip(&all).for_each(|(block, tweak)| xor(block, tweak));
    aes(blocks);
    blocks.iter_mut().zip(&all).for_each(|(block, tweak)| xor(block, tweak));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    /// IEEE 1619, annex B, vectors 4 and 10: 512 bytes 0, 1, 2 ...
    #[test]
    fn xts_is_that_of_the_standard() {
        let plain: Vec<u8> = (0..512).map(|at| at as u8).collect();
        let short = "27182818284590452353602874713526 31415926535897932384626433832795";
        let long = "2718281828459045235360287471352662497757247093699959574966967627
                    3141592653589793238462643383279502884197169399375105820974944592";
        for (key, sector, begins) in [
            (short, 0, "27a7479befa1d476489f308cd4cfa6e2"),
            (long, 0xff, "1c3b3a102f770386e4836c99e370cf9b"),
        ] {
            let cipher = Cipher::new(Mode::Xts(Iv::Plain64), &hex(key)).unwrap();
            let mut data = plain.clone();
            cipher.encrypt(sector, &mut data);
            assert_eq!(data[..16], hex(begins), "sector {sector}");
            cipher.decrypt(sector, &mut data);
            assert_eq!(data, plain);
        }
    }

    /// A sector of 4096 bytes is one, and its number is that of its first 512 bytes.
    #[test]
    fn sectors_may_be_larger() {
        let plain: Vec<u8> = (0..3 * 4096_usize).map(|at| (at / 5) as u8).collect();
        let key: Vec<u8> = (0..32).collect();
        for mode in [Mode::Cbc(Iv::EssivSha256), Mode::Xts(Iv::Plain64)] {
            let cipher = Cipher::with_sectors(mode, &key, 4096).unwrap();
            let mut whole = plain.clone();
            cipher.encrypt(80, &mut whole);
            let mut single = plain.clone();
            for (number, data) in single.chunks_mut(4096).enumerate() {
                cipher.encrypt(80 + number as u64 * 8, data);
            }
            assert!(whole == single, "{mode:?}");
            let mut begin = plain[..512].to_vec();
            Cipher::new(mode, &key).unwrap().encrypt(80, &mut begin);
            assert!(begin == whole[..512], "{mode:?}");
            begin = plain[512..1024].to_vec();
            Cipher::new(mode, &key).unwrap().encrypt(81, &mut begin);
            assert!(begin != whole[512..1024], "{mode:?}");
            cipher.decrypt(80, &mut whole);
            assert!(whole == plain, "{mode:?}");
        }
    }

    #[test]
    fn many_sectors_at_once_are_what_each_is_by_itself() {
        let plain: Vec<u8> = (0..21 * 512_usize).map(|at| (at / 3) as u8).collect();
        let key: Vec<u8> = (0..32).collect();
        for mode in [
            Mode::Ecb,
            Mode::Cbc(Iv::Plain),
            Mode::Cbc(Iv::Plain64),
            Mode::Cbc(Iv::EssivSha256),
            Mode::Xts(Iv::Plain),
            Mode::Xts(Iv::Plain64),
        ] {
            let cipher = Cipher::new(mode, &key).unwrap();
            let first = u64::from(u32::MAX) - 10;
            let mut whole = plain.clone();
            cipher.encrypt(first, &mut whole);
            let mut single = plain.clone();
            for (sector, data) in (first..).zip(single.chunks_mut(512)) {
                cipher.encrypt(sector, data);
            }
            assert!(whole == single, "{mode:?}");
            assert!(whole != plain, "{mode:?}");
            cipher.decrypt(first, &mut whole);
            assert!(whole == plain, "{mode:?}");
        }
    }
}
