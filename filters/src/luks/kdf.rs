//! From a passphrase to the key of a disk: PBKDF2 (RFC 8018, 5.2) or Argon2 (RFC 9106), and the
//! anti-forensic splitter ("LUKS1 On-Disk Format Specification", section 3).

use std::sync::Arc;

use nbdkit_api::{Client, Error, Result, client};
use zeroize::{Zeroize, Zeroizing};

use super::cipher::{Cipher, SECTOR};
use super::hash::Hash;
use super::header::{Header, Kdf, Slot};

/// Merges the stripes of a split key: each is `size` bytes.
fn merge(hash: Hash, stripes: &[u8], size: usize) -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(vec![0; size]);
    let last = (stripes.len() / size).saturating_sub(1);
    for (number, stripe) in stripes.chunks_exact(size).enumerate() {
        key.iter_mut().zip(stripe).for_each(|(key, byte)| *key ^= byte);
        if number < last {
            hash.diffuse(&mut key);
        }
    }
    key
}

/// The key of a disk, by the first slot that the passphrase opens. `read` fills a buffer from an
/// offset of the disk.
///
/// # Errors
/// EINVAL: the passphrase opens none. ESHUTDOWN: the client has gone. Those of `read`.
pub(super) fn master_key(
    header: &Header,
    passphrase: &[u8],
    client: Option<&Arc<Client>>,
    read: impl Fn(&mut [u8], u64) -> Result<()>,
) -> Result<Zeroizing<Vec<u8>>> {
    let known = &header.master.digest;
    for slot in &header.slots {
        client::check_present(client.map(|client| &**client))?;
        let key = open(slot, header.master.key_size, passphrase, client, &read)?;
        let size = known.digest.len();
        let digest = known.hash.pbkdf2(client, &key, &known.salt, known.iterations, size)?;
        // Both are known to whoever has the disk: no need to compare in constant time.
        if *digest == known.digest {
            return Ok(key);
        }
    }
    let note = header.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
    Err(Error::msg(format!("LUKS passphrase is not correct, no key slot could be unlocked{note}")))
}

/// What the passphrase makes of a slot: the key of `size` bytes, if it is the right one.
fn open(
    slot: &Slot,
    size: usize,
    passphrase: &[u8],
    client: Option<&Arc<Client>>,
    read: &impl Fn(&mut [u8], u64) -> Result<()>,
) -> Result<Zeroizing<Vec<u8>>> {
    let opens = match slot.kdf {
        Kdf::Pbkdf2 { hash, iterations } => {
            hash.pbkdf2(client, passphrase, &slot.salt, iterations, slot.key_size)?
        }
        Kdf::Argon2 { algorithm, passes, memory, lanes } => {
            let params = argon2::Params::new(memory, passes, lanes, Some(slot.key_size));
            argon2(algorithm, params.map_err(failed)?, passphrase, &slot.salt, slot.key_size)?
        }
    };
    let cipher = Cipher::new(slot.mode, &opens)
        .ok_or_else(|| Error::msg("luks: a key of this size does not suit the mode"))?;
    // The header has been checked: this is less than a megabyte.
    let length = size * slot.stripes as usize;
    let mut material = Zeroizing::new(vec![0; length.next_multiple_of(SECTOR as usize)]);
    read(&mut material, slot.material)?;
    cipher.decrypt(0, &mut material);
    Ok(merge(slot.hash, &material[..length], size))
}

fn failed(error: argon2::Error) -> Error {
    Error::msg(format!("luks: Argon2: {error}"))
}

/// Argon2, version 1.3. The memory that it takes is wiped.
///
/// # Errors
/// There is not so much memory.
fn argon2(
    algorithm: argon2::Algorithm,
    params: argon2::Params,
    passphrase: &[u8],
    salt: &[u8],
    size: usize,
) -> Result<Zeroizing<Vec<u8>>> {
    let count = params.block_count();
    let mut memory: Vec<argon2::Block> = Vec::new();
    memory.try_reserve_exact(count).map_err(|_| {
        Error::msg(format!("luks: a key slot takes {count} KiB of memory, which there is not"))
    })?;
    memory.resize_with(count, argon2::Block::new);
    let mut key = Zeroizing::new(vec![0; size]);
    let result = argon2::Argon2::new(algorithm, argon2::Version::V0x13, params)
        .hash_password_into_with_memory(passphrase, salt, &mut key, &mut memory);
    memory.iter_mut().for_each(Zeroize::zeroize);
    result.map_err(failed)?;
    Ok(key)
}

/// Splits a key into stripes, of which all but the last are `fill`.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn split(hash: Hash, key: &[u8], stripes: usize, fill: u8) -> Vec<u8> {
    let mut split = vec![fill; key.len() * (stripes - 1)];
    let mut sum = vec![0; key.len()];
    for stripe in split.chunks(key.len()) {
        sum.iter_mut().zip(stripe).for_each(|(sum, byte)| *sum ^= byte);
        hash.diffuse(&mut sum);
    }
    split.extend(sum.iter().zip(key).map(|(sum, byte)| sum ^ byte));
    split
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6070, and RFC 7914, 11.
    #[test]
    fn pbkdf2_is_that_of_the_standard() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let sha1 = |iterations, size| {
            hex(&Hash::Sha1.pbkdf2(None, b"password", b"salt", iterations, size).unwrap())
        };
        assert_eq!(sha1(1, 20), "0c60c80f961f0e71f3a9b524af6012062fe037a6");
        assert_eq!(sha1(4096, 20), "4b007901b765489abead49d926f721d065a429c1");
        let sha256 = Hash::Sha256.pbkdf2(None, b"passwd", b"salt", 1, 64).unwrap();
        assert_eq!(
            hex(&sha256),
            "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc\
             49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783"
        );
    }
}
