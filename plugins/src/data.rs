//! nbdkit-data-plugin(1): a disk whose content is written on the command line.
//!
//! The text becomes a list of expressions ([`parser`]), that a sparse image ([`eval`], [`image`]),
//! and that the bytes of an allocator: all of it in the template, in `get_ready`. The workers only
//! use the allocator, as those of the memory plugin do.

mod base64;
mod eval;
#[cfg(test)]
mod examples;
mod expr;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod image;
mod parser;
mod source;
mod token;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;
use std::sync::Arc;

use nbdkit_api::{Connection, Error, Isolation, Open, Plugin, Result, Value, debug};

use crate::allocator::{self, Allocator, Kind, Strategy};
use crate::memory;
use image::{Content, Image};

/// The plugin: parameters and, once it is ready, the disk.
#[derive(Debug, Default)]
pub struct Data {
    content: Option<Source>,
    size: Option<u64>,
    strategy: Strategy,
    /// Parameters of other names, for `$NAME`.
    parameters: HashMap<String, OsString>,
    disk: Option<(Arc<dyn Allocator>, u64)>,
}

/// The parameter with the content of the disk.
#[derive(Debug)]
enum Source {
    /// `data=`
    Format(OsString),
    /// `raw=` and `base64=`
    Bytes(Vec<u8>),
}

impl Data {
    fn set_content(&mut self, content: Source) -> Result<()> {
        if self.content.is_some() {
            return Err(Error::msg("raw|base64|data parameter must be specified exactly once"));
        }
        self.content = Some(content);
        Ok(())
    }

    fn image(&self) -> Result<Image> {
        match &self.content {
            None => Err(missing()),
            Some(Source::Format(text)) => eval::evaluate(text.as_bytes(), &self.parameters),
            Some(Source::Bytes(bytes)) => {
                Ok(Image::of(Content::Bytes(Rc::new(bytes.clone())), bytes.len() as u64))
            }
        }
    }
}

fn missing() -> Error {
    Error::msg("raw|base64|data parameter was not specified")
}

impl Plugin for Data {
    fn name(&self) -> &str {
        "data"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        memory::CALLBACKS
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("data")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "data|raw|base64=...     Specify disk data on the command line\n\
             size=<SIZE>             Size of the backing disk\n\
             allocator=sparse|...    Backend allocation strategy",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "data" => self.set_content(Source::Format(value.to_os_string())),
            "raw" => self.set_content(Source::Bytes(value.as_bytes().to_vec())),
            "base64" => {
                let bytes = base64::decode(value.as_bytes())
                    .ok_or_else(|| Error::msg("base64: Base64 decoding error."))?;
                self.set_content(Source::Bytes(bytes))
            }
            "size" => {
                self.size = Some(value.size()?);
                Ok(())
            }
            "allocator" => {
                self.strategy = Strategy::parse(value)?;
                Ok(())
            }
            // Any other parameter may be the text of a $NAME.
            _ => {
                self.parameters.insert(key.to_owned(), value.to_os_string());
                Ok(())
            }
        }
    }

    fn config_complete(&mut self) -> Result<()> {
        match &self.content {
            None => Err(missing()),
            // Nothing else could name them.
            Some(Source::Bytes(_)) if !self.parameters.is_empty() => {
                Err(Error::msg("extra parameters passed and not using data='...'"))
            }
            Some(_) => Ok(()),
        }
    }

    fn get_ready(&mut self) -> Result<()> {
        let image = self.image()?;
        debug!("implicit disk size: {}", image.size());
        let size = self.size.unwrap_or(image.size());
        let shown = image.size().min(size);
        let image = Image::slice(&Rc::new(image), 0, shown)?;
        check_cost(&image, self.strategy)?;
        let mut disk = self.strategy.create("data")?;
        disk.set_size(size)?;
        write(&image, &*disk)?;
        self.disk = Some((disk.into(), size));
        Ok(())
    }

    fn dump_plugin(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "data_base64=yes")?;
        allocator::dump_plugin(out)
    }

    fn isolation(&self) -> Isolation {
        self.disk.as_ref().map_or(Isolation::Connection, |(disk, _)| disk.isolation())
    }

    /// What clients write is nowhere else.
    fn keeps_state(&self) -> bool {
        true
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        match &self.disk {
            Some((disk, size)) => memory::open(disk, *size),
            None => Err(Error::msg("data: not ready")),
        }
    }
}

/// Refuses what this machine cannot hold before anything is written: a repeat count with a few
/// digits too many would otherwise fill the memory, and a file in memory that does not fit is not
/// an error but a visit of the OOM killer.
fn check_cost(image: &Image, strategy: Strategy) -> Result<()> {
    let memory = allocator::machine_memory()?;
    let compression = match strategy.kind {
        Kind::Sparse | Kind::Malloc { .. } => 1,
        // The patterns that one can write on a command line compress at least so well.
        Kind::Zstd => 64,
    };
    if image.cost() > memory.saturating_mul(compression) {
        return Err(Error::msg(format!(
            "data parameter describes {} bytes of data, more than this machine's memory ({memory} bytes)",
            image.cost()
        )));
    }
    Ok(())
}

/// Piece in which the image is written, bytes.
const PIECE: u64 = 64 << 10;

/// Writes what is not zero in `image`.
fn write(image: &Image, disk: &dyn Allocator) -> Result<()> {
    let mut buf = vec![0; PIECE as usize];
    let mut at = 0;
    while let Some(found) = image.next_data(at) {
        at = found - found % PIECE;
        let length = (image.size() - at).min(PIECE) as usize;
        let piece = &mut buf[..length];
        image.read(piece, at)?;
        allocator::write_used(disk, piece, at)?;
        at += length as u64;
    }
    Ok(())
}
