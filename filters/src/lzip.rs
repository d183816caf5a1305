//! nbdkit-lzip-filter(1): decompresses an lzip file member by member.
//!
//! The members are found from the end of the file, where each one's size is (lzip manual, "File
//! format").

use std::io::{BufReader, Read};

use lzma_rust2::LzipReader;
use nbdkit_api::{Filter, Needs, NextConfig, Open, OpenLayer, Result, Slot, ThreadModel, Value};

use crate::compressed::blocks::{Block, Builder, Format, Image, Parameters};
use crate::compressed::{corrupt, reader};

/// The filter: its parameters and, once ready, the indexes.
#[derive(Debug, Default)]
pub struct Lzip(Parameters);

impl Filter for Lzip {
    fn name(&self) -> &str {
        "lzip"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit lzip filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "lzip-max-block=<SIZE> (optional) Maximum block size allowed (default: 512M)\n\
             lzip-max-depth=<N>    (optional) Maximum blocks in cache (default: 8)",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        self.0.config::<Members>(next, key, value)
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.0.get_ready()
    }

    fn needs(&self, below: Needs) -> Needs {
        below.read_only().memory(self.0.memory())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        self.0.open::<Members>(below, open)
    }
}

const NAME: &str = "lzip";
/// What a member begins with: its magic, and the version.
const BEGIN: [u8; 5] = *b"LZIP\x01";
/// Bytes of a member's header, and of its trailer.
const HEADER: u64 = 6;
const TRAILER: u64 = 20;
/// Most members of a file: they take 64 MiB while they are found.
/// Tests have less to do.
const MAX_MEMBERS: usize = if cfg!(test) { 1000 } else { 1 << 22 };

/// A file is members one after the other.
struct Members;

impl Format for Members {
    const NAME: &'static str = NAME;

    fn index(image: &Image<'_>, size: u64, builder: &mut Builder<'_>) -> Result<()> {
        let mut members = Vec::new();
        let mut end = size;
        while end > 0 || members.is_empty() {
            if members.len() == MAX_MEMBERS {
                return Err(corrupt(NAME, "the file has too many members"));
            }
            let (data, length) = read_member(image, end)?;
            members.push((data, length));
            end -= length;
        }
        for (data, length) in members.into_iter().rev() {
            builder.add(data, end, length, 0)?;
            end += length;
        }
        Ok(())
    }

    /// The decoder checks the sum and both sizes.
    fn decode(image: &Image<'_>, block: &Block) -> Result<Vec<u8>> {
        let member = image.stream(block.offset, block.offset + block.length);
        let mut data = reader::buffer(NAME, block.size)?;
        // One byte more, so that the decoder comes to the trailer.
        LzipReader::new(BufReader::with_capacity(reader::CHUNK, member))
            .take(block.size.saturating_add(1))
            .read_to_end(&mut data)
            .map_err(|error| reader::decoder_error(NAME, error))?;
        if data.len() as u64 != block.size {
            return Err(corrupt(NAME, "a member has another size than its trailer says"));
        }
        Ok(data)
    }
}

/// How many bytes the member that ends at `end` has, decompressed and compressed.
fn read_member(image: &Image<'_>, end: u64) -> Result<(u64, u64)> {
    let none = || corrupt(NAME, "not an lzip file");
    let at = end.checked_sub(TRAILER).filter(|at| *at >= HEADER).ok_or_else(none)?;
    let mut trailer = [0; TRAILER as usize];
    image.read(&mut trailer, at)?;
    let number = |at: usize| {
        let mut number = [0; 8];
        number.copy_from_slice(&trailer[at..at + 8]);
        u64::from_le_bytes(number)
    };
    let (data, length) = (number(4), number(12));
    let start = end.checked_sub(length).filter(|_| length >= HEADER + TRAILER).ok_or_else(none)?;
    let mut begin = [0; BEGIN.len()];
    image.read(&mut begin, start)?;
    if begin != BEGIN {
        return Err(none());
    }
    Ok((data, length))
}

#[cfg(test)]
mod tests;
