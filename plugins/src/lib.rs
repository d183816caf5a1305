//! The built-in plugins: one module each, and the registry that finds them by name.
//!
//! Runs in the template and in the workers. Parameters come from the command line, export names
//! and data from clients.

#![deny(unsafe_code)]

pub mod allocator;
pub mod data;
pub mod eval;
pub mod example1;
pub mod example2;
pub mod example3;
pub mod file;
pub mod floppy;
pub mod full;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod image;
pub mod info;
pub mod iso;
pub mod linuxdisk;
mod made_disk;
pub mod memory;
pub mod nbd;
pub mod null;
pub mod ondemand;
pub mod ones;
pub mod partitioning;
pub mod pattern;
pub mod random;
mod regions;
pub mod sh;
mod simple;
pub mod sparse_random;
pub mod split;
#[cfg(test)]
mod test_dir;
pub mod tmpdisk;
pub mod vhd;
mod words;
pub mod zero;

use nbdkit_api::Plugin;

/// Makes a plugin in the state before configuration (`.load`).
type Load = fn() -> Box<dyn Plugin>;

/// Every built-in plugin by its short name, in alphabetical order.
const REGISTRY: &[(&str, Load)] = &[
    ("data", || Box::<data::Data>::default()),
    ("eval", || Box::<eval::Eval>::default()),
    ("example1", || Box::<example1::Example1>::default()),
    ("example2", || Box::<example2::Example2>::default()),
    ("example3", || Box::<example3::Example3>::default()),
    ("file", || Box::<file::File>::default()),
    ("floppy", || Box::<floppy::Floppy>::default()),
    ("full", || Box::<full::Full>::default()),
    ("info", || Box::<info::Info>::default()),
    ("iso", || Box::<iso::Iso>::default()),
    ("linuxdisk", || Box::<linuxdisk::LinuxDisk>::default()),
    ("memory", || Box::<memory::Memory>::default()),
    ("nbd", || Box::<nbd::Nbd>::default()),
    ("null", || Box::<null::Null>::default()),
    ("ondemand", || Box::<ondemand::OnDemand>::default()),
    ("ones", || Box::<ones::Ones>::default()),
    ("partitioning", || Box::<partitioning::Partitioning>::default()),
    ("pattern", || Box::<pattern::Pattern>::default()),
    ("random", || Box::<random::Random>::default()),
    ("sh", || Box::<sh::Sh>::default()),
    ("sparse-random", || Box::<sparse_random::SparseRandom>::default()),
    ("split", || Box::<split::Split>::default()),
    ("tmpdisk", || Box::<tmpdisk::TmpDisk>::default()),
    ("vhd", || Box::<vhd::Vhd>::default()),
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
    use super::simple::Abilities;
    use super::*;

    #[test]
    fn every_plugin_answers_to_its_registered_name() {
        for name in names() {
            assert_eq!(load(name).unwrap().name(), name);
        }
        assert!(names().is_sorted());
    }

    /// nbdkit's order in `--dump-plugin`, with the names of our traits.
    const CALLBACKS: &[(&str, &str)] = &[
        ("longname", "longname"),
        ("description", "description"),
        ("dump_plugin", "dump_plugin"),
        ("config", "config"),
        ("config_complete", "config_complete"),
        ("config_help", "config_help"),
        ("thread_model", "thread_model"),
        ("get_ready", "get_ready"),
        ("after_fork", "after_fork"),
        ("cleanup", "cleanup"),
        ("preconnect", "preconnect"),
        ("list_exports", "list_exports"),
        ("default_export", "default_export"),
        ("open", "open"),
        ("export_description", "export_description"),
        ("get_size", "size"),
        ("block_size", "block_size"),
        ("can_write", "can_write"),
        ("can_flush", "can_flush"),
        ("is_rotational", "is_rotational"),
        ("can_trim", "can_trim"),
        ("can_zero", "can_zero"),
        ("can_fast_zero", "can_fast_zero"),
        ("can_extents", "can_extents"),
        ("can_fua", "can_fua"),
        ("can_multi_conn", "can_multi_conn"),
        ("can_cache", "can_cache"),
        ("pread", "pread"),
        ("pwrite", "pwrite"),
        ("flush", "flush"),
        ("trim", "trim"),
        ("zero", "zero"),
        ("extents", "extents"),
        ("cache", "cache"),
    ];

    /// Where a plugin implements what its connections answer.
    enum Answers {
        /// In a source of its own, by these methods of the trait `Connection`.
        Source(&'static str),
        /// In `simple.rs`: it has these abilities, and these further methods.
        Simple(Abilities, &'static [&'static str]),
    }

    impl Answers {
        fn has(&self, method: &str) -> bool {
            match self {
                Answers::Source(source) => has(source, "Connection for ", method),
                Answers::Simple(abilities, more) => match method {
                    "size" | "can_multi_conn" | "can_cache" | "pread" => true,
                    "can_write" | "pwrite" => abilities.write,
                    "can_trim" | "trim" => abilities.trim,
                    "can_zero" | "zero" => abilities.zero,
                    "can_extents" | "extents" => abilities.extents,
                    "can_flush" | "flush" | "can_fua" | "can_fast_zero" => abilities.flush,
                    _ => more.contains(&method),
                },
            }
        }
    }

    /// Where each plugin implements its traits.
    const SOURCES: &[(&str, &str, Answers)] = &[
        ("data", include_str!("data.rs"), Answers::Simple(Abilities::ALL, &["block_size"])),
        ("eval", include_str!("sh/plugin.rs"), Answers::Source(include_str!("sh/connection.rs"))),
        ("example1", include_str!("example1.rs"), Answers::Source(include_str!("example1.rs"))),
        ("example2", include_str!("example2.rs"), Answers::Source(include_str!("example2.rs"))),
        ("example3", include_str!("example3.rs"), Answers::Source(include_str!("example3.rs"))),
        ("file", include_str!("file.rs"), Answers::Source(include_str!("file/disk.rs"))),
        ("floppy", include_str!("floppy.rs"), Answers::Source(include_str!("regions/disk.rs"))),
        (
            "full",
            include_str!("full.rs"),
            Answers::Simple(Abilities { zero: false, flush: false, ..Abilities::ALL }, &[]),
        ),
        ("info", include_str!("info.rs"), Answers::Source(include_str!("info.rs"))),
        ("iso", include_str!("iso.rs"), Answers::Source(include_str!("image.rs"))),
        ("linuxdisk", include_str!("linuxdisk.rs"), Answers::Source(include_str!("image.rs"))),
        ("memory", include_str!("memory.rs"), Answers::Simple(Abilities::ALL, &["block_size"])),
        ("nbd", include_str!("nbd.rs"), Answers::Source(include_str!("nbd/connection.rs"))),
        ("null", include_str!("null.rs"), Answers::Simple(Abilities::ALL, &[])),
        (
            "ondemand",
            include_str!("ondemand.rs"),
            Answers::Source(include_str!("made_disk/connection.rs")),
        ),
        ("ones", include_str!("ones.rs"), Answers::Simple(Abilities::ALL, &[])),
        (
            "partitioning",
            include_str!("partitioning.rs"),
            Answers::Source(include_str!("regions/disk.rs")),
        ),
        ("pattern", include_str!("pattern.rs"), Answers::Simple(Abilities::READ, &[])),
        (
            "random",
            include_str!("random.rs"),
            Answers::Simple(Abilities { flush: false, extents: false, ..Abilities::ALL }, &[]),
        ),
        ("sh", include_str!("sh/plugin.rs"), Answers::Source(include_str!("sh/connection.rs"))),
        (
            "sparse-random",
            include_str!("sparse_random.rs"),
            Answers::Simple(Abilities::ALL, &["block_size"]),
        ),
        ("split", include_str!("split.rs"), Answers::Source(include_str!("regions/disk.rs"))),
        (
            "tmpdisk",
            include_str!("tmpdisk.rs"),
            Answers::Source(include_str!("made_disk/connection.rs")),
        ),
        ("vhd", include_str!("vhd.rs"), Answers::Source(include_str!("vhd.rs"))),
        ("zero", include_str!("zero.rs"), Answers::Simple(Abilities::READ, &[])),
    ];

    /// Whether the source has an implementation of the trait with this method.
    fn has(source: &str, implemented: &str, method: &str) -> bool {
        let body = source
            .split("\nimpl")
            .find(|body| body.lines().next().is_some_and(|line| line.contains(implemented)));
        let (body, _) = body.unwrap().split_once("\n}\n").unwrap();
        body.contains(&format!("\n    fn {method}("))
    }

    #[test]
    fn the_callbacks_that_a_plugin_names_are_those_that_it_implements() {
        assert!(SOURCES.iter().map(|(name, ..)| *name).eq(names()));
        for (name, plugin, answers) in SOURCES {
            let expected: Vec<&str> = CALLBACKS
                .iter()
                .filter(|(_, method)| has(plugin, "Plugin for ", method) || answers.has(method))
                .map(|(callback, _)| *callback)
                .collect();
            assert_eq!(load(name).unwrap().callbacks(), expected, "{name}");
        }
    }
}
