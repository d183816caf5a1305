//! The built-in filters: one module each, and the registry that finds them by name.
//!
//! Runs in the template and in the workers. Parameters come from the command line, export names
//! and data from clients.

#![forbid(unsafe_code)]

#[cfg(test)]
mod attempts;
pub mod blocksize;
pub mod blocksize_policy;
pub mod bzip2;
pub mod cache;
pub mod cacheextents;
pub mod checkwrite;
mod compare;
mod compressed;
pub mod count;
pub mod cow;
#[cfg(test)]
mod data_paths;
pub mod ddrescue;
pub mod delay;
pub mod error;
pub mod evil;
pub mod exitlast;
pub mod exitwhen;
pub mod exportname;
pub mod extentlist;
pub mod fua;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
pub mod gzip;
pub mod indexed_gzip;
pub mod ip;
pub mod limit;
pub mod log;
pub mod luks;
pub mod lzip;
pub mod map;
pub mod multi_conn;
pub mod nocache;
pub mod noextents;
pub mod nofilter;
pub mod noparallel;
pub mod nozero;
pub mod offset;
mod on_read;
pub mod openonce;
pub mod partition;
pub mod pause;
mod presence;
pub mod protect;
pub mod qcow2dec;
mod random;
pub mod rate;
pub mod readahead;
pub mod readonly;
pub mod retry;
pub mod retry_request;
pub mod rotational;
pub mod scan;
mod shell;
pub mod spinning;
pub mod stats;
pub mod swab;
pub mod tar;
#[cfg(test)]
mod testing;
pub mod time_limit;
pub mod tls_fallback;
pub mod truncate;
mod window;
pub mod xor;
pub mod xz;
pub mod zstd;

use nbdkit_api::Filter;

use compressed::expansion::Expanding;

/// Makes a filter in the state before configuration (`.load`).
type Load = fn() -> Box<dyn Filter>;

/// Every built-in filter by its short name, in alphabetical order.
const REGISTRY: &[(&str, Load)] = &[
    ("blocksize", || Box::new(blocksize::Blocksize::default())),
    ("blocksize-policy", || Box::new(blocksize_policy::BlocksizePolicy::default())),
    ("bzip2", || Box::new(Expanding::<bzip2::Streams>::default())),
    ("cache", || Box::new(cache::Cache::default())),
    ("cacheextents", || Box::new(cacheextents::CacheExtents::default())),
    ("checkwrite", || Box::new(checkwrite::CheckWrite)),
    ("count", || Box::new(count::Count::default())),
    ("cow", || Box::new(cow::Cow::default())),
    ("ddrescue", || Box::new(ddrescue::Ddrescue::default())),
    ("delay", || Box::new(delay::Delay::default())),
    ("error", || Box::new(error::Inject::default())),
    ("evil", || Box::new(evil::Evil::default())),
    ("exitlast", || Box::new(exitlast::ExitLast::default())),
    ("exitwhen", || Box::new(exitwhen::ExitWhen::default())),
    ("exportname", || Box::new(exportname::ExportName::default())),
    ("extentlist", || Box::new(extentlist::ExtentList::default())),
    ("fua", || Box::new(fua::FuaFilter::default())),
    ("gzip", || Box::new(Expanding::<gzip::Members>::default())),
    ("indexed-gzip", || Box::new(indexed_gzip::IndexedGzip::default())),
    ("ip", || Box::new(ip::Ip::default())),
    ("limit", || Box::new(limit::Limit::default())),
    ("log", || Box::new(log::Log::default())),
    ("luks", || Box::new(luks::Luks::default())),
    ("lzip", || Box::new(lzip::Lzip::default())),
    ("map", || Box::new(map::Map::default())),
    ("multi-conn", || Box::new(multi_conn::MultiConn::default())),
    ("nocache", || Box::new(nocache::NoCache::default())),
    ("noextents", || Box::new(noextents::NoExtents)),
    ("nofilter", || Box::new(nofilter::NoFilter)),
    ("noparallel", || Box::new(noparallel::NoParallel::default())),
    ("nozero", || Box::new(nozero::NoZero::default())),
    ("offset", || Box::new(offset::Offset::default())),
    ("openonce", || Box::new(openonce::OpenOnce::default())),
    ("partition", || Box::new(partition::Partition::default())),
    ("pause", || Box::new(pause::Pause::default())),
    ("protect", || Box::new(protect::Protect::default())),
    ("qcow2dec", || Box::new(qcow2dec::Qcow2dec)),
    ("rate", || Box::new(rate::RateLimit::default())),
    ("readahead", || Box::new(readahead::ReadAhead::default())),
    ("readonly", || Box::new(readonly::ReadOnly::default())),
    ("retry", || Box::new(retry::Retry::default())),
    ("retry-request", || Box::new(retry_request::RetryRequest::default())),
    ("rotational", || Box::new(rotational::Rotational::default())),
    ("scan", || Box::new(scan::Scan::default())),
    ("spinning", || Box::new(spinning::Spinning::default())),
    ("stats", || Box::new(stats::Stats::default())),
    ("swab", || Box::new(swab::Swab::default())),
    ("tar", || Box::new(tar::Tar::default())),
    ("time-limit", || Box::new(time_limit::TimeLimit::default())),
    ("tls-fallback", || Box::new(tls_fallback::TlsFallback::default())),
    ("truncate", || Box::new(truncate::Truncate::default())),
    ("xor", || Box::new(xor::Xor::default())),
    ("xz", || Box::new(xz::Xz::default())),
    ("zstd", || Box::new(zstd::Zstd::default())),
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
