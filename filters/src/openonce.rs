//! Opens the plugin once for all clients: nbdkit's openonce filter, which came with 1.44.
//!
//! What is opened lives in one process, so the server has one process for all clients.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbdkit_api::{
    DataPath, Direction, Errno, Error, Filter, Isolation, Layer, Next, Open, OpenLayer, Result,
    Slot, ThreadModel,
};

/// The filter and what it has opened.
#[derive(Debug, Default)]
pub struct OpenOnce {
    contexts: Mutex<HashMap<Key, Next>>,
}

/// What clients have to agree on to share a context.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    readonly: bool,
    tls: bool,
    export: String,
}

/// Clients name exports, and what is opened for one stays open.
const MOST_CONTEXTS: usize = 1024;

impl OpenOnce {
    fn contexts(&self) -> MutexGuard<'_, HashMap<Key, Next>> {
        self.contexts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The context of `key`, opened if need be. Others wait for it.
    ///
    /// # Errors
    /// Those of opening, which a later client tries again. EMFILE: too many are open.
    fn context(&self, layer: &Arc<Layer>, key: Key) -> Result<Next> {
        let mut contexts = self.contexts();
        if let Some(next) = contexts.get(&key) {
            return Ok(next.clone());
        }
        if contexts.len() >= MOST_CONTEXTS {
            let why = format!("openonce: {MOST_CONTEXTS} exports are open, which is the limit");
            return Err(Error::new(Errno::EMFILE, why));
        }
        let (readonly, tls) = (key.readonly, key.tls);
        let next = layer.open(&Open { client: None, readonly, export: &key.export, tls })?;
        if let Err(error) = next.prepare() {
            // The layers below that were prepared.
            let _ = next.finalize();
            return Err(error);
        }
        contexts.insert(key, next.clone());
        Ok(next)
    }
}

impl Filter for OpenOnce {
    fn name(&self) -> &str {
        "openonce"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit open once filter")
    }

    /// A plugin that wants one request at a time of each connection has one connection.
    fn thread_model(&self, below: ThreadModel) -> Result<ThreadModel> {
        Ok(match below {
            ThreadModel::SerializeRequests => ThreadModel::SerializeAllRequests,
            other => other,
        })
    }

    fn isolation(&self) -> Isolation {
        Isolation::Shared
    }

    fn cleanup(&self, _: &Arc<Layer>) {
        for (key, next) in self.contexts().drain() {
            if let Err(error) = next.finalize() {
                nbdkit_api::error!("openonce: export '{}': {error}", key.export);
            }
        }
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        let (readonly, tls) = (open.readonly, open.tls);
        let key = Key { readonly, tls, export: open.export.to_owned() };
        let next = self.context(below.layer(), key)?;
        below.share(next);
        Ok(Box::new(Handle))
    }
}

struct Handle;

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
    fn each_export_is_opened_once_for_reading_and_once_for_writing() {
        let disk = Arc::new(Disk::new(512));
        let layer = testing::layer(&disk, &["openonce"], &[]);
        let open = |export, readonly| drop(testing::try_open(&layer, export, readonly).unwrap());
        for _ in 0..3 {
            open("a", false);
            open("a", true);
            open("b", false);
        }
        assert_eq!(
            disk.take_calls(),
            ["open \"a\" readonly=false", "open \"a\" readonly=true", "open \"b\" readonly=false"]
        );
        layer.cleanup();
        open("a", false);
        assert_eq!(disk.take_calls().len(), 1, "all were closed");
    }

    #[test]
    fn the_number_of_exports_is_limited() {
        let disk = Arc::new(Disk::new(512));
        let layer = testing::layer(&disk, &["openonce"], &[]);
        for number in 0..MOST_CONTEXTS {
            testing::try_open(&layer, &number.to_string(), false).unwrap();
        }
        let error = testing::try_open(&layer, "more", false).unwrap_err();
        assert_eq!(error.errno(), Errno::EMFILE);
        testing::try_open(&layer, "7", false).unwrap();
    }

    #[test]
    fn the_thread_model_is_tightened_where_connections_matter() {
        let model = |below| OpenOnce::default().thread_model(below).unwrap();
        assert_eq!(model(ThreadModel::SerializeRequests), ThreadModel::SerializeAllRequests);
        assert_eq!(model(ThreadModel::Parallel), ThreadModel::Parallel);
        assert_eq!(model(ThreadModel::SerializeConnections), ThreadModel::SerializeConnections);
    }
}
