//! nbdkit-cow-filter(1): keeps what clients write in a temporary overlay, so that a disk that is
//! never written below can be written by them all and looks the same to them all.
//!
//! The template makes the overlay; workers share it. Per export name there is a table with a word
//! for each block (`table`); the data of all exports lies in one unlinked file
//! (`overlay`). A worker may be killed at any moment, so a block's data is written before its word
//! in the table.

mod accounts;
mod blocks;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod overlay;
mod quota;
mod table;

use std::sync::{Arc, OnceLock};

use nbdkit_api::{
    BlockSize, Blocking, Cache, DataPath, Direction, Errno, Error, ExtentKind, Extents, Filter,
    Flags, Fua, Needs, Next, NextConfig, Open, OpenLayer, Result, Slot, ThreadModel, Value, Zero,
    log,
};

use accounts::Limits;
use blocks::{Blocks, Contents, Data};
use overlay::Overlay;

use crate::on_read::OnRead;

/// Largest preferred block size that may be advertised, bytes (NBD protocol, "Block size
/// constraints").
const MAX_PREFERRED: u32 = 32 << 20;

/// The filter: its parameters and, once ready, the overlay.
#[derive(Debug)]
pub struct Cow {
    /// Bytes, a power of two.
    block_size: u64,
    on_cache: bool,
    on_read: OnRead,
    /// Bytes.
    limits: Limits,
    overlay: Option<Arc<Overlay>>,
}

impl Default for Cow {
    fn default() -> Cow {
        Cow {
            block_size: 64 << 10,
            on_cache: false,
            on_read: OnRead::Never,
            limits: Limits::default(),
            overlay: None,
        }
    }
}

impl Filter for Cow {
    fn name(&self) -> &str {
        "cow"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit copy-on-write (COW) filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "cow-block-size=<N>       Set COW block size.\n\
             cow-max=<SIZE>           Limit the overlay of each export.\n\
             cow-max-connection=<SIZE>\n                         Limit what each connection adds.\n\
             cow-max-total=<SIZE>     Limit the overlays of all exports together.\n\
             cow-on-cache=<BOOL>      Copy cache (prefetch) requests to the overlay.\n\
             cow-on-read=<BOOL>|/PATH Copy read requests to the overlay.",
        )
    }

    fn debug_flags(&self) -> &'static [&'static str] {
        &["verbose"]
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "cow-block-size" => {
                let size = value.size()?;
                if !size.is_power_of_two() || !(4096..=2 << 30).contains(&size) {
                    return Err(Error::msg(
                        "cow-block-size is out of range (4096..2G) or not a power of 2",
                    ));
                }
                self.block_size = size;
            }
            "cow-max" => self.limits.export = Some(value.size()?),
            "cow-max-connection" => self.limits.connection = Some(value.size()?),
            "cow-max-total" => self.limits.total = Some(value.size()?),
            "cow-on-cache" => self.on_cache = value.boolean()?,
            "cow-on-read" => self.on_read = OnRead::parse(value)?,
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        self.limits = Limits {
            export: self.blocks("cow-max", self.limits.export)?,
            total: self.blocks("cow-max-total", self.limits.total)?,
            connection: self.blocks("cow-max-connection", self.limits.connection)?,
        };
        next.config_complete()
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.overlay = Some(Arc::new(Overlay::new(self.block_size, self.limits)?));
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        self.on_read.needs(below.read_only())
    }

    /// What clients write is nowhere else.
    fn keeps_state(&self) -> bool {
        true
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(&open.readonly(true))?;
        let overlay = self
            .overlay
            .as_ref()
            .ok_or_else(|| Error::new(Errno::EINVAL, "cow: opened before get_ready"))?;
        Ok(Box::new(Handle {
            export: open.export.to_owned(),
            overlay: Arc::clone(overlay),
            on_cache: self.on_cache,
            on_read: self.on_read.clone(),
            blocks: OnceLock::new(),
        }))
    }
}

impl Cow {
    /// How many blocks a limit in bytes allows.
    fn blocks(&self, key: &str, limit: Option<u64>) -> Result<Option<u64>> {
        let Some(bytes) = limit else { return Ok(None) };
        if bytes < self.block_size {
            let size = self.block_size;
            return Err(Error::msg(format!("{key} is smaller than a block ({size} bytes)")));
        }
        Ok(Some(bytes / self.block_size))
    }
}

struct Handle {
    export: String,
    overlay: Arc<Overlay>,
    on_cache: bool,
    on_read: OnRead,
    /// Known once the size of the disk is.
    blocks: OnceLock<Blocks>,
}

impl Handle {
    fn blocks(&self) -> Result<&Blocks> {
        self.blocks.get().ok_or_else(|| Error::new(Errno::EIO, "cow: used before prepare"))
    }
}

impl OpenLayer for Handle {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        let blocks = Blocks::new(Arc::clone(&self.overlay), &self.export, next.size()?)?;
        if let Some(quota) = blocks.quota().filter(|_| log::verbose()) {
            log::debug(&format!("cow: the overlay of this export holds {} bytes", quota.bytes()?));
        }
        let _ = self.blocks.set(blocks);
        Ok(())
    }

    /// Blocks of the overlay are what is best written whole.
    fn block_size(&self, next: &Next) -> Result<BlockSize> {
        let below = next.block_size()?;
        let own = u32::try_from(self.overlay.block_size()).unwrap_or(u32::MAX);
        Ok(if below.is_unspecified() {
            BlockSize { minimum: 1, preferred: own.min(MAX_PREFERRED), maximum: u32::MAX }
        } else if own <= below.maximum.min(MAX_PREFERRED) {
            BlockSize { preferred: below.preferred.max(own), ..below }
        } else {
            below
        })
    }

    fn can_write(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn can_flush(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn can_trim(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    /// As in nbdkit, clients write zeroes like other data.
    fn can_zero(&self, _: &Next) -> Result<Zero> {
        Ok(Zero::None)
    }

    fn can_extents(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn can_fua(&self, _: &Next) -> Result<Fua> {
        Ok(Fua::Native)
    }

    /// All clients share the overlay, and a flush has nothing to do.
    fn can_multi_conn(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn can_cache(&self, next: &Next) -> Result<Cache> {
        let native = self.on_cache || next.can_cache()? != Cache::None;
        Ok(if native { Cache::Native } else { Cache::Emulate })
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let blocks = self.blocks()?;
        if self.on_read.now() {
            blocks.copy_up(next, buf.len() as u64, offset)?;
        }
        let mut rest = buf;
        for run in blocks.runs(rest.len() as u64, offset) {
            let run = run?;
            if log::verbose() && log::flag("cow", "verbose") != 0 {
                log::debug(&format!(
                    "cow: read {} bytes at {}: {:?}",
                    run.count, run.offset, run.contents
                ));
            }
            let (part, others) = rest.split_at_mut(run.count as usize);
            match run.contents {
                Contents::Below => next.pread(part, run.offset)?,
                Contents::Overlay(at) => self.overlay.read(part, at)?,
                Contents::Trimmed => part.fill(0),
            }
            rest = others;
        }
        Ok(())
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, _: Flags) -> Result<()> {
        self.blocks()?.write(next, Data::Bytes(buf), offset)
    }

    /// What clients wrote is gone with the server, so none of it need ever be on stable storage.
    fn flush(&self, _: &Next) -> Result<()> {
        Ok(())
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, _: Flags) -> Result<()> {
        self.blocks()?.trim(next, count, offset)
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        for run in self.blocks()?.runs(count, offset) {
            let run = run?;
            match run.contents {
                Contents::Overlay(_) => extents.add(run.offset, run.count, ExtentKind::DATA)?,
                Contents::Trimmed => extents.add(run.offset, run.count, ExtentKind::SPARSE)?,
                Contents::Below => {
                    let end = run.offset + run.count;
                    let mut below = Extents::new(run.offset, end);
                    next.extents(run.count, run.offset, flags, &mut below)?;
                    extents.add_shifted(&below, 0)?;
                    if below.covered_to() < end {
                        break;
                    }
                }
            }
            if flags.contains(Flags::REQ_ONE) {
                break;
            }
        }
        Ok(())
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        let blocks = self.blocks()?;
        if self.on_cache {
            return blocks.copy_up(next, count, offset);
        }
        for run in blocks.runs(count, offset) {
            let run = run?;
            if matches!(run.contents, Contents::Below) && next.can_cache()? != Cache::None {
                next.cache(run.count, run.offset)?;
            }
        }
        Ok(())
    }

    fn data_path(&self, direction: Direction) -> DataPath {
        match direction {
            Direction::Read => DataPath::PerRequest,
            Direction::Write => DataPath::Opaque,
        }
    }

    fn passes(&self, _: &Next, _: Direction, count: u64, offset: u64) -> bool {
        let first = || self.blocks().ok()?.runs(count, offset).next()?.ok();
        self.on_read.is_never()
            && first().is_some_and(|run| run.contents == Contents::Below && run.count == count)
    }

    fn blocking(&self) -> Blocking {
        Blocking::Short
    }

    /// What of the overlay is in the page cache, and below one run.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        // A line for each run.
        if log::verbose() && log::flag("cow", "verbose") != 0 {
            return None;
        }
        let blocks = match self.blocks() {
            Ok(blocks) => blocks,
            Err(error) => return Some(Err(error)),
        };
        let (mut rest, mut below) = (buf, None);
        for run in blocks.runs(rest.len() as u64, offset) {
            let run = run.ok()?;
            let (part, others) = rest.split_at_mut(run.count as usize);
            rest = others;
            match run.contents {
                Contents::Trimmed => part.fill(0),
                Contents::Overlay(at) if self.overlay.read_now(part, at) => {}
                Contents::Below if below.is_none() && !self.on_read.now() => {
                    below = Some((part, run.offset));
                }
                Contents::Overlay(_) | Contents::Below => return None,
            }
        }
        match below {
            Some((part, offset)) => next.try_pread(part, offset),
            None => Some(Ok(())),
        }
    }
}

#[cfg(test)]
mod quota_tests;
#[cfg(test)]
mod tests;
