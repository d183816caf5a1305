//! nbdkit-noparallel-filter(1): tightens the thread model.

use nbdkit_api::{
    DataPath, Direction, Error, Filter, NextConfig, Open, OpenLayer, Result, Slot, ThreadModel,
    Value,
};

/// The filter: the model that it enforces.
#[derive(Debug, Clone, Copy)]
pub struct NoParallel {
    model: ThreadModel,
}

impl Default for NoParallel {
    fn default() -> NoParallel {
        NoParallel { model: ThreadModel::SerializeRequests }
    }
}

impl Filter for NoParallel {
    fn name(&self) -> &str {
        "noparallel"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit noparallel filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("serialize=<MODE>      'requests' (default), 'all-requests', or 'connections'.")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        if key != "serialize" {
            return next.config(key, value);
        }
        self.model = match value.str()? {
            "requests" => ThreadModel::SerializeRequests,
            "all-requests" => ThreadModel::SerializeAllRequests,
            "connections" => ThreadModel::SerializeConnections,
            other => {
                return Err(Error::msg(format!("unknown noparallel serialize mode '{other}'")));
            }
        };
        Ok(())
    }

    fn thread_model(&self, below: ThreadModel) -> Result<ThreadModel> {
        Ok(self.model.min(below))
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(*self))
    }
}

impl OpenLayer for NoParallel {
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
    fn the_model_is_tightened() {
        let disk = Arc::new(Disk::new(512));
        for (mode, model) in [
            ("requests", ThreadModel::SerializeRequests),
            ("all-requests", ThreadModel::SerializeAllRequests),
            ("connections", ThreadModel::SerializeConnections),
        ] {
            let stack = testing::try_stack(&disk, &["noparallel"], &[("serialize", mode)]).unwrap();
            assert_eq!(stack.thread_model().unwrap(), model);
        }
        let stack = testing::try_stack(&disk, &["noparallel"], &[]).unwrap();
        assert_eq!(stack.thread_model().unwrap(), ThreadModel::SerializeRequests);
        assert_eq!(
            testing::config_error("noparallel", &[("serialize", "foo")]),
            "unknown noparallel serialize mode 'foo'"
        );
    }
}
