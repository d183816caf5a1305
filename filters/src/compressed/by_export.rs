//! One shared object for each export, of a fixed number that is made before the first fork. The
//! layer below may show each export another image.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nbdkit_api::shared::SharedWords;
use nbdkit_api::{Open, Result};

/// Exports that have an object.
const EXPORTS: usize = 8;

/// Objects of type `T` by export.
#[derive(Debug)]
pub(crate) struct ByExport<T> {
    /// The key is random, so that clients cannot choose names of one hash.
    hasher: RandomState,
    /// The hash of the export that each object belongs to; 0 if it is free. Any value may stand
    /// there: a hostile worker can make clients share an image that should not, or not share one.
    owners: SharedWords,
    objects: Vec<Arc<T>>,
}

impl<T> ByExport<T> {
    /// # Errors
    /// Those of `make`; ENOMEM.
    pub(crate) fn new(make: fn() -> Result<T>) -> Result<ByExport<T>> {
        let objects = (0..EXPORTS).map(|_| make().map(Arc::new)).collect::<Result<_>>()?;
        let (hasher, owners) = (RandomState::new(), SharedWords::new(EXPORTS)?);
        Ok(ByExport { hasher, owners, objects })
    }

    /// The object of what is opened, the same in all processes; `None` if other exports have all of
    /// them.
    pub(crate) fn of(&self, open: &Open<'_>) -> Option<Arc<T>> {
        let hash = self.hasher.hash_one((open.export, open.tls)).max(1);
        for (owner, object) in self.owners.iter().zip(&self.objects) {
            let claimed = owner.compare_exchange(0, hash, Ordering::AcqRel, Ordering::Acquire);
            if claimed.is_ok() || claimed == Err(hash) {
                return Some(Arc::clone(object));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_export_has_an_object_of_its_own_and_too_many_have_none() {
        let by_export = ByExport::new(|| Ok(())).unwrap();
        let of =
            |export: &str, tls| by_export.of(&Open { client: None, readonly: true, export, tls });
        let names: Vec<String> = (0..EXPORTS / 2).map(|number| number.to_string()).collect();
        let objects: Vec<_> = names
            .iter()
            .flat_map(|name| [of(name, false).unwrap(), of(name, true).unwrap()])
            .collect();
        for (number, object) in objects.iter().enumerate() {
            let again = of(&names[number / 2], number % 2 == 1).unwrap();
            assert!(Arc::ptr_eq(object, &again), "{number}");
            assert_eq!(objects.iter().filter(|it| Arc::ptr_eq(it, object)).count(), 1);
        }
        assert!(of("more", false).is_none());
    }
}
