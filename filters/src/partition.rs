//! nbdkit-partition-filter(1): serves one partition of a disk.
//!
//! The table is read for each connection, as exports and the table itself may differ.

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod example;
pub mod table;

use nbdkit_api::{Error, Filter, NextConfig, Open, OpenLayer, Result, Slot, Value};

use crate::window::Window;
use table::{Sector, Table};

/// The filter: which partition, counted from 1.
#[derive(Debug, Default)]
pub struct Partition {
    number: Option<u32>,
    sector: Option<Sector>,
}

impl Filter for Partition {
    fn name(&self) -> &str {
        "partition"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit partition filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "partition=<PART>    (required) The partition number (counting from 1).\n\
             partition-sectorsize=512|4k\n\
             \x20                   The sector size (default: that of the plugin, or 512).",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "partition" => {
                let number = value.integer(key)?;
                if number == 0 {
                    return Err(Error::msg("invalid partition number"));
                }
                self.number = Some(number);
            }
            "partition-sectorsize" => {
                let sector = Sector::of_size(value.size()?);
                let sector =
                    sector.ok_or_else(|| Error::msg("partition-sectorsize must be 512 or 4096"))?;
                self.sector = Some(sector);
            }
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        if self.number.is_none() {
            return Err(Error::msg("you must supply the partition parameter on the command line"));
        }
        next.config_complete()
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let (number, sector) = (self.number.unwrap_or(1), self.sector);
        Ok(Window::new(move |next| {
            let sector = match sector {
                Some(sector) => sector,
                None => Sector::of_size(next.block_size()?.minimum.into()).unwrap_or_default(),
            };
            let read = |buf: &mut [u8], offset| next.pread(buf, offset);
            Table { read: &read, size: next.size()?, sector }.find(number)
        }))
    }
}

#[cfg(test)]
mod tests;
