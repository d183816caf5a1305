//! The built-in filters: one module each, and the registry that finds them by name.
//!
//! Runs in the template and in the workers. Parameters come from the command line, export names
//! and data from clients.

#![forbid(unsafe_code)]

pub mod offset;

use nbdkit_api::Filter;

/// Makes a filter in the state before configuration (`.load`).
type Load = fn() -> Box<dyn Filter>;

/// Every built-in filter by its short name, in alphabetical order.
const REGISTRY: &[(&str, Load)] = &[("offset", || Box::new(offset::Offset::default()))];

/// The built-in filter called `name`, fresh.
pub fn load(name: &str) -> Option<Box<dyn Filter>> {
    REGISTRY.iter().find(|(known, _)| *known == name).map(|(_, load)| load())
}

/// The names of all built-in filters, in alphabetical order.
pub fn names() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_answers_to_its_registered_name() {
        for name in names() {
            assert_eq!(load(name).unwrap().name(), name);
        }
        assert!(names().is_sorted());
    }
}
