//! nbdkit-tmpdisk-plugin(1): a fresh disk for each client, made by mkfs(8) or a command when the
//! client comes.
//!
//! The disk's name is removed as soon as the disk is open, so that it goes with its client however
//! that ends.

#![forbid(unsafe_code)]

use std::ffi::OsStr;

use nbdkit_api::paths::{self, Declared, Found, Opened};
use nbdkit_api::shared::file::temporary_directory;
use nbdkit_api::{Access, Connection, Error, Needs, Open, Plugin, Result, Value, client};

use crate::made_disk::{MadeDisk, Recipe, Workplace, sweep};

/// The name of each disk.
const DISK: &str = "disk";

/// The plugin: how disks are made.
#[derive(Debug, Default)]
pub struct TmpDisk {
    recipe: Recipe,
}

impl Plugin for TmpDisk {
    fn name(&self) -> &str {
        "tmpdisk"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "config",
            "config_complete",
            "config_help",
            "get_ready",
            "cleanup",
            "open",
            "get_size",
            "can_write",
            "can_flush",
            "can_trim",
            "can_zero",
            "can_extents",
            "can_fua",
            "can_multi_conn",
            "can_cache",
            "pread",
            "pwrite",
            "flush",
            "trim",
            "zero",
            "extents",
            "cache",
        ]
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("size")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "size=<SIZE>      (required) Virtual filesystem size.\n\
             label=<LABEL>               The filesystem label.\n\
             type=ext4|...               The filesystem type.\n\
             command=<COMMAND>           Alternate command instead of mkfs.",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        self.recipe.config(key, value)
    }

    fn config_complete(&mut self) -> Result<()> {
        if self.recipe.has_size() { Ok(()) } else { Err(Error::msg("size parameter is required")) }
    }

    fn get_ready(&mut self) -> Result<()> {
        self.recipe.check()
    }

    fn needs(&self, _readonly: bool) -> Needs {
        Needs::nothing().programs().path(temporary_directory(), Access::Write)
    }

    /// Of workers that were killed while a disk was made.
    fn cleanup(&self) {
        sweep(&temporary_directory());
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        let client = open.client.map(|client| &**client);
        client::check_present(client)?;
        let workplace = Workplace::new(
            &std::path::absolute(temporary_directory())
                .map_err(|error| Error::io("absolute path: $TMPDIR", &error))?,
        )?;
        let disk = workplace.path().join(DISK);
        self.recipe.make(&disk, client)?;
        let made = Declared::directory(workplace.path(), true);
        let found = paths::find(&made, Some(OsStr::new(DISK)), !open.readonly);
        let Found { file, writable, is_block_device } =
            found.map_err(|why| why.into_error(&disk))?;
        let name = "tmpdisk".to_owned();
        let opened = Opened { file: file.into(), name, writable, is_block_device };
        Ok(Box::new(MadeDisk::new(opened, false)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_required_and_disk_no_parameter() {
        let mut plugin = TmpDisk::default();
        let why = plugin.config_complete().unwrap_err();
        assert_eq!(why.message(), "size parameter is required");
        let why = plugin.config("disk", Value::new("x")).unwrap_err();
        assert_eq!(why.message(), "'disk' parameter cannot be set on the command line");
        plugin.config("size", Value::new("1M")).unwrap();
        plugin.config_complete().unwrap();
    }
}
