//! nbdkit-ondemand-plugin(1): a directory of disks, each made when a client first asks for it.
//!
//! A disk is made in a directory beside the others and renamed when it is whole, so that a client
//! never sees a half of one, however the process ends that makes it. Its lock belongs to the open
//! file of the client's process, and goes with it. Export names are hostile.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nbdkit_api::exports::MAX_EXPORTS;
use nbdkit_api::paths::{self, Declared, Opened};
use nbdkit_api::{
    Access, Client, Connection, Errno, Error, Exports, Needs, Open, Plugin, Result, ResultExt,
    Value, client,
};
use nix::fcntl::{AT_FDCWD, FcntlArg, RenameFlags, fcntl, renameat2};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use crate::file::source::names;
use crate::made_disk::{MadeDisk, Recipe, Workplace, sweep};

/// What the export `""` is called in the directory.
const DEFAULT: &str = "default";
/// NAME_MAX, pathname(7).
const MAX_NAME: usize = 255;
/// How often a disk is looked for that others make and remove.
const MAX_TRIES: u32 = 10;
/// How long a client that waits for a lock sleeps between looks, at most.
const LOOK: Duration = Duration::from_millis(200);

/// The plugin: where disks are, how they are made, and who may have one.
#[derive(Debug, Default)]
pub struct OnDemand {
    dir: Option<PathBuf>,
    recipe: Recipe,
    wait: bool,
    share: bool,
}

/// Whether an export may have this name in the directory.
fn is_legal(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.starts_with('.')
        && !name.contains(['/', '\0'])
}

impl OnDemand {
    fn dir(&self) -> Result<&Path> {
        self.dir.as_deref().ok_or_else(|| Error::msg("ondemand: not configured"))
    }

    /// Opens the disk, which is made if it is not there, and locks it.
    fn disk(&self, dir: &Path, name: &str, client: Option<&Client>) -> Result<Opened> {
        let declared = Declared::directory(dir, true);
        for _ in 0..MAX_TRIES {
            match paths::open(&declared, Some(OsStr::new(name)), false) {
                Ok(opened) => {
                    self.lock(&opened, client)?;
                    return Ok(opened);
                }
                Err(why) if why.errno() != Errno::ENOENT => return Err(why),
                Err(_) => {}
            }
            client::check_present(client)?;
            if let Some(opened) = self.make(dir, name, client)? {
                return Ok(opened);
            }
        }
        Err(Error::new(Errno::EAGAIN, format!("{name}: the disk comes and goes")))
    }

    /// Makes a disk and returns it, locked. `None` if another process has been faster.
    fn make(&self, dir: &Path, name: &str, client: Option<&Client>) -> Result<Option<Opened>> {
        let workplace = Workplace::new(dir)?;
        let made = workplace.path().join(name);
        self.recipe.make(&made, client)?;
        let declared = Declared::directory(workplace.path(), true);
        let found = paths::find(&declared, Some(OsStr::new(name)), true);
        let found = found.map_err(|why| why.into_error(Path::new(name)))?;
        let opened = Opened {
            file: found.file.into(),
            name: name.to_owned(),
            writable: found.writable,
            is_block_device: found.is_block_device,
        };
        // Before anybody else can see it.
        self.lock(&opened, None)?;
        match publish(&made, &dir.join(name)) {
            Ok(()) => Ok(Some(opened)),
            Err(Errno::EEXIST) => Ok(None),
            Err(errno) => Err(Error::os(format!("rename: {name}"), errno)),
        }
    }

    /// Locks the disk for this open file, unless clients share it.
    fn lock(&self, opened: &Opened, client: Option<&Client>) -> Result<()> {
        if self.share {
            return Ok(());
        }
        let mut pause = Duration::from_millis(10);
        loop {
            match try_lock(opened) {
                Ok(()) => return Ok(()),
                Err(Errno::EAGAIN | Errno::EACCES) if self.wait => {
                    client::sleep(client, pause)?;
                    pause = (pause * 2).min(LOOK);
                }
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    let name = &opened.name;
                    let why = format!("{name}: filesystem is locked by another client");
                    return Err(Error::new(Errno::EBUSY, why));
                }
                Err(errno) => return Err(Error::os(format!("fcntl: {}", opened.name), errno)),
            }
        }
    }
}

/// A lock of the open file on all of it, fcntl(2), "Open file description locks": whoever closes
/// it last frees it. One that is open for reading can be locked against writers only.
fn try_lock(opened: &Opened) -> nix::Result<()> {
    let kind = if opened.writable { libc::F_WRLCK } else { libc::F_RDLCK };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(opened.file.as_fd(), FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}

/// Renames a disk to what clients know it by, unless something is there already: EEXIST.
fn publish(made: &Path, disk: &Path) -> nix::Result<()> {
    match renameat2(AT_FDCWD, made, AT_FDCWD, disk, RenameFlags::RENAME_NOREPLACE) {
        // NFS and others do not know the flag.
        Err(Errno::EINVAL) => {
            linkat(AT_FDCWD, made, AT_FDCWD, disk, nix::fcntl::AtFlags::empty())?;
            unlinkat(AT_FDCWD, made, UnlinkatFlags::NoRemoveDir)
        }
        result => result,
    }
}

impl Plugin for OnDemand {
    fn name(&self) -> &str {
        "ondemand"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "config",
            "config_complete",
            "config_help",
            "get_ready",
            "cleanup",
            "list_exports",
            "default_export",
            "open",
            "get_size",
            "can_write",
            "can_flush",
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

    fn magic_config_key(&self) -> Option<&str> {
        Some("size")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "dir=<EXPORTSDIR> (required) Directory containing filesystems.\n\
             size=<SIZE>      (required) Virtual filesystem size.\n\
             wait=<BOOL>                 Wait for another client instead of refusing.\n\
             share=<BOOL>                Let clients share filesystems, without locks.\n\
             label=<LABEL>               The filesystem label.\n\
             type=ext4|...               The filesystem type.\n\
             command=<COMMAND>           Alternate command instead of mkfs.",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "dir" => self.dir = Some(value.realpath()?),
            "wait" => self.wait = value.boolean()?,
            "share" => self.share = value.boolean()?,
            _ => self.recipe.config(key, value)?,
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        match &self.dir {
            Some(_) if self.recipe.has_size() => Ok(()),
            _ => Err(Error::msg("dir and size parameters are required")),
        }
    }

    fn get_ready(&mut self) -> Result<()> {
        let dir = self.dir()?;
        std::fs::read_dir(dir).or_error(|| format!("opendir: {}", dir.display()))?;
        self.recipe.check()
    }

    fn needs(&self, _readonly: bool) -> Needs {
        let needs = Needs::nothing().programs();
        self.dir.iter().fold(needs, |needs, dir| needs.path(dir, Access::Write))
    }

    /// Of workers that were killed while a disk was made.
    fn cleanup(&self) {
        self.dir.iter().for_each(|dir| sweep(dir));
    }

    fn list_exports(
        &self,
        _client: &Arc<Client>,
        _readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        // It can always be had.
        exports.add("", None)?;
        let names = names(&Declared::directory(self.dir()?, true))?.into_iter();
        let listed = names.filter(|name| name != DEFAULT && is_legal(name));
        listed.take(MAX_EXPORTS - 1).try_for_each(|name| exports.add(name, None))
    }

    fn default_export(&self, _client: &Arc<Client>, _readonly: bool) -> Result<Option<String>> {
        Ok(Some(DEFAULT.to_owned()))
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        let name = if open.export.is_empty() { DEFAULT } else { open.export };
        if !is_legal(name) {
            let why = format!("invalid exportname {name:?} rejected");
            return Err(Error::new(Errno::ENOENT, why));
        }
        let mut opened = self.disk(self.dir()?, name, open.client.map(|client| &**client))?;
        opened.writable &= !open.readonly;
        Ok(Box::new(MadeDisk::new(opened, self.share)?))
    }
}

#[cfg(test)]
mod tests;
