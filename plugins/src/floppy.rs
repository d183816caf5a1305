//! nbdkit-floppy-plugin(1): a directory as a read-only disk with a partition and a FAT32 file
//! system, made without copying any file.
//!
//! The directory is looked through at the start. A client opens a file when it reads it.

#![forbid(unsafe_code)]

mod fat;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod names;
mod tree;

use std::path::PathBuf;
use std::sync::Arc;

use nbdkit_api::paths::{self, Declared};
use nbdkit_api::{BlockSize, Connection, Error, Needs, Open, Plugin, Result, Value};

use crate::files::Files;
use crate::regions::{Disk, Regions};
use fat::Label;
use tree::Tree;

/// The plugin: the directory and, once it is ready, what is in it and where on the disk.
#[derive(Debug, Default)]
pub struct Floppy {
    dir: Option<PathBuf>,
    label: Label,
    size: Option<u64>,
    tree: Arc<Tree>,
    /// The directories that have files.
    declared: Arc<[Declared]>,
    regions: Arc<Regions>,
}

impl Plugin for Floppy {
    fn name(&self) -> &str {
        "floppy"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit floppy plugin")
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "longname",
            "config",
            "config_complete",
            "config_help",
            "get_ready",
            "open",
            "get_size",
            "block_size",
            "can_write",
            "can_flush",
            "can_extents",
            "can_multi_conn",
            "can_cache",
            "pread",
            "pwrite",
            "flush",
            "extents",
            "cache",
        ]
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("dir")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "dir=<DIRECTORY>     (required) The directory to serve.\n\
             label=<LABEL>                  The volume label.\n\
             size=<SIZE>                    The size of the whole disk.",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "dir" if self.dir.is_some() => {
                return Err(Error::msg("dir=<DIRECTORY> must only be set once"));
            }
            "dir" => self.dir = Some(value.realpath()?),
            "label" => self.label = Label::parse(value.as_bytes())?,
            "size" => self.size = Some(value.size()?),
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn config_complete(&mut self) -> Result<()> {
        match self.dir {
            Some(_) => Ok(()),
            None => Err(Error::msg(
                "you must supply the dir=<DIRECTORY> parameter after the plugin name on the \
                 command line",
            )),
        }
    }

    fn get_ready(&mut self) -> Result<()> {
        let Some(dir) = &self.dir else { return Err(Error::msg("floppy: not ready")) };
        let tree = Tree::scan(dir)?;
        self.regions = Arc::new(fat::regions(&tree, &self.label, self.size)?);
        let directory = |dir: &tree::Directory| Declared::directory(&dir.path, false);
        self.declared = tree.directories.iter().map(|dir| directory(dir).read_only(true)).collect();
        self.tree = Arc::new(tree);
        Ok(())
    }

    fn needs(&self, _readonly: bool) -> Needs {
        let used = self.tree.directories.iter().map(tree::Directory::has_files);
        let declared = self.declared.iter().zip(used).filter(|(_, used)| *used);
        declared.fold(Needs::nothing(), |needs, (it, _)| needs.declare(it.clone()))
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        let (tree, declared) = (Arc::clone(&self.tree), Arc::clone(&self.declared));
        let files = Files::on_demand(tree.files.len(), move |number| {
            let file = &tree.files[number];
            paths::open(&declared[file.directory], Some(file.name.as_ref()), true)
        });
        let block_size = BlockSize { minimum: 1, preferred: 512, maximum: u32::MAX };
        Ok(Box::new(Disk { regions: Arc::clone(&self.regions), files, block_size }))
    }
}

#[cfg(test)]
mod tests;
