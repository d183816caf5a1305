//! nbdkit-nocache-filter(1): takes prefetching (NBD_CMD_CACHE) away.

use nbdkit_api::{
    Cache, DataPath, Direction, Error, Filter, Next, NextConfig, Open, OpenLayer, Result, Slot,
    Value,
};

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    #[default]
    None,
    Emulate,
    Nop,
}

/// The filter: its mode.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoCache {
    mode: Mode,
}

impl Filter for NoCache {
    fn name(&self) -> &str {
        "nocache"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit nocache filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("cachemode=<MODE>     Either 'none' (default), 'emulate', or 'nop'.")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        if key != "cachemode" {
            return next.config(key, value);
        }
        self.mode = match value.str()? {
            "none" => Mode::None,
            "emulate" => Mode::Emulate,
            "nop" => Mode::Nop,
            other => return Err(Error::msg(format!("unknown cachemode '{other}'"))),
        };
        Ok(())
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(*self))
    }
}

impl OpenLayer for NoCache {
    fn can_cache(&self, _: &Next) -> Result<Cache> {
        Ok(match self.mode {
            Mode::None => Cache::None,
            Mode::Emulate => Cache::Emulate,
            Mode::Nop => Cache::Native,
        })
    }

    /// Comes only in mode `nop`; emulation is the server's.
    fn cache(&self, _: &Next, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Transparent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::sync::Arc;

    #[test]
    fn prefetches_are_refused_read_or_ignored() {
        for (mode, can, calls) in [
            ("none", Cache::None, None),
            ("emulate", Cache::Emulate, Some(vec!["pread 10@5"])),
            ("nop", Cache::Native, Some(vec![])),
        ] {
            let disk = Arc::new(Disk::new(512));
            let backend = testing::backend(&disk, &["nocache"], &[("cachemode", mode)]);
            assert_eq!(backend.can_cache().unwrap(), can);
            disk.take_calls();
            assert_eq!(
                backend.cache(10, 5).ok().map(|()| disk.take_calls()),
                calls.map(|c| { c.into_iter().map(str::to_owned).collect::<Vec<_>>() })
            );
        }
        assert_eq!(
            testing::config_error("nocache", &[("cachemode", "x")]),
            "unknown cachemode 'x'"
        );
    }
}
