//! nbdkit-limit-filter(1): limits how many clients are served at the same time.

use std::sync::Arc;

use nbdkit_api::{
    Client, DataPath, Direction, Errno, Error, Filter, Layer, NextConfig, Open, OpenLayer, Result,
    Slot, ThreadModel, Value,
};

use crate::presence::{Place, Places};

/// The filter: the limit and, once ready, a place for every client up to it.
#[derive(Debug)]
pub struct Limit {
    /// 0 for no limit.
    limit: u32,
    places: Option<Arc<Places>>,
}

impl Default for Limit {
    fn default() -> Limit {
        Limit { limit: 1, places: None }
    }
}

impl Filter for Limit {
    fn name(&self) -> &str {
        "limit"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit limit filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "limit=<N>           Limit the number of concurrent clients (default 1, 0 = no limit).",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "limit" => self.limit = value.integer(key)?,
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        if self.limit > 0 {
            self.places = Some(Places::new("limit", self.limit.into())?);
        }
        Ok(())
    }

    /// Turns a client away before negotiation if there is no place. One is taken when an export
    /// is opened, so there it is checked again.
    fn preconnect(&self, below: &Arc<Layer>, client: &Arc<Client>, readonly: bool) -> Result<()> {
        match &self.places {
            Some(places) if !places.vacant()? => return Err(too_many()),
            _ => {}
        }
        below.preconnect(client, readonly)
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        let place = match &self.places {
            Some(places) => Some(places.take()?.ok_or_else(too_many)?),
            None => None,
        };
        below.open(open)?;
        Ok(Box::new(Handle { _place: place }))
    }
}

fn too_many() -> Error {
    Error::new(Errno::EBUSY, "limit: too many clients connected, connection rejected")
}

struct Handle {
    _place: Option<Place>,
}

impl OpenLayer for Handle {
    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Transparent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};

    #[test]
    fn one_client_too_many_is_rejected_until_another_leaves() {
        let disk = Arc::new(Disk::new(512));
        let layer = testing::layer(&disk, &["limit"], &[("limit", "2")]);
        let client = testing::client();
        let first = testing::open(&layer);
        layer.preconnect(&client, false).unwrap();
        let _second = testing::open(&layer);
        let why = "limit: too many clients connected, connection rejected";
        assert_eq!(layer.preconnect(&client, false).unwrap_err().message(), why);
        assert_eq!(testing::try_open(&layer, "", false).unwrap_err().message(), why);
        drop(first);
        layer.preconnect(&client, false).unwrap();
        testing::open(&layer);
    }

    #[test]
    fn zero_is_no_limit_and_the_default_is_one() {
        let disk = Arc::new(Disk::new(512));
        let layer = testing::layer(&disk, &["limit"], &[("limit", "0")]);
        let _many: Vec<_> = (0..20).map(|_| testing::open(&layer)).collect();
        let layer = testing::layer(&disk, &["limit"], &[]);
        let _one = testing::open(&layer);
        assert!(testing::try_open(&layer, "", false).is_err());
        assert!(testing::config_error("limit", &[("limit", "-1")]).starts_with("limit: "));
    }
}
