//! The built-in filters: one module each, and the registry that finds them by name.
//!
//! Runs in the template and in the workers. Parameters come from the command line, export names
//! and data from clients.

#![forbid(unsafe_code)]

pub mod blocksize;
pub mod blocksize_policy;
pub mod cache;
pub mod cacheextents;
pub mod cow;
#[cfg(test)]
mod data_paths;
pub mod delay;
pub mod error;
pub mod exitlast;
pub mod exportname;
pub mod fua;
#[doc(hidden)]
pub mod fuzz;
pub mod ip;
pub mod limit;
pub mod log;
pub mod multi_conn;
pub mod nocache;
pub mod noextents;
pub mod nofilter;
pub mod noparallel;
pub mod nozero;
pub mod offset;
mod on_read;
mod presence;
pub mod readahead;
pub mod readonly;
pub mod retry;
pub mod rotational;
mod shell;
pub mod stats;
#[cfg(test)]
mod testing;
pub mod tls_fallback;
pub mod truncate;

use nbdkit_api::Filter;

/// Makes a filter in the state before configuration (`.load`).
type Load = fn() -> Box<dyn Filter>;

/// Every built-in filter by its short name, in alphabetical order.
const REGISTRY: &[(&str, Load)] = &[
    ("blocksize", || Box::new(blocksize::Blocksize::default())),
    ("blocksize-policy", || Box::new(blocksize_policy::BlocksizePolicy::default())),
    ("cache", || Box::new(cache::Cache::default())),
    ("cacheextents", || Box::new(cacheextents::CacheExtents::default())),
    ("cow", || Box::new(cow::Cow::default())),
    ("delay", || Box::new(delay::Delay::default())),
    ("error", || Box::new(error::Inject::default())),
    ("exitlast", || Box::new(exitlast::ExitLast::default())),
    ("exportname", || Box::new(exportname::ExportName::default())),
    ("fua", || Box::new(fua::FuaFilter::default())),
    ("ip", || Box::new(ip::Ip::default())),
    ("limit", || Box::new(limit::Limit::default())),
    ("log", || Box::new(log::Log::default())),
    ("multi-conn", || Box::new(multi_conn::MultiConn::default())),
    ("nocache", || Box::new(nocache::NoCache::default())),
    ("noextents", || Box::new(noextents::NoExtents)),
    ("nofilter", || Box::new(nofilter::NoFilter)),
    ("noparallel", || Box::new(noparallel::NoParallel::default())),
    ("nozero", || Box::new(nozero::NoZero::default())),
    ("offset", || Box::new(offset::Offset::default())),
    ("readahead", || Box::new(readahead::ReadAhead::default())),
    ("readonly", || Box::new(readonly::ReadOnly::default())),
    ("retry", || Box::new(retry::Retry::default())),
    ("rotational", || Box::new(rotational::Rotational::default())),
    ("stats", || Box::new(stats::Stats::default())),
    ("tls-fallback", || Box::new(tls_fallback::TlsFallback::default())),
    ("truncate", || Box::new(truncate::Truncate::default())),
];

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
            // The error filter calls itself by another name in messages, see its manual page.
            let own = if name == "error" { "error-inject" } else { name };
            assert_eq!(load(name).unwrap().name(), own);
        }
        assert!(names().is_sorted());
    }
}
