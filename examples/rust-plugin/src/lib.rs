//! A plugin in Rust in a file of its own: serves a part of a file as a disk.
//!
//! ```text
//! nbdkit ./libnbdkit_slice_plugin.so file=PATH [offset=SIZE] length=SIZE
//! ```
//!
//! Written as a built-in plugin is. The last line exports it.

use std::os::unix::fs::FileExt;

use nbdkit_export::nbdkit_api::paths::{self, Declared, Opened};
use nbdkit_export::nbdkit_api::{
    Connection, Error, Flags, Needs, Open, Plugin, Result, ResultExt, Value,
};

/// The plugin: which file, and which part of it.
#[derive(Debug, Default)]
struct Slice {
    file: Option<Declared>,
    offset: u64,
    length: u64,
}

impl Plugin for Slice {
    fn name(&self) -> &str {
        "slice"
    }

    fn longname(&self) -> Option<&str> {
        Some("example: a part of a file")
    }

    fn version(&self) -> Option<&str> {
        Some(env!("CARGO_PKG_VERSION"))
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "file=<PATH>      (required) The file.\n\
             offset=<SIZE>    Where the disk begins (default: 0).\n\
             length=<SIZE>    (required) How large the disk is.",
        )
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("file")
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "file" => self.file = Some(Declared::file(value.realpath()?)),
            "offset" => self.offset = value.size()?,
            "length" => self.length = value.size()?,
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        match (&self.file, self.length) {
            (None, _) => Err(Error::msg("file=PATH is missing")),
            (_, 0) => Err(Error::msg("length=SIZE is missing")),
            _ => Ok(()),
        }
    }

    /// What `open` opens.
    fn needs(&self, readonly: bool) -> Needs {
        let needs = Needs::nothing();
        self.file.iter().fold(needs, |needs, file| needs.declare(file.clone().read_only(readonly)))
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        let Some(file) = &self.file else { return Err(Error::msg("there is no file")) };
        let opened = paths::open(file, None, open.readonly)?;
        Ok(Box::new(Handle { opened, offset: self.offset, length: self.length }))
    }
}

/// What a client has open.
struct Handle {
    opened: Opened,
    offset: u64,
    length: u64,
}

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        Ok(self.length)
    }

    fn can_write(&self) -> Result<bool> {
        Ok(self.opened.writable)
    }

    fn can_flush(&self) -> Result<bool> {
        Ok(true)
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let read = self.opened.file.read_exact_at(buf, self.offset + offset);
        read.or_error(|| format!("read: {}", self.opened.name))
    }

    fn pwrite(&self, buf: &[u8], offset: u64, _flags: Flags) -> Result<()> {
        let written = self.opened.file.write_all_at(buf, self.offset + offset);
        written.or_error(|| format!("write: {}", self.opened.name))
    }

    fn flush(&self) -> Result<()> {
        self.opened.file.sync_data().or_error(|| format!("fdatasync: {}", self.opened.name))
    }
}

nbdkit_export::export_plugin!(Slice::default());
