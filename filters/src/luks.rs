//! nbdkit-luks-filter(1): decrypts and encrypts a LUKS disk, of version 1 or 2.
//!
//! The template derives the key before the first client, if it can open the disk without one, and
//! wipes the passphrase: workers inherit the key and not the passphrase. Otherwise each client
//! derives the key, and learns why that fails. Argon2 takes up to 4 GiB of memory for that, which
//! the template gives back before it confines itself; of clients that derive keys, one takes it at
//! a time.
//!
//! The header is hostile, and so is what the disk has instead of sectors: any bytes decrypt to
//! some.

mod cipher;
mod disk;
mod hash;
mod header;
mod json;
mod kdf;
mod luks1;
mod luks2;
mod metadata;
mod version;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nbdkit_api::shared::{LockedRange, RangeLock, SharedMutex, Sharing};
use nbdkit_api::{
    BlockSize, Cache, Client, Errno, Error, Filter, Flags, Layer, Needs, Next, NextConfig, Open,
    OpenLayer, Result, Slot, ThreadModel, Value, Zero, debug, parse,
};
use zeroize::Zeroizing;

use cipher::Cipher;
use disk::{Disk, Parts};
use header::{Header, Master};
use version::read_header;

/// Largest read, bytes, that the thread that parsed it decrypts at once: some ten microseconds. For
/// larger ones other processors are a help.
const MAX_AT_ONCE: usize = 64 << 10;

/// The filter: the passphrase until it is not needed any more, and the key from then on.
#[derive(Default)]
pub struct Luks {
    passphrase: Mutex<Option<Zeroizing<Vec<u8>>>>,
    /// The key that the template has derived, and what it is for.
    key: OnceLock<(Master, Arc<Cipher>)>,
    /// Whether the template may open what is below: not if that starts threads.
    is_early: AtomicBool,
    shared: Option<Arc<Shared>>,
}

/// What clients share besides the key.
struct Shared {
    /// Held while a part of a sector is written.
    sectors: RangeLock,
    /// Held while a key is derived that takes much memory.
    memory: SharedMutex<0>,
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
        let shared = Shared { sectors: RangeLock::new()?, memory: SharedMutex::new([])? };
        self.shared = Some(Arc::new(shared));
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        let is_early = !below.threads && !below.in_file && !below.undeclared;
        self.is_early.store(is_early, Ordering::Relaxed);
        let memory = u64::from(metadata::MAX_MEMORY) << 10;
        if is_early { below.memory_at_start(memory) } else { below }
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
        let shared = self.shared.as_ref();
        let shared = shared.ok_or_else(|| Error::msg("luks: opened before get_ready"))?;
        Ok(Box::new(Handle {
            client: open.client.cloned(),
            known: self.key.get().cloned(),
            passphrase: self.passphrase().clone(),
            shared: Arc::clone(shared),
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
            let header = read_header(|buf, at| next.pread(buf, at), next.size()?)?;
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

fn derive(
    header: &Header,
    passphrase: &[u8],
    client: Option<&Arc<Client>>,
    next: &Next,
) -> Result<Arc<Cipher>> {
    let read = |buf: &mut [u8], offset| next.pread(buf, offset);
    let key = kdf::master_key(header, passphrase, client, read)?;
    let area = header.master.area;
    let cipher = Cipher::with_sectors(area.mode, &key, area.sector);
    cipher.map(Arc::new).ok_or_else(|| Error::msg("luks: the key does not suit the mode"))
}

struct Handle {
    client: Option<Arc<Client>>,
    known: Option<(Master, Arc<Cipher>)>,
    passphrase: Option<Zeroizing<Vec<u8>>>,
    shared: Arc<Shared>,
    /// Known once the layer is prepared.
    disk: OnceLock<Disk>,
}

impl Handle {
    fn disk(&self) -> Result<&Disk> {
        self.disk.get().ok_or_else(|| Error::new(Errno::EIO, "luks: used before prepare"))
    }

    /// The key of a header that was just read.
    fn derive(&self, header: &Header, next: &Next) -> Result<Arc<Cipher>> {
        let Some(passphrase) = &self.passphrase else {
            return Err(Error::msg(
                "luks: the disk has another LUKS header than when the server was started: restart \
                 it",
            ));
        };
        let _locked = match header.takes_memory() {
            true => Some(self.shared.memory.lock_for(self.client.as_deref())?),
            false => None,
        };
        derive(header, passphrase, self.client.as_ref(), next)
    }

    /// Locks the sectors of a range. All writers do, so that one who writes a part of a sector, and
    /// puts back what else is in it, puts back nothing that another client has overwritten.
    fn lock(
        &self,
        disk: &Disk,
        count: u64,
        offset: u64,
        sharing: Sharing,
    ) -> Result<LockedRange<'_>> {
        let range = offset / disk.sector()..(offset + count).div_ceil(disk.sector());
        self.shared.sectors.lock(self.client.as_deref(), range, sharing)
    }
}

impl OpenLayer for Handle {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        let below = next.size()?;
        let header = read_header(|buf, at| next.pread(buf, at), below)?;
        let cipher = match &self.known {
            Some((master, cipher)) if *master == header.master => Arc::clone(cipher),
            _ => self.derive(&header, next)?,
        };
        let disk = Disk::new(cipher, header.master.area, header.may_trim, below);
        let _ = self.disk.set(disk);
        Ok(())
    }

    fn size(&self, _: &Next) -> Result<u64> {
        Ok(self.disk()?.size)
    }

    /// Whole sectors are best.
    fn block_size(&self, next: &Next) -> Result<BlockSize> {
        let below = next.block_size()?;
        let sector = self.disk()?.sector() as u32;
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

    /// Only if the LUKS2 header has the flag `allow-discards`, as with dm-crypt: trimming shows
    /// anybody who can read the encrypted disk which sectors are unused. A trimmed sector reads as
    /// garbage, the decryption of zeroes.
    fn can_trim(&self, next: &Next) -> Result<bool> {
        Ok(self.disk()?.may_trim && next.can_trim()?)
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
        self.disk()?.read(next, buf, offset)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let disk = self.disk()?;
        let Parts { head, body, .. } = disk.parts(buf.len(), offset);
        let (first, rest) = buf.split_at(head);
        let (middle, last) = rest.split_at(body);
        if !first.is_empty() {
            let _locked = self.lock(disk, head as u64, offset, Sharing::Exclusive)?;
            disk.write_part(next, first, offset, flags)?;
        }
        let offset = offset + head as u64;
        if !middle.is_empty() {
            let _locked = self.lock(disk, body as u64, offset, Sharing::Shared)?;
            disk.write(next, middle, offset, flags)?;
        }
        if !last.is_empty() {
            let offset = offset + body as u64;
            let _locked = self.lock(disk, last.len() as u64, offset, Sharing::Exclusive)?;
            disk.write_part(next, last, offset, flags)?;
        }
        Ok(())
    }
    /// Whole sectors; parts at the ends stay as they are.
    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let disk = self.disk()?;
        let start = offset.next_multiple_of(disk.sector());
        let end = (offset + count) / disk.sector() * disk.sector();
        if start >= end {
            return Ok(());
        }
        let _locked = self.lock(disk, end - start, start, Sharing::Shared)?;
        next.trim(end - start, disk.below(start), flags)
    }

    /// What is below, if that need not wait.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        if buf.len() > MAX_AT_ONCE {
            return None;
        }
        self.disk().ok()?.try_read(next, buf, offset)
    }
}

#[cfg(test)]
pub(crate) mod example;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod example2;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
#[cfg(test)]
mod luks2_tests;
#[cfg(test)]
mod tests;
