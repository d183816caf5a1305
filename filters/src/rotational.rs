//! nbdkit-rotational-filter(1): advertises whether the disk behaves like a rotating one.

use nbdkit_api::{
    DataPath, Direction, Filter, Next, NextConfig, Open, OpenLayer, Result, Slot, Value,
};

/// The filter: what it advertises.
#[derive(Debug, Clone, Copy)]
pub struct Rotational(bool);

impl Default for Rotational {
    fn default() -> Rotational {
        Rotational(true)
    }
}

impl Filter for Rotational {
    fn name(&self) -> &str {
        "rotational"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit rotational filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("rotational=<BOOL>     Whether the disk is rotational (default true).")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "rotational" => self.0 = value.boolean()?,
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

impl OpenLayer for Rotational {
    fn is_rotational(&self, _: &Next) -> Result<bool> {
        Ok(self.0)
    }

    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Transparent
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Disk};
    use std::sync::Arc;

    #[test]
    fn what_is_advertised_is_the_parameter() {
        let disk = Arc::new(Disk::new(512));
        let is_rotational = |params: &[(&str, &str)]| {
            testing::backend(&disk, &["rotational"], params).is_rotational().unwrap()
        };
        assert!(is_rotational(&[]));
        assert!(is_rotational(&[("rotational", "yes")]));
        assert!(!is_rotational(&[("rotational", "false")]));
        let error = testing::config_error("rotational", &[("rotational", "maybe")]);
        assert_eq!(error, "could not decipher boolean (maybe)");
    }
}
