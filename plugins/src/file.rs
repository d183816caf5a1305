//! nbdkit-file-plugin(1): serves a file or block device, or those of a directory by export name.
//!
//! The template checks and remembers what is to be served; for each client its file is opened anew,
//! so a client sees the size at its own time of connection. Export names are hostile; what the
//! directory holds is the user's affair.

mod cache;
mod direct;
pub(crate) mod disk;
mod ioctl;
mod ladder;
pub(crate) mod source;
mod syscall;

use std::io::Write;

use nbdkit_api::{Connection, Error, Exports, Needs, Open, Plugin, Result, Value, client, log};
use nix::fcntl::PosixFadviseAdvice;

use direct::Direct;
use disk::{Disk, Hints};
use source::{Source, What};

/// The plugin: what to serve and how to use the page cache.
#[derive(Debug)]
pub struct File {
    what: Option<What>,
    /// `dir-links`
    links: bool,
    hints: Hints,
    /// `cache=direct`, or what `--swap` does if `cache` is not given.
    direct: Wanted,
    source: Option<Source>,
}

/// Whether the page cache is passed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    No,
    /// If the file system can.
    IfPossible,
    Yes,
}

impl Default for File {
    fn default() -> File {
        let direct = if client::swap() { Wanted::IfPossible } else { Wanted::No };
        File { what: None, links: true, hints: Hints::default(), direct, source: None }
    }
}

impl File {
    /// Notes what to serve: the last one of a kind counts, and there may be one kind only.
    fn serve(&mut self, what: What) -> Result<()> {
        match &self.what {
            Some(other) if other.key() != what.key() => Err(Error::msg(format!(
                "{}= and {}= cannot be used at the same time: file, dir, fd or dirfd can only appear once",
                other.key(),
                what.key()
            ))),
            _ => {
                self.what = Some(what);
                Ok(())
            }
        }
    }
}

/// Parses the number of an inherited descriptor.
fn descriptor(key: &str, value: Value<'_>) -> Result<i32> {
    let fd: i32 = value.integer(key)?;
    if fd <= 2 {
        return Err(Error::msg(format!(
            "{key}={fd}: file descriptor must be > 2, \
             because stdin, stdout and stderr are used for other purposes"
        )));
    }
    Ok(fd)
}

impl Plugin for File {
    fn name(&self) -> &str {
        "file"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "longname",
            "dump_plugin",
            "config",
            "config_complete",
            "config_help",
            "list_exports",
            "open",
            "get_size",
            "block_size",
            "can_write",
            "can_flush",
            "is_rotational",
            "can_trim",
            "can_zero",
            "can_extents",
            "can_fua",
            "can_multi_conn",
            "can_cache",
            "pread",
            "pwrite",
            "flush",
            "trim",
            "zero",
            "extents",
            "cache",
        ]
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit file plugin")
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("file")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "[file=]<FILENAME>     The filename to serve.\n\
             dir=<DIRNAME>         A directory containing files to serve.\n\
             dir-links=<BOOL>      Follow symbolic links in that directory (default true).\n\
             fd=<FD>               An inherited file descriptor to serve.\n\
             dirfd=<FD>            An inherited descriptor of a directory to serve.\n\
             cache=<MODE>          Set use of caching (default, none, direct).\n\
             reduce-memory-pressure=<BOOL>  Same as cache=none if true.\n\
             fadvise=<LEVEL>       Set fadvise hint (normal, random, sequential).",
        )
    }

    fn debug_flags(&self) -> &'static [&'static str] {
        &["zero"]
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "file" => self.serve(What::File(value.realpath()?))?,
            "dir" | "directory" => self.serve(What::Directory(value.realpath()?))?,
            "fd" => self.serve(What::Fd(descriptor(key, value)?))?,
            "dirfd" => self.serve(What::DirFd(descriptor(key, value)?))?,
            "dir-links" => self.links = value.boolean()?,
            "cache" => {
                (self.hints.spare_cache, self.direct) = match value.str()? {
                    "default" => (false, Wanted::No),
                    "none" => (true, Wanted::No),
                    "direct" => (false, Wanted::Yes),
                    mode => return Err(Error::msg(format!("unknown cache mode: {mode}"))),
                };
            }
            "reduce-memory-pressure" => {
                (self.hints.spare_cache, self.direct) = (value.boolean()?, Wanted::No);
            }
            "fadvise" => {
                self.hints.advice = match value.str()? {
                    "normal" => PosixFadviseAdvice::POSIX_FADV_NORMAL,
                    "random" => PosixFadviseAdvice::POSIX_FADV_RANDOM,
                    "sequential" => PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL,
                    mode => return Err(Error::msg(format!("unknown fadvise mode: {mode}"))),
                };
            }
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        let what = self.what.as_ref().ok_or_else(|| {
            Error::msg(
                "you must supply either [file=]<FILENAME>, dir=<DIRNAME>, fd=<FD> or dirfd=<FD> \
                 parameter after the plugin name on the command line",
            )
        })?;
        self.source = Some(Source::new(what, self.links)?);
        Ok(())
    }

    fn dump_plugin(&self, out: &mut dyn Write) -> std::io::Result<()> {
        for field in [
            "blksszget",
            "blkzeroout",
            "blkrotational",
            "blkdiscard",
            "block_size",
            "extents",
            "falloc_fl_punch_hole",
            "falloc_fl_zero_range",
        ] {
            writeln!(out, "file_{field}=yes")?;
        }
        Ok(())
    }

    fn needs(&self, readonly: bool) -> Needs {
        let direct = self.direct != Wanted::No;
        self.source.as_ref().map_or_else(Needs::nothing, |source| source.needs(readonly, direct))
    }

    fn list_exports(
        &self,
        _client: &std::sync::Arc<nbdkit_api::Client>,
        _readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        match self.source.as_ref().map(Source::names) {
            Some(Some(names)) => {
                for name in names? {
                    exports.add(name, None)?;
                }
            }
            _ => exports.use_default(),
        }
        Ok(())
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        let source = self.source.as_ref().ok_or_else(|| Error::msg("file: not configured"))?;
        let opened = source.open(open.export, open.readonly)?;
        let direct = match self.direct {
            Wanted::No => None,
            Wanted::Yes => Some(source.open_direct(open.export, &opened)?),
            Wanted::IfPossible => source
                .open_direct(open.export, &opened)
                .inspect_err(|why| log::warning(&format!("--swap: {}", why.message())))
                .ok(),
        };
        let disk = Disk::new(opened, self.hints)?;
        Ok(Box::new(disk.with_direct(direct.map(Direct::new))))
    }
}
