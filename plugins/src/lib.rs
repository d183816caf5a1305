//! The built-in plugins: one module each, and the registry that finds them by name.
//!
//! Runs in the template and in the workers. Parameters come from the command line, export names
//! and data from clients.

#![deny(unsafe_code)]

pub mod allocator;
pub mod data;
pub mod eval;
pub mod file;
pub mod full;
#[doc(hidden)]
pub mod fuzz;
pub mod info;
pub mod memory;
pub mod null;
pub mod ones;
pub mod pattern;
pub mod random;
pub mod sh;
pub mod split;
#[cfg(test)]
mod test_dir;
mod words;
pub mod zero;

use nbdkit_api::Plugin;

/// Makes a plugin in the state before configuration (`.load`).
type Load = fn() -> Box<dyn Plugin>;

/// Every built-in plugin by its short name, in alphabetical order.
const REGISTRY: &[(&str, Load)] = &[
    ("data", || Box::<data::Data>::default()),
    ("eval", || Box::<eval::Eval>::default()),
    ("file", || Box::<file::File>::default()),
    ("full", || Box::<full::Full>::default()),
    ("info", || Box::<info::Info>::default()),
    ("memory", || Box::<memory::Memory>::default()),
    ("null", || Box::<null::Null>::default()),
    ("ones", || Box::<ones::Ones>::default()),
    ("pattern", || Box::<pattern::Pattern>::default()),
    ("random", || Box::<random::Random>::default()),
    ("sh", || Box::<sh::Sh>::default()),
    ("split", || Box::<split::Split>::default()),
    ("zero", || Box::<zero::Zero>::default()),
];

/// The built-in plugin called `name`, fresh.
pub fn load(name: &str) -> Option<Box<dyn Plugin>> {
    REGISTRY.iter().find(|(known, _)| *known == name).map(|(_, load)| load())
}

/// The names of all built-in plugins, in alphabetical order.
pub fn names() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plugin_answers_to_its_registered_name() {
        for name in names() {
            assert_eq!(load(name).unwrap().name(), name);
        }
        assert!(names().is_sorted());
    }
}
