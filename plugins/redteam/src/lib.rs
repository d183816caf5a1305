//! Test only: a plugin whose code turns hostile once it is confined. Never part of an installed
//! program: `nbdkit-worker` has it only if it is built with the feature `red-team`.
//!
//! The export `""` is a small RAM disk that all clients share. Any other name is an attack,
//! `NAME=ARGUMENT,...`, made by the worker when the export is opened; the result is the
//! export's content. A worker that the sandbox ends cannot say so, which is what the tests look for
//! then.
//!
//! - `attack`: the names; `system`: attacks on the kernel and on other processes; `disk`: on files
//!   and the broker; `channel`: on the listener; `shared`: on what clients share; `raw`: system
//!   calls as they are
//! - `upstream`: what is no attack: reading from the endpoints that it has declared, as a plugin of
//!   a network disk does

#![deny(unsafe_code)]

mod attack;
mod channel;
mod code;
mod disk;
mod raw;
mod shared;
mod system;
mod upstream;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use nbdkit_api::paths::{self, Declared};
use nbdkit_api::shared::SharedFile;
use nbdkit_api::{
    Access, Connection, Endpoint, Error, Flags, Isolation, Needs, Open, Plugin, Result,
    ThreadModel, Value,
};
use shared::Region;

/// The disk of the export `""`, bytes.
const SIZE: u64 = 1 << 20;

/// The plugin: what it declares to need, the disk, and where shared memory is.
#[derive(Debug, Default)]
pub struct RedTeam {
    paths: Vec<PathBuf>,
    files: Vec<Declared>,
    endpoints: Vec<Endpoint>,
    /// Connects to the first before it serves.
    early: bool,
    serialize: bool,
    diskless: bool,
    disk: Option<Arc<SharedFile>>,
    regions: OnceLock<Vec<Region>>,
}

impl Plugin for RedTeam {
    fn name(&self) -> &str {
        "redteam"
    }

    /// `path`: a path that it declares to read, opening it itself. `disk`: one that it declares to
    /// be its disk, and has opened as the file plugin has. `endpoint`: one that it declares to
    /// connect to. `early`: whether it connects to the first in `after_fork`, too, and logs what
    /// comes. `serialize`: whether all requests take one lock, which clients share. `diskless`:
    /// whether there is no RAM disk.
    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "path" => self.paths.push(value.absolute_path()?),
            "disk" => self.files.push(Declared::file(value.absolute_path()?)),
            "endpoint" => self.endpoints.push(upstream::endpoint(value.str()?)?),
            "early" => self.early = value.boolean()?,
            "diskless" => self.diskless = value.boolean()?,
            "serialize" => self.serialize = value.boolean()?,
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn thread_model(&self) -> Result<ThreadModel> {
        Ok(if self.serialize { ThreadModel::SerializeAllRequests } else { ThreadModel::Parallel })
    }

    fn get_ready(&mut self) -> Result<()> {
        if !self.diskless {
            self.disk = Some(Arc::new(SharedFile::in_memory("redteam", SIZE)?));
        }
        Ok(())
    }

    /// The last chance to look at a map of our own memory.
    fn after_fork(&self) -> Result<()> {
        let _ = self.regions.set(shared::regions());
        if self.early {
            nbdkit_api::error!("early: {}", upstream::fetch(&self.endpoints, None, "0")?);
        }
        Ok(())
    }

    fn needs(&self, readonly: bool) -> Needs {
        let files = self.files.iter().cloned().map(|file| file.read_only(readonly));
        let needs = files.fold(Needs::nothing(), Needs::declare);
        let needs = self.endpoints.iter().cloned().fold(needs, Needs::connect_to);
        self.paths.iter().fold(needs, |needs, path| needs.path(path, Access::Read))
    }

    fn isolation(&self) -> Isolation {
        Isolation::Connection
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        if open.export.is_empty() {
            let disk = self.disk.as_ref().ok_or_else(|| Error::msg("redteam: no disk"))?;
            return Ok(Box::new(Disk(Arc::clone(disk))));
        }
        if let Some(argument) = open.export.strip_prefix("fetch=") {
            let client = open.client.map(|client| &**client);
            return Ok(Box::new(Outcome(upstream::fetch(&self.endpoints, client, argument)?)));
        }
        let regions = self.regions.get().map_or(&[][..], Vec::as_slice);
        let file = self.files.first().map(|file| paths::open(file, None, open.readonly));
        let file = file.transpose()?;
        Ok(Box::new(Outcome(attack::carry_out(open.export, regions, file.as_ref()))))
    }
}

struct Disk(Arc<SharedFile>);

impl Connection for Disk {
    fn size(&self) -> Result<u64> {
        Ok(SIZE)
    }

    fn can_write(&self) -> Result<bool> {
        Ok(true)
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }

    fn pwrite(&self, buf: &[u8], offset: u64, _flags: Flags) -> Result<()> {
        self.0.write_at(buf, offset)
    }
}

/// The result of an attack, as text.
struct Outcome(String);

impl Connection for Outcome {
    fn size(&self) -> Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let text = self.0.as_bytes().get(offset as usize..).unwrap_or_default();
        for (place, byte) in buf.iter_mut().zip(text) {
            *place = *byte;
        }
        Ok(())
    }
}
