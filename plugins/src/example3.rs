//! nbdkit-example3-plugin(1): a writable disk for each client, thrown away when it disconnects. An
//! example of what a connection has for itself.

#![forbid(unsafe_code)]

use std::io::Write;

use nbdkit_api::shared::SharedFile;
use nbdkit_api::shared::file::temporary_directory;
use nbdkit_api::{Access, Blocking, Connection, Error, Flags, Needs, Open, Plugin, Result, Value};

/// Bytes, unless `size` says otherwise.
const SIZE: u64 = 100 << 20;

/// The plugin: how large the disks are, bytes.
#[derive(Debug)]
pub struct Example3 {
    size: u64,
}

impl Default for Example3 {
    fn default() -> Example3 {
        Example3 { size: SIZE }
    }
}

impl Plugin for Example3 {
    fn name(&self) -> &str {
        "example3"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "dump_plugin",
            "config",
            "config_help",
            "open",
            "get_size",
            "can_write",
            "can_flush",
            "pread",
            "pwrite",
            "flush",
        ]
    }

    fn config_help(&self) -> Option<&str> {
        Some("size=<SIZE>  (optional) Size of the backing disk (default: 100M)")
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "size" => self.size = value.size()?,
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn dump_plugin(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "example3_extra=hello")
    }

    /// Where clients' disks are, without a name.
    fn needs(&self, _readonly: bool) -> Needs {
        Needs::nothing().path(temporary_directory(), Access::Write)
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Handle {
            disk: SharedFile::temporary("example3", self.size)?,
            size: self.size,
        }))
    }
}

struct Handle {
    disk: SharedFile,
    /// Bytes.
    size: u64,
}

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        Ok(self.size)
    }

    fn can_write(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_flush(&self) -> Result<bool> {
        Ok(true)
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.disk.read_at(buf, offset)
    }

    fn pwrite(&self, buf: &[u8], offset: u64, _flags: Flags) -> Result<()> {
        self.disk.write_at(buf, offset)
    }

    fn flush(&self) -> Result<()> {
        self.disk.sync()
    }

    fn blocking(&self) -> Blocking {
        Blocking::Short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_has_a_disk_of_its_own() {
        let mut plugin = Example3::default();
        assert!(plugin.config("size", Value::new("x")).is_err());
        assert!(plugin.config("foo", Value::new("1")).is_err());
        plugin.config("size", Value::new("1M")).unwrap();
        let open = Open { client: None, readonly: false, export: "", tls: false };
        let (one, other) = (plugin.open(&open).unwrap(), plugin.open(&open).unwrap());
        one.pwrite(&[7; 512], 0, Flags::empty()).unwrap();
        let mut buf = [1; 512];
        other.pread(&mut buf, 0).unwrap();
        assert_eq!((buf, other.size().unwrap()), ([0; 512], 1 << 20));
    }
}
