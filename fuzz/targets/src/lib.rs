//! Fuzz targets as ordinary functions: bytes in, a panic if something is wrong. Test code, in no
//! program.
//!
//! `make fuzz` runs them under libFuzzer, which looks for bytes that reach new code; the tests of
//! this crate replay what it has found, `fuzz/corpus`, and mutations of that, with a plain
//! toolchain.
//!
//! - [`handshake`], [`transmission`]: whole sessions, and what the replies must be
//! - [`broker`]: requests for files
//! - [`channel`]: the control channel in both directions, and the listener that hears it
//! - [`images`]: what filters find in images
//! - [`texts`]: parsers of what comes from command lines, scripts and the environment
//! - [`images`]: what decoders make of images
//! - [`primitives`]: what plugins and filters share, while a hostile worker scribbles on it
//! - [`upstream`]: what the nbd plugin gets from its upstream server
//! - [`shared`]: memory that hostile workers share, and what disks in memory must keep

#![forbid(unsafe_code)]

pub mod broker;
pub mod channel;
pub mod handshake;
pub mod images;
mod input;
pub mod layouts;
pub mod primitives;
pub mod session;
pub mod shared;
pub mod texts;
pub mod transmission;
pub mod upstream;

/// A target: whatever the bytes, it must come back.
pub type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const TARGETS: &[(&str, Target)] = &[
    ("allocator", shared::allocator),
    ("broker", broker::target),
    ("bzip2", images::bzip2),
    ("command_line", texts::command_line),
    ("cow_shared", shared::cow),
    ("data_format", texts::data_format),
    ("fat_names", layouts::fat_names),
    ("filter_lists", texts::filter_lists),
    ("gzip", images::gzip),
    ("gzip_index", images::gzip_index),
    ("handshake", handshake::target),
    ("ip_rules", texts::ip_rules),
    ("listener", channel::listener),
    ("log_line", texts::log_line),
    ("luks", images::luks),
    ("luks2", images::luks2),
    ("lzip", images::lzip),
    ("messages", channel::messages),
    ("nbd_upstream", upstream::target),
    ("numbers", texts::numbers),
    ("parameters", texts::parameters),
    ("partition_table", layouts::partition_table),
    ("protocol", texts::protocol),
    ("script_output", texts::script_output),
    ("shared_state", primitives::target),
    ("tar_archive", layouts::tar_archive),
    ("tls", texts::tls),
    ("transmission", transmission::compact),
    ("transmission_extended", transmission::extended),
    ("qcow2dec", images::qcow2dec),
    ("vhd", layouts::vhd),
    ("vhdx", layouts::vhdx),
    ("vmdk", layouts::vmdk),
    ("xz", images::xz),
    ("zstd", images::zstd),
];
