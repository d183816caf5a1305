//! The hash functions of PBKDF2 (RFC 8018, 5.2) and of the anti-forensic splitter.

use std::sync::Arc;

use hmac::Hmac;
use hmac::digest::{FixedOutput, KeyInit, Update};
use nbdkit_api::{Client, Error, Result, client};
use sha2::Digest;
use zeroize::Zeroizing;

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
    pub(super) fn diffuse(self, data: &mut [u8]) {
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
