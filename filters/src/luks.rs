//! nbdkit-luks-filter(1): decrypts and encrypts a LUKS1 disk.
//!
//! The template derives the key before the first client, if it can open the disk without one, and
//! wipes the passphrase: workers inherit the key and not the passphrase. Otherwise each client
//! derives the key, and learns why that fails.
//!
//! The header is hostile, and so is what the disk has instead of sectors: any bytes decrypt to
//! some.

mod cipher;
mod hash;
mod header;
mod kdf;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nbdkit_api::shared::{LockedRange, RangeLock, Sharing};
use nbdkit_api::{
    BlockSize, Cache, Client, Errno, Error, Filter, Flags, Layer, Needs, Next, NextConfig, Open,
    OpenLayer, Result, Slot, ThreadModel, Value, Zero, debug, parse,
};
use zeroize::Zeroizing;

use cipher::{Cipher, SECTOR};
use header::{Header, Master};

/// Bytes that are encrypted before they are written together.
const MAX_WRITE: usize = 2 << 20;

/// The filter: the passphrase until it is not needed any more, and the key from then on.
#[derive(Default)]
pub struct Luks {
    passphrase: Mutex<Option<Zeroizing<Vec<u8>>>>,
    /// The key that the template has derived, and what it is for.
    key: OnceLock<(Master, Arc<Cipher>)>,
    /// Whether the template may open what is below: not if that starts threads.
    is_early: AtomicBool,
    /// Held while a part of a sector is written.
    sectors: Option<Arc<RangeLock>>,
}

impl Filter for Luks {
    fn name(&self) -> &str {
        "luks"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit luks filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("passphrase=<SECRET>      Secret passphrase.")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "passphrase" => {
                let passphrase = parse::password_bytes(value.as_bytes())?;
                *self.passphrase() = Some(Zeroizing::new(passphrase));
            }
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        if self.passphrase().is_none() {
            return Err(Error::msg("LUKS \"passphrase\" parameter is missing"));
        }
        next.config_complete()
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.sectors = Some(Arc::new(RangeLock::new()?));
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        let is_early = !below.threads && !below.in_file && !below.undeclared;
        self.is_early.store(is_early, Ordering::Relaxed);
        below
    }

    fn after_fork(&self, below: &Arc<Layer>) -> Result<()> {
        if self.is_early.load(Ordering::Relaxed)
            && can_be_opened_early(below)
            && let Err(error) = self.derive_early(below)
        {
            debug!("luks: the key is derived when a client opens the disk: {error}");
        }
        Ok(())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let sectors = self.sectors.as_ref();
        let sectors = sectors.ok_or_else(|| Error::msg("luks: opened before get_ready"))?;
        Ok(Box::new(Handle {
            client: open.client.cloned(),
            known: self.key.get().cloned(),
            passphrase: self.passphrase().clone(),
            sectors: Arc::clone(sectors),
            disk: OnceLock::new(),
        }))
    }
}

impl Luks {
    fn passphrase(&self) -> MutexGuard<'_, Option<Zeroizing<Vec<u8>>>> {
        self.passphrase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Derives the key for all clients, and wipes the passphrase.
    fn derive_early(&self, below: &Arc<Layer>) -> Result<()> {
        let open = Open { client: None, readonly: true, export: "", tls: false };
        let next = below.open(&open)?;
        let derived = next.prepare().and_then(|()| {
            let header = read_header(&next, next.size()?)?;
            let passphrase = self.passphrase();
            let passphrase = passphrase.as_ref().map_or(&[][..], |it| it);
            derive(&header, passphrase, None, &next).map(|cipher| (header.master, cipher))
        });
        next.finalize()?;
        let _ = self.key.set(derived?);
        *self.passphrase() = None;
        Ok(())
    }
}

/// Whether nothing but reading comes of opening a layer before the first client. Other filters
/// count clients, log them, delay them, or stop the server when the last one has gone.
fn can_be_opened_early(layer: &Layer) -> bool {
    const HARMLESS: [&str; 2] = ["offset", "partition"];
    match layer.below() {
        None => true,
        Some(below) => HARMLESS.contains(&layer.name()) && can_be_opened_early(below),
    }
}

fn read_header(next: &Next, size: u64) -> Result<Header> {
    let mut bytes = [0; header::SIZE];
    if size < bytes.len() as u64 {
        return Err(Error::msg("disk is too small to be LUKS-encrypted"));
    }
    next.pread(&mut bytes, 0)?;
    Header::decode(&bytes, size)
}

fn derive(
    header: &Header,
    passphrase: &[u8],
    client: Option<&Arc<Client>>,
    next: &Next,
) -> Result<Arc<Cipher>> {
    let read = |buf: &mut [u8], offset| next.pread(buf, offset);
    let key = kdf::master_key(header, passphrase, client, read)?;
    let cipher = Cipher::new(header.master.mode, &key);
    cipher.map(Arc::new).ok_or_else(|| Error::msg("luks: the key does not suit the mode"))
}

struct Handle {
    client: Option<Arc<Client>>,
    known: Option<(Master, Arc<Cipher>)>,
    passphrase: Option<Zeroizing<Vec<u8>>>,
    sectors: Arc<RangeLock>,
    /// Known once the layer is prepared.
    disk: OnceLock<Disk>,
}

/// The decrypted disk.
struct Disk {
    cipher: Arc<Cipher>,
    /// Where it begins below, bytes.
    payload: u64,
    /// Bytes.
    size: u64,
}

impl Handle {
    fn disk(&self) -> Result<&Disk> {
        self.disk.get().ok_or_else(|| Error::new(Errno::EIO, "luks: used before prepare"))
    }

    /// Locks the sectors of a range. All writers do, so that one who writes a part of a sector, and
    /// puts back what else is in it, puts back nothing that another client has overwritten.
    fn lock(&self, count: u64, offset: u64, sharing: Sharing) -> Result<LockedRange<'_>> {
        let range = offset / SECTOR..(offset + count).div_ceil(SECTOR);
        self.sectors.lock(self.client.as_deref(), range, sharing)
    }
}

impl Disk {
    /// Reads and decrypts whole sectors.
    fn read(&self, next: &Next, sectors: &mut [u8], offset: u64) -> Result<()> {
        next.pread(sectors, self.payload + offset)?;
        self.cipher.decrypt(offset / SECTOR, sectors);
        Ok(())
    }

    /// Reads any bytes. Those of sectors that are read in part come by way of a buffer.
    fn read_any(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let Parts { head, body, .. } = Parts::of(buf.len(), offset);
        let (first, rest) = buf.split_at_mut(head);
        let (middle, last) = rest.split_at_mut(body);
        let mut sector = [0; SECTOR as usize];
        if !first.is_empty() {
            self.read(next, &mut sector, offset / SECTOR * SECTOR)?;
            first.copy_from_slice(&sector[(offset % SECTOR) as usize..][..head]);
        }
        let offset = offset + head as u64;
        if !middle.is_empty() {
            self.read(next, middle, offset)?;
        }
        if !last.is_empty() {
            self.read(next, &mut sector, offset + body as u64)?;
            last.copy_from_slice(&sector[..last.len()]);
        }
        Ok(())
    }

    /// Encrypts and writes whole sectors.
    fn write(&self, next: &Next, sectors: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let mut encrypted = Vec::new();
        let mut at = offset;
        for part in sectors.chunks(MAX_WRITE) {
            encrypted.clear();
            encrypted.extend(part);
            self.cipher.encrypt(at / SECTOR, &mut encrypted);
            next.pwrite(&encrypted, self.payload + at, flags)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes a part of one sector, which must be locked, and puts back what else is in it.
    fn write_part(&self, next: &Next, part: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let (start, within) = (offset / SECTOR * SECTOR, (offset % SECTOR) as usize);
        let mut sector = [0; SECTOR as usize];
        self.read(next, &mut sector, start)?;
        sector[within..][..part.len()].copy_from_slice(part);
        self.write(next, &sector, start, flags)
    }
}

/// The parts of a range, bytes: that of a sector at the beginning, whole sectors, that of a sector
/// at the end.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    head: usize,
    body: usize,
    tail: usize,
}

impl Parts {
    fn of(count: usize, offset: u64) -> Parts {
        let within = (offset % SECTOR) as usize;
        let head = if within == 0 { 0 } else { count.min(SECTOR as usize - within) };
        let tail = (count - head) % SECTOR as usize;
        Parts { head, body: count - head - tail, tail }
    }
}

impl OpenLayer for Handle {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        let below = next.size()?;
        let header = read_header(next, below)?;
        let cipher = match (&self.known, &self.passphrase) {
            (Some((master, cipher)), _) if *master == header.master => Arc::clone(cipher),
            (_, Some(passphrase)) => derive(&header, passphrase, self.client.as_ref(), next)?,
            (_, None) => {
                return Err(Error::msg(
                    "luks: the disk has another LUKS header than when the server was started: \
                     restart it",
                ));
            }
        };
        let payload = header.master.payload;
        // A last part of a sector cannot be decrypted.
        let size = (below - payload) / SECTOR * SECTOR;
        let _ = self.disk.set(Disk { cipher, payload, size });
        Ok(())
    }

    fn size(&self, _: &Next) -> Result<u64> {
        Ok(self.disk()?.size)
    }

    /// Whole sectors are best.
    fn block_size(&self, next: &Next) -> Result<BlockSize> {
        let below = next.block_size()?;
        let sector = SECTOR as u32;
        if below.is_unspecified() {
            return Ok(BlockSize { minimum: sector, preferred: sector, maximum: u32::MAX });
        }
        let at_least = |size: u32| size.max(sector);
        Ok(BlockSize {
            minimum: at_least(below.minimum),
            preferred: at_least(below.preferred),
            maximum: below.maximum,
        })
    }

    fn can_trim(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    /// Zeroes are encrypted and written.
    fn can_zero(&self, _: &Next) -> Result<Zero> {
        Ok(Zero::Emulate)
    }

    fn can_fast_zero(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn can_extents(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn can_cache(&self, _: &Next) -> Result<Cache> {
        Ok(Cache::Emulate)
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.disk()?.read_any(next, buf, offset)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let disk = self.disk()?;
        let Parts { head, body, .. } = Parts::of(buf.len(), offset);
        let (first, rest) = buf.split_at(head);
        let (middle, last) = rest.split_at(body);
        if !first.is_empty() {
            let _locked = self.lock(head as u64, offset, Sharing::Exclusive)?;
            disk.write_part(next, first, offset, flags)?;
        }
        let offset = offset + head as u64;
        if !middle.is_empty() {
            let _locked = self.lock(body as u64, offset, Sharing::Shared)?;
            disk.write(next, middle, offset, flags)?;
        }
        if !last.is_empty() {
            let offset = offset + body as u64;
            let _locked = self.lock(last.len() as u64, offset, Sharing::Exclusive)?;
            disk.write_part(next, last, offset, flags)?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod example;
#[cfg(test)]
mod tests;
