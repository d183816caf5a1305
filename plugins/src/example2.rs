//! nbdkit-example2-plugin(1): serves a file for reading. An example of parameters, of a declared
//! path and of a debug flag.

#![forbid(unsafe_code)]

use std::io::Write;
use std::os::unix::fs::FileExt;

use nbdkit_api::paths::{self, Declared, Opened};
use nbdkit_api::{Blocking, Connection, Error, Needs, Open, Plugin, Result, ResultExt, Value, log};

/// The plugin: which file it serves.
#[derive(Debug, Default)]
pub struct Example2 {
    file: Option<Declared>,
}

impl Plugin for Example2 {
    fn name(&self) -> &str {
        "example2"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &["dump_plugin", "config", "config_complete", "config_help", "open", "get_size", "pread"]
    }

    fn config_help(&self) -> Option<&str> {
        Some("file=<FILENAME>     (required) The filename to serve.")
    }

    fn debug_flags(&self) -> &'static [&'static str] {
        &["extra"]
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            // The working directory may be another one when a client comes.
            "file" => self.file = Some(Declared::file(value.realpath()?).read_only(true)),
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        match &self.file {
            Some(_) => Ok(()),
            None => Err(Error::msg(
                "you must supply the file=<FILENAME> parameter \
                 after the plugin name on the command line",
            )),
        }
    }

    fn dump_plugin(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "example2_extra=hello")
    }

    fn needs(&self, _readonly: bool) -> Needs {
        self.file.iter().cloned().fold(Needs::nothing(), Needs::declare)
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        let file = self.file.as_ref().ok_or_else(|| Error::msg("example2: not configured"))?;
        let opened = paths::open(file, None, true)?;
        if opened.is_block_device {
            return Err(Error::msg(format!("{} is a block device", opened.name)));
        }
        let size = opened.file.metadata().or_error(|| format!("fstat: {}", opened.name))?.len();
        if log::flag("example2", "extra") != 0 {
            nbdkit_api::debug!("extra debugging: statbuf.st_size = {size}");
        }
        Ok(Box::new(Handle { opened, size }))
    }
}

struct Handle {
    opened: Opened,
    /// Bytes.
    size: u64,
}

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        Ok(self.size)
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        // Fails if the file has become shorter.
        self.opened
            .file
            .read_exact_at(buf, offset)
            .or_error(|| format!("pread: {}", self.opened.name))
    }

    fn blocking(&self) -> Blocking {
        Blocking::Short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_required() {
        let mut plugin = Example2::default();
        let why = plugin.config_complete().unwrap_err();
        assert!(why.message().starts_with("you must supply the file=<FILENAME> parameter"));
        assert!(plugin.config("foo", Value::new("1")).is_err());
        assert!(plugin.config("file", Value::new("/no/such/file")).is_err());
        plugin.config("file", Value::new("/dev/null")).unwrap();
        plugin.config_complete().unwrap();
        assert!(!plugin.needs(false).writes());
        let open = Open { client: None, readonly: false, export: "", tls: false };
        assert!(plugin.open(&open).is_err());
    }
}
