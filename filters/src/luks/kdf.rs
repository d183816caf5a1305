//! From a passphrase to the key of a disk: PBKDF2 (RFC 8018, 5.2) and the anti-forensic splitter
//! ("LUKS1 On-Disk Format Specification", section 3).

use std::sync::Arc;

use hmac::Hmac;
use hmac::digest::{FixedOutput, KeyInit, Update};
use nbdkit_api::{Client, Error, Result, client};
use sha2::Digest;
use zeroize::Zeroizing;

use super::cipher::Cipher;
use super::header::{Header, SECTOR, Slot};

/// Iterations between two looks whether the client is still there: some milliseconds.
const PATIENCE: u32 = 1 << 14;

/// A hash function of PBKDF2 and of the splitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

impl Hash {
    pub(super) fn by_name(name: &str) -> Option<Hash> {
        match name {
            "sha1" => Some(Hash::Sha1),
            "sha256" => Some(Hash::Sha256),
            "sha512" => Some(Hash::Sha512),
            _ => None,
        }
    }

    /// PBKDF2.
    ///
    /// # Errors
    /// ESHUTDOWN: the client has gone.
    pub(super) fn pbkdf2(
        self,
        client: Option<&Arc<Client>>,
        password: &[u8],
        salt: &[u8],
        iterations: u32,
        size: usize,
    ) -> Result<Zeroizing<Vec<u8>>> {
        let mut key = Zeroizing::new(vec![0; size]);
        match self {
            Hash::Sha1 => pbkdf2::<Hmac<sha1::Sha1>>(client, password, salt, iterations, &mut key),
            Hash::Sha256 => {
                pbkdf2::<Hmac<sha2::Sha256>>(client, password, salt, iterations, &mut key)
            }
            Hash::Sha512 => {
                pbkdf2::<Hmac<sha2::Sha512>>(client, password, salt, iterations, &mut key)
            }
        }?;
        Ok(key)
    }

    /// Replaces each part of `data` by its hash, and the number of the part.
    fn diffuse(self, data: &mut [u8]) {
        match self {
            Hash::Sha1 => diffuse::<sha1::Sha1>(data),
            Hash::Sha256 => diffuse::<sha2::Sha256>(data),
            Hash::Sha512 => diffuse::<sha2::Sha512>(data),
        }
    }
}

fn pbkdf2<M: KeyInit + Update + FixedOutput + Clone>(
    client: Option<&Arc<Client>>,
    password: &[u8],
    salt: &[u8],
    iterations: u32,
    key: &mut [u8],
) -> Result<()> {
    let keyed = M::new_from_slice(password)
        .map_err(|error| Error::msg(format!("luks: the passphrase: {error}")))?;
    for (part, number) in key.chunks_mut(M::output_size()).zip(1_u32..) {
        let mut mac = keyed.clone();
        mac.update(salt);
        mac.update(&number.to_be_bytes());
        let mut product = mac.finalize_fixed();
        let mut sum = product.clone();
        for iteration in 1..iterations {
            if iteration.is_multiple_of(PATIENCE) {
                client::check_present(client.map(|client| &**client))?;
            }
            let mut mac = keyed.clone();
            mac.update(&product);
            product = mac.finalize_fixed();
            sum.iter_mut().zip(&product).for_each(|(sum, byte)| *sum ^= byte);
        }
        part.copy_from_slice(&sum[..part.len()]);
        zeroize::Zeroize::zeroize(sum.as_mut_slice());
        zeroize::Zeroize::zeroize(product.as_mut_slice());
    }
    Ok(())
}

fn diffuse<D: Digest>(data: &mut [u8]) {
    let size = <D as Digest>::output_size();
    for (part, number) in data.chunks_mut(size).zip(0_u32..) {
        let hash = D::new().chain_update(number.to_be_bytes()).chain_update(&*part).finalize();
        part.copy_from_slice(&hash[..part.len()]);
    }
}

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
    for slot in &header.slots {
        let key = open(header, slot, passphrase, client, &read)?;
        let master = &header.master;
        let digest = master.hash.pbkdf2(
            client,
            &key,
            &master.salt,
            master.iterations,
            master.digest.len(),
        )?;
        // Both are known to whoever has the disk: no need to compare in constant time.
        if *digest == master.digest {
            return Ok(key);
        }
    }
    Err(Error::msg("LUKS passphrase is not correct, no key slot could be unlocked"))
}

/// What the passphrase makes of a slot: the key, if it is the right one.
fn open(
    header: &Header,
    slot: &Slot,
    passphrase: &[u8],
    client: Option<&Arc<Client>>,
    read: &impl Fn(&mut [u8], u64) -> Result<()>,
) -> Result<Zeroizing<Vec<u8>>> {
    let master = &header.master;
    let size = master.key_size;
    let opens = master.hash.pbkdf2(client, passphrase, &slot.salt, slot.iterations, size)?;
    let cipher = Cipher::new(master.mode, &opens)
        .ok_or_else(|| Error::msg("luks: a key of this size does not suit the mode"))?;
    // The header has been checked: this is less than a megabyte.
    let length = size * slot.stripes as usize;
    let mut material = Zeroizing::new(vec![0; length.next_multiple_of(SECTOR as usize)]);
    read(&mut material, slot.material)?;
    cipher.decrypt(0, &mut material);
    Ok(merge(master.hash, &material[..length], size))
}

/// Splits a key into stripes, of which all but the last are `fill`.
#[cfg(test)]
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
