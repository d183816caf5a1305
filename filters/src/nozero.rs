//! nbdkit-nozero-filter(1): takes efficient writing of zeroes away, wholly or in part.

use nbdkit_api::{
    DataPath, Direction, Errno, Error, Filter, Flags, Next, NextConfig, Open, OpenLayer, Result,
    Slot, Value, Zero,
};

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum ZeroMode {
    #[default]
    None,
    Emulate,
    NoTrim,
    Plugin,
}

impl ZeroMode {
    fn as_str(self) -> &'static str {
        match self {
            ZeroMode::None => "none",
            ZeroMode::Emulate => "emulate",
            ZeroMode::NoTrim => "notrim",
            ZeroMode::Plugin => "plugin",
        }
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum FastZeroMode {
    #[default]
    Default,
    None,
    Slow,
    Ignore,
}

/// The filter: its two modes.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoZero {
    zero: ZeroMode,
    fast: FastZeroMode,
}

impl Filter for NoZero {
    fn name(&self) -> &str {
        "nozero"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit nozero filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "zeromode=<MODE>      One of 'none' (default), 'emulate', 'notrim', 'plugin'.\n\
             fastzeromode=<MODE>  One of 'default', 'none', 'slow', 'ignore'.",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "zeromode" => {
                self.zero = match value.str()? {
                    "none" => ZeroMode::None,
                    "emulate" => ZeroMode::Emulate,
                    "notrim" => ZeroMode::NoTrim,
                    "plugin" => ZeroMode::Plugin,
                    other => return Err(Error::msg(format!("unknown zeromode '{other}'"))),
                }
            }
            "fastzeromode" => {
                self.fast = match value.str()? {
                    "default" => FastZeroMode::Default,
                    "none" => FastZeroMode::None,
                    "slow" => FastZeroMode::Slow,
                    "ignore" => FastZeroMode::Ignore,
                    other => return Err(Error::msg(format!("unknown fastzeromode '{other}'"))),
                }
            }
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

impl OpenLayer for NoZero {
    fn prepare(&self, next: &Next, readonly: bool) -> Result<()> {
        if !readonly
            && matches!(self.zero, ZeroMode::NoTrim | ZeroMode::Plugin)
            && next.can_write()?
            && next.can_zero()? == Zero::None
        {
            let mode = self.zero.as_str();
            return Err(Error::new(
                Errno::EOPNOTSUPP,
                format!("zeromode '{mode}' requires plugin zero support"),
            ));
        }
        Ok(())
    }

    fn can_zero(&self, _: &Next) -> Result<Zero> {
        Ok(match self.zero {
            ZeroMode::None => Zero::None,
            ZeroMode::Emulate => Zero::Emulate,
            ZeroMode::NoTrim | ZeroMode::Plugin => Zero::Native,
        })
    }

    fn can_fast_zero(&self, next: &Next) -> Result<bool> {
        match (self.zero, self.fast) {
            (ZeroMode::None, _) | (_, FastZeroMode::None) => Ok(false),
            (ZeroMode::NoTrim | ZeroMode::Plugin, FastZeroMode::Default) => next.can_fast_zero(),
            (_, FastZeroMode::Default | FastZeroMode::Slow | FastZeroMode::Ignore) => Ok(true),
        }
    }

    /// Comes only in the modes that pass zeroes on; emulation is the server's.
    fn zero(&self, next: &Next, count: u64, offset: u64, mut flags: Flags) -> Result<()> {
        match self.fast {
            FastZeroMode::Slow if flags.contains(Flags::FAST_ZERO) => {
                return Err(Error::silent(Errno::EOPNOTSUPP));
            }
            FastZeroMode::Ignore => flags -= Flags::FAST_ZERO,
            FastZeroMode::Default | FastZeroMode::None | FastZeroMode::Slow => {}
        }
        if self.zero == ZeroMode::NoTrim {
            flags -= Flags::MAY_TRIM;
        }
        next.zero(count, offset, flags)
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

    fn backend(disk: &Arc<Disk>, zero: &str, fast: &str) -> Next {
        testing::backend(disk, &["nozero"], &[("zeromode", zero), ("fastzeromode", fast)])
    }

    #[test]
    fn each_mode_advertises_what_its_manual_says() {
        let full = Arc::new(Disk::new(1 << 20));
        let slow = Arc::new(Disk { fast_zero: false, ..Disk::new(1 << 20) });
        for (zero, fast, expected, can_fast, can_fast_on_slow) in [
            ("none", "default", Zero::None, false, false),
            ("none", "slow", Zero::None, false, false),
            ("emulate", "default", Zero::Emulate, true, true),
            ("emulate", "none", Zero::Emulate, false, false),
            ("notrim", "default", Zero::Native, true, false),
            ("notrim", "slow", Zero::Native, true, true),
            ("plugin", "ignore", Zero::Native, true, true),
            ("plugin", "none", Zero::Native, false, false),
        ] {
            let b = backend(&full, zero, fast);
            assert_eq!(b.can_zero().unwrap(), expected, "{zero}");
            assert_eq!(b.can_fast_zero().unwrap(), can_fast, "{zero} {fast}");
            let b = backend(&slow, zero, fast);
            assert_eq!(b.can_fast_zero().unwrap(), can_fast_on_slow, "{zero} {fast}");
        }
    }

    #[test]
    fn zeroes_reach_the_plugin_as_the_mode_says() {
        let fast = Flags::FAST_ZERO | Flags::MAY_TRIM;
        for (zero, mode, expected) in [
            ("emulate", "default", Err(())),
            ("notrim", "default", Ok("zero 4096@0 FAST_ZERO")),
            ("notrim", "slow", Err(())),
            ("notrim", "ignore", Ok("zero 4096@0")),
            ("plugin", "default", Ok("zero 4096@0 MAY_TRIM FAST_ZERO")),
            ("plugin", "ignore", Ok("zero 4096@0 MAY_TRIM")),
        ] {
            let disk = Arc::new(Disk::new(1 << 20));
            let result = backend(&disk, zero, mode).zero(4096, 0, fast);
            match expected {
                Ok(call) => {
                    result.unwrap();
                    assert_eq!(disk.take_calls()[1..], [call], "{zero} {mode}");
                }
                Err(()) => assert!(result.unwrap_err().is_unsupported(), "{zero} {mode}"),
            }
        }
        let disk = Arc::new(Disk::new(1 << 20));
        backend(&disk, "emulate", "default").zero(4096, 0, Flags::MAY_TRIM).unwrap();
        assert_eq!(disk.take_calls()[1..], ["pwrite 4096@0"]);
    }

    #[test]
    fn passing_on_needs_a_layer_that_can_zero() {
        let disk = Arc::new(Disk::new(1 << 20));
        // The inner one gets no parameter, hence is in its default mode, none.
        let layer = testing::layer(&disk, &["nozero", "nozero"], &[("zeromode", "notrim")]);
        let error = testing::try_open(&layer, "", false).unwrap_err();
        assert_eq!(error.message(), "zeromode 'notrim' requires plugin zero support");
        testing::try_open(&layer, "", true).unwrap();
    }

    #[test]
    fn unknown_modes_are_refused() {
        assert_eq!(testing::config_error("nozero", &[("zeromode", "x")]), "unknown zeromode 'x'");
        assert_eq!(
            testing::config_error("nozero", &[("fastzeromode", "x")]),
            "unknown fastzeromode 'x'"
        );
    }
}
