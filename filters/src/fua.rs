//! nbdkit-fua-filter(1): changes what is done about Forced Unit Access and flush.

use nbdkit_api::{
    DataPath, Direction, Errno, Error, Filter, Flags, Fua, Next, NextConfig, Open, OpenLayer,
    Result, Slot, Value,
};

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    #[default]
    None,
    Emulate,
    Native,
    Force,
    Pass,
    Discard,
}

/// The filter: its mode, and whether to flush when a connection ends.
#[derive(Debug, Default, Clone, Copy)]
pub struct FuaFilter {
    mode: Mode,
    flush_on_close: bool,
}

impl Filter for FuaFilter {
    fn name(&self) -> &str {
        "fua"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit fua filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "fuamode=<MODE>         One of 'none' (default), 'emulate', 'native',\n\
             \x20                      'force', 'pass', 'discard'.\n\
             flush-on-close=<BOOL>  Flush when each connection closes (default false).",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "fuamode" => {
                self.mode = match value.str()? {
                    "none" => Mode::None,
                    "emulate" => Mode::Emulate,
                    "native" => Mode::Native,
                    "force" => Mode::Force,
                    "pass" => Mode::Pass,
                    "discard" => Mode::Discard,
                    other => return Err(Error::msg(format!("unknown fuamode '{other}'"))),
                }
            }
            "flush-on-close" | "flush_on_close" => self.flush_on_close = value.boolean()?,
            _ => return next.config(key, value),
        }
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

impl FuaFilter {
    /// The flags that a write below gets, and whether a flush stands in for FUA after it.
    fn below(&self, flags: Flags) -> (Flags, bool) {
        match self.mode {
            Mode::None | Mode::Native | Mode::Pass => (flags, false),
            Mode::Emulate => (flags - Flags::FUA, flags.contains(Flags::FUA)),
            Mode::Force => (flags | Flags::FUA, false),
            Mode::Discard => (flags - Flags::FUA, false),
        }
    }
}

impl OpenLayer for FuaFilter {
    fn prepare(&self, next: &Next, readonly: bool) -> Result<()> {
        let unsupported = |what| Err(Error::new(Errno::EOPNOTSUPP, what));
        if self.flush_on_close && !next.can_flush()? {
            return unsupported("flush-on-close requires plugin flush support");
        }
        // FUA means nothing to a connection that does not write.
        if readonly {
            return Ok(());
        }
        match self.mode {
            Mode::Emulate if !next.can_flush()? => {
                unsupported("fuamode 'emulate' requires plugin flush support")
            }
            Mode::Native if next.can_fua()? == Fua::None => {
                unsupported("fuamode 'native' requires plugin fua support")
            }
            Mode::Force if next.can_fua()? == Fua::None => {
                unsupported("fuamode 'force' requires plugin fua support")
            }
            _ => Ok(()),
        }
    }

    fn finalize(&self, next: &Next) -> Result<()> {
        if self.flush_on_close { next.flush() } else { Ok(()) }
    }

    fn can_flush(&self, next: &Next) -> Result<bool> {
        match self.mode {
            Mode::Force | Mode::Discard => Ok(true),
            Mode::None | Mode::Emulate | Mode::Native | Mode::Pass => next.can_flush(),
        }
    }

    fn can_fua(&self, next: &Next) -> Result<Fua> {
        match self.mode {
            Mode::None => Ok(Fua::None),
            Mode::Emulate => Ok(Fua::Emulate),
            Mode::Native | Mode::Force | Mode::Discard => Ok(Fua::Native),
            Mode::Pass => next.can_fua(),
        }
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let (flags, flush) = self.below(flags);
        next.pwrite(buf, offset, flags)?;
        if flush { next.flush() } else { Ok(()) }
    }

    fn flush(&self, next: &Next) -> Result<()> {
        match self.mode {
            // Every write is on stable storage already, or none need be.
            Mode::Force | Mode::Discard => Ok(()),
            Mode::None | Mode::Emulate | Mode::Native | Mode::Pass => next.flush(),
        }
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let (flags, flush) = self.below(flags);
        next.trim(count, offset, flags)?;
        if flush { next.flush() } else { Ok(()) }
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let (flags, flush) = self.below(flags);
        next.zero(count, offset, flags)?;
        if flush { next.flush() } else { Ok(()) }
    }

    fn data_path(&self, direction: Direction) -> DataPath {
        let adds_fua = direction == Direction::Write && self.mode == Mode::Force;
        if adds_fua { DataPath::Opaque } else { DataPath::Transparent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::sync::Arc;

    #[test]
    fn writes_and_flushes_reach_the_plugin_as_the_mode_says() {
        for (mode, can, plain, fua, flush) in [
            ("none", Fua::None, vec!["pwrite 1@0"], vec!["pwrite 1@0 FUA"], vec!["flush"]),
            (
                "emulate",
                Fua::Emulate,
                vec!["pwrite 1@0"],
                vec!["pwrite 1@0", "flush"],
                vec!["flush"],
            ),
            ("native", Fua::Native, vec!["pwrite 1@0"], vec!["pwrite 1@0 FUA"], vec!["flush"]),
            ("force", Fua::Native, vec!["pwrite 1@0 FUA"], vec!["pwrite 1@0 FUA"], vec![]),
            ("pass", Fua::Native, vec!["pwrite 1@0"], vec!["pwrite 1@0 FUA"], vec!["flush"]),
            ("discard", Fua::Native, vec!["pwrite 1@0"], vec!["pwrite 1@0"], vec![]),
        ] {
            let disk = Arc::new(Disk::new(512));
            let backend = testing::backend(&disk, &["fua"], &[("fuamode", mode)]);
            assert_eq!(backend.can_fua().unwrap(), can, "{mode}");
            disk.take_calls();
            backend.pwrite(b"x", 0, Flags::empty()).unwrap();
            assert_eq!(disk.take_calls(), plain, "{mode}");
            backend.pwrite(b"x", 0, Flags::FUA).unwrap();
            assert_eq!(disk.take_calls(), fua, "{mode}");
            backend.flush().unwrap();
            assert_eq!(disk.take_calls(), flush, "{mode}");
        }
    }

    #[test]
    fn trim_and_zero_follow_the_mode() {
        let disk = Arc::new(Disk::new(512));
        let backend = testing::backend(&disk, &["fua"], &[("fuamode", "emulate")]);
        disk.take_calls();
        backend.trim(1, 0, Flags::FUA).unwrap();
        backend.zero(2, 0, Flags::FUA | Flags::MAY_TRIM).unwrap();
        assert_eq!(disk.take_calls(), ["trim 1@0", "flush", "zero 2@0 MAY_TRIM", "flush"]);
    }

    #[test]
    fn a_plugin_without_flush_is_refused_where_flush_is_needed() {
        let disk = Arc::new(Disk { flush: false, fua: Fua::None, ..Disk::new(512) });
        for (params, why) in [
            ([("fuamode", "emulate")], "fuamode 'emulate' requires plugin flush support"),
            ([("fuamode", "native")], "fuamode 'native' requires plugin fua support"),
            ([("fuamode", "force")], "fuamode 'force' requires plugin fua support"),
            ([("flush-on-close", "true")], "flush-on-close requires plugin flush support"),
        ] {
            let layer = testing::layer(&disk, &["fua"], &params);
            assert_eq!(testing::try_open(&layer, "", false).unwrap_err().message(), why);
        }
        let layer = testing::layer(&disk, &["fua"], &[("fuamode", "force")]);
        testing::try_open(&layer, "", true).unwrap();
    }

    #[test]
    fn closing_flushes_if_wanted() {
        let disk = Arc::new(Disk::new(512));
        let params = [("fuamode", "pass"), ("flush-on-close", "1")];
        let backend = testing::backend(&disk, &["fua"], &params);
        disk.take_calls();
        backend.finalize().unwrap();
        assert_eq!(disk.take_calls(), ["flush"]);
    }
}
