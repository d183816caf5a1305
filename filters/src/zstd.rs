//! nbdkit-zstd-filter(1): serves what a Zstandard file decompresses to. A file with a seek table is
//! decompressed frame by frame, as far as it is read; any other is expanded into a temporary file.
//!
//! The format is RFC 8878; that of the seek table is "Zstandard Seekable Format", 0.1.0, in the
//! library's contrib/seekable_format.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::OnceLock;

use ::zstd::stream::read::Decoder;
use nbdkit_api::{
    Blocking, Cache, Direction, FileRange, Filter, Needs, Next, NextConfig, Open, OpenLayer,
    Result, Slot, ThreadModel, Value,
};

use crate::compressed::blocks::{self, Block, Builder, Image, Parameters};
use crate::compressed::expansion::{self, Expansions, Plan};
use crate::compressed::points::Disk;
use crate::compressed::{corrupt, reader};

const NAME: &str = "zstd";
const LONGNAME: &str = "nbdkit zstd filter";
/// Most bytes of a frame's window. RFC 8878, 3.1.1.1.2; the limit of zstd(1), too.
const MAX_WINDOW: u64 = 1 << MAX_WINDOW_LOG;
const MAX_WINDOW_LOG: u32 = 27;

/// The filter: its parameters and, once ready, the indexes and the expanded images.
#[derive(Debug, Default)]
pub struct Zstd {
    parameters: Parameters,
    expansions: Option<Expansions>,
}

impl Filter for Zstd {
    fn name(&self) -> &str {
        NAME
    }

    fn longname(&self) -> Option<&str> {
        Some(LONGNAME)
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "zstd-max-block=<SIZE> (optional) Maximum frame size allowed (default: 512M)\n\
             zstd-max-depth=<N>    (optional) Maximum frames in cache (default: 8)",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        self.parameters.config::<Frames>(next, key, value)
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        self.parameters.get_ready()?;
        self.expansions = Some(Expansions::new()?);
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        let windows = u64::from(self.parameters.depth()).saturating_mul(MAX_WINDOW);
        below.read_only().memory(self.parameters.memory()).memory(windows)
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(&open.readonly(true))?;
        Ok(Box::new(Handle {
            frames: self.parameters.layer::<Frames>(open)?,
            whole: Expansions::layer::<Frames>(
                self.expansions.as_ref(),
                open,
                Plan::of::<Frames>(None),
            )?,
            is_seekable: OnceLock::new(),
        }))
    }
}

/// RFC 8878, 3: a file is frames one after the other.
struct Frames;

/// What a file with a seek table ends with.
struct SeekTable {
    /// Where its entries begin, bytes.
    entries: u64,
    frames: u32,
    /// Bytes of an entry.
    entry: u64,
    /// Where the frames end, bytes.
    end: u64,
}

impl SeekTable {
    /// Bytes of the footer: the number of frames, a descriptor, the magic number.
    const FOOTER: u64 = 9;
    const MAGIC: u32 = 0x8f92_eab1;
    /// Of the skippable frame that the table is (RFC 8878, 3.1.2), and the bytes of its header.
    const FRAME_MAGIC: u32 = 0x184d_2a5e;
    const HEADER: u64 = 8;

    /// The table of a file of `size` bytes, if there is one.
    ///
    /// # Errors
    /// EIO: it is damaged. Those of reading.
    fn find(image: &Image<'_>, size: u64) -> Result<Option<SeekTable>> {
        let Some(at) = size.checked_sub(SeekTable::FOOTER) else { return Ok(None) };
        let mut footer = [0; SeekTable::FOOTER as usize];
        image.read(&mut footer, at)?;
        let [f0, f1, f2, f3, descriptor, magic @ ..] = footer;
        if u32::from_le_bytes(magic) != SeekTable::MAGIC {
            return Ok(None);
        }
        let damaged = || corrupt(NAME, "the seek table is damaged");
        let frames = u32::from_le_bytes([f0, f1, f2, f3]);
        // Reserved bits: an entry may have another form.
        if descriptor & 0x7c != 0 {
            return Err(corrupt(NAME, "the seek table is of an unknown kind"));
        }
        let entry = if descriptor & 0x80 == 0 { 8 } else { 12 };
        let length = u64::from(frames) * entry;
        let end = at.checked_sub(length + SeekTable::HEADER).ok_or_else(damaged)?;
        let mut header = [0; SeekTable::HEADER as usize];
        image.read(&mut header, end)?;
        let [m0, m1, m2, m3, frame_size @ ..] = header;
        let is_right = u32::from_le_bytes([m0, m1, m2, m3]) == SeekTable::FRAME_MAGIC
            && u64::from(u32::from_le_bytes(frame_size)) == length + SeekTable::FOOTER;
        if !is_right {
            return Err(damaged());
        }
        Ok(Some(SeekTable { entries: end + SeekTable::HEADER, frames, entry, end }))
    }
}

impl blocks::Format for Frames {
    const NAME: &'static str = NAME;

    fn index(image: &Image<'_>, size: u64, builder: &mut Builder<'_>) -> Result<()> {
        let damaged = || corrupt(NAME, "the seek table is damaged");
        let table = SeekTable::find(image, size)?.ok_or_else(damaged)?;
        let end = table.entries + u64::from(table.frames) * table.entry;
        let mut entries = BufReader::new(image.stream(table.entries, end));
        let mut offset = 0;
        for _ in 0..table.frames {
            let mut entry = [0; 12];
            let entry = &mut entry[..table.entry as usize];
            entries.read_exact(entry).map_err(|error| reader::decoder_error(NAME, error))?;
            let number = |at: usize| {
                u64::from(u32::from_le_bytes([
                    entry[at],
                    entry[at + 1],
                    entry[at + 2],
                    entry[at + 3],
                ]))
            };
            let (compressed, data) = (number(0), number(4));
            builder.add(data, offset, compressed, 0)?;
            offset += compressed;
        }
        if offset == table.end { Ok(()) } else { Err(damaged()) }
    }

    fn decode(image: &Image<'_>, block: &Block) -> Result<Vec<u8>> {
        let frame = image.stream(block.offset, block.offset + block.length);
        let mut data = reader::buffer(NAME, block.size)?;
        // One byte more, so that the decoder comes to the end and checks the sum.
        decoder(BufReader::with_capacity(reader::CHUNK, frame))
            .and_then(|frame| frame.take(block.size.saturating_add(1)).read_to_end(&mut data))
            .map_err(|error| reader::decoder_error(NAME, error))?;
        if data.len() as u64 != block.size {
            return Err(corrupt(NAME, "a frame has another size than in the seek table"));
        }
        Ok(data)
    }
}

impl expansion::Format for Frames {
    const NAME: &'static str = NAME;
    const LONGNAME: &'static str = LONGNAME;

    fn expand(image: &mut dyn BufRead, disk: &mut Disk<'_>) -> io::Result<u64> {
        if image.fill_buf()?.is_empty() {
            return Err(io::Error::other("not a zstd file"));
        }
        // The decoder goes on to the next frame, and checks the sum of each that has one.
        expansion::copy(&mut decoder(image)?, disk).map(|()| 0)
    }
}

fn decoder<'a, R: BufRead>(image: R) -> io::Result<Decoder<'a, R>> {
    let mut decoder = Decoder::with_buffer(image)?;
    decoder.window_log_max(MAX_WINDOW_LOG)?;
    Ok(decoder)
}

/// Both ways, of which one is prepared.
struct Handle {
    frames: Box<dyn OpenLayer>,
    whole: Box<dyn OpenLayer>,
    is_seekable: OnceLock<bool>,
}

impl Handle {
    fn layer(&self) -> &dyn OpenLayer {
        if self.is_seekable.get() == Some(&true) { &*self.frames } else { &*self.whole }
    }
}

impl OpenLayer for Handle {
    fn prepare(&self, next: &Next, readonly: bool) -> Result<()> {
        let table = SeekTable::find(&Image { next, client: None }, next.size()?)?;
        let _ = self.is_seekable.set(table.is_some());
        self.layer().prepare(next, readonly)
    }

    fn size(&self, next: &Next) -> Result<u64> {
        self.layer().size(next)
    }

    fn export_description(&self, next: &Next) -> Option<String> {
        self.layer().export_description(next)
    }

    fn can_write(&self, next: &Next) -> Result<bool> {
        self.layer().can_write(next)
    }

    fn can_extents(&self, next: &Next) -> Result<bool> {
        self.layer().can_extents(next)
    }

    fn can_multi_conn(&self, next: &Next) -> Result<bool> {
        self.layer().can_multi_conn(next)
    }

    fn can_cache(&self, next: &Next) -> Result<Cache> {
        self.layer().can_cache(next)
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.layer().pread(next, buf, offset)
    }

    fn blocking(&self) -> Blocking {
        self.layer().blocking()
    }

    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        self.layer().try_pread(next, buf, offset)
    }

    fn file_range(&self, direction: Direction, count: u32, offset: u64) -> Option<FileRange<'_>> {
        self.layer().file_range(direction, count, offset)
    }
}

#[cfg(test)]
mod tests;
