//! The .xz file format, version 1.2.1 (tukaani.org/xz/xz-file-format.txt): section numbers below
//! are those of that text.

use std::io::{BufReader, Read};

use crc::{CRC_32_ISO_HDLC, Crc, Table};
use lzma_rust2::XzReader;
use nbdkit_api::Result;
use sha2::Digest;

use crate::compressed::blocks::{self, Block, Builder, Image, MAX_BLOCKS};
use crate::compressed::{corrupt, reader};

static CRC32: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISO_HDLC);

const NAME: &str = "xz";
/// 2.1.1.1.
const MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
/// 2.1.2.4.
const FOOTER_MAGIC: [u8; 2] = *b"YZ";
/// Bytes of a stream header, and of a stream footer (2.1).
const HEADER: u64 = 12;
/// Most streams of a file: an index of 16 MiB with nothing in it.
/// Tests have less to do.
const MAX_STREAMS: usize = if cfg!(test) { 1000 } else { 1 << 19 };
/// Zeroes that are read at a time: few at first, since most streams have none behind them.
const PADDING: std::ops::RangeInclusive<u64> = 16..=64 << 10;

/// The xz file format, for the filter of indexed blocks.
pub(crate) struct Xz;

/// One stream of a file.
struct Stream {
    /// Where its blocks begin, bytes.
    blocks: u64,
    /// Where its index is, bytes.
    index: u64,
    index_size: u64,
    /// The id of the check of its blocks (2.1.1.2).
    check: u8,
}

fn invalid(why: &str) -> nbdkit_api::Error {
    corrupt(NAME, why)
}

impl blocks::Format for Xz {
    const NAME: &'static str = NAME;

    /// Streams are found from the end of the file, and their blocks from the beginning.
    fn index(image: &Image<'_>, size: u64, builder: &mut Builder<'_>) -> Result<()> {
        let mut magic = [0; MAGIC.len()];
        if size >= magic.len() as u64 {
            image.read(&mut magic, 0)?;
        }
        if magic != MAGIC {
            return Err(invalid("not an xz file"));
        }
        let (mut streams, mut blocks) = (Vec::new(), 0);
        let mut end = size;
        while let Some(footer) = end_of_stream(image, end)? {
            let stream = read_stream(image, footer, &mut blocks)?;
            end = stream.blocks - HEADER;
            if streams.len() == MAX_STREAMS {
                return Err(invalid("the file has too many streams"));
            }
            streams.push(stream);
        }
        for stream in streams.iter().rev() {
            let mut offset = stream.blocks;
            let records = image.stream(stream.index, stream.index + stream.index_size);
            read_index(records, |record| {
                builder.add(record.size, offset, record.unpadded, stream.check.into())?;
                offset += record.padded()?;
                Ok(())
            })?;
        }
        Ok(())
    }

    fn decode(image: &Image<'_>, block: &Block) -> Result<Vec<u8>> {
        let check = Check::new(block.detail)?;
        let check_size = check.size();
        let unpadded = block.length.checked_sub(check_size as u64).filter(|length| *length >= 5);
        let unpadded = unpadded.ok_or_else(|| invalid("a block is too short"))?;
        let end = block.offset + unpadded.next_multiple_of(4);
        let (header, tail) = stream_around(unpadded, block.size);
        let compressed = BufReader::with_capacity(reader::CHUNK, image.stream(block.offset, end));
        let stream = header.as_slice().chain(compressed).chain(tail.as_slice());
        let mut data = reader::buffer(NAME, block.size)?;
        // One byte more, so that the decoder comes to the end of the stream and checks it.
        XzReader::new(stream, false)
            .take(block.size.saturating_add(1))
            .read_to_end(&mut data)
            .map_err(|error| reader::decoder_error(NAME, error))?;
        if data.len() as u64 != block.size {
            return Err(invalid("a block has another size than in the index"));
        }
        let mut expected = [0; Check::LARGEST];
        let expected = &mut expected[..check_size];
        image.read(expected, end)?;
        if !check.is(&data, expected) {
            return Err(invalid("a block is damaged: its check differs"));
        }
        Ok(data)
    }
}

/// The check of a block's data (2.1.1.2).
enum Check {
    None,
    Crc32,
    Crc64,
    Sha256,
}

impl Check {
    /// Bytes of the largest.
    const LARGEST: usize = 32;

    fn new(id: u64) -> Result<Check> {
        match id {
            0 => Ok(Check::None),
            1 => Ok(Check::Crc32),
            4 => Ok(Check::Crc64),
            10 => Ok(Check::Sha256),
            _ => Err(corrupt(NAME, format_args!("blocks have an unknown check ({id})"))),
        }
    }

    fn size(&self) -> usize {
        match self {
            Check::None => 0,
            Check::Crc32 => 4,
            Check::Crc64 => 8,
            Check::Sha256 => 32,
        }
    }

    fn is(&self, data: &[u8], expected: &[u8]) -> bool {
        match self {
            Check::None => true,
            Check::Crc32 => CRC32.checksum(data).to_le_bytes() == expected,
            Check::Crc64 => crc64(data).to_le_bytes() == expected,
            Check::Sha256 => sha2::Sha256::digest(data)[..] == *expected,
        }
    }
}

/// 6.
fn crc64(data: &[u8]) -> u64 {
    let mut digest = crc64fast::Digest::new();
    digest.write(data);
    digest.sum64()
}

/// Where the stream ends whose footer is the last one before `end`, behind which there may be
/// padding (2.2); `None` at the beginning of the file.
fn end_of_stream(image: &Image<'_>, mut end: u64) -> Result<Option<u64>> {
    let (mut zeroes, mut most) = (Vec::new(), *PADDING.start());
    while end > 0 {
        let count = end.min(most);
        zeroes.resize(count as usize, 0);
        let part = &mut zeroes[..];
        image.read(part, end - count)?;
        if let Some(last) = part.iter().rposition(|byte| *byte != 0) {
            // The last byte of a footer is that of its magic.
            let padding = count - last as u64 - 1;
            if !padding.is_multiple_of(4) {
                return Err(invalid("invalid stream padding"));
            }
            return Ok(Some(end - padding));
        }
        end -= count;
        most = (most * 2).min(*PADDING.end());
    }
    Ok(None)
}

/// Reads the stream that ends at `end`. `blocks` counts those of the file so far.
fn read_stream(image: &Image<'_>, end: u64, blocks: &mut u64) -> Result<Stream> {
    let mut footer = [0; HEADER as usize];
    let at = end.checked_sub(HEADER).filter(|at| *at >= HEADER);
    let at = at.ok_or_else(|| invalid("file too short"))?;
    image.read(&mut footer, at)?;
    let (crc, fields) = (&footer[..4], &footer[4..10]);
    if footer[10..] != FOOTER_MAGIC || CRC32.checksum(fields).to_le_bytes() != crc {
        return Err(invalid("invalid stream footer"));
    }
    let backward = u32::from_le_bytes([fields[0], fields[1], fields[2], fields[3]]);
    let flags = [fields[4], fields[5]];
    if flags[0] != 0 || flags[1] > 15 {
        return Err(invalid("invalid stream footer: unknown flags"));
    }
    let index_size = (u64::from(backward) + 1) * 4;
    let index = at.checked_sub(index_size).filter(|index| *index >= HEADER);
    let index = index.ok_or_else(|| invalid("invalid stream footer: the index is too large"))?;
    let mut size = 0_u64;
    read_index(image.stream(index, at), |record| {
        *blocks += 1;
        if *blocks > MAX_BLOCKS {
            return Err(corrupt(NAME, format_args!("more than {MAX_BLOCKS} blocks")));
        }
        let total = size.checked_add(record.padded()?);
        size = total.ok_or_else(|| invalid("invalid index: the blocks are too large"))?;
        Ok(())
    })?;
    let first = index.checked_sub(size).filter(|first| *first >= HEADER);
    let first = first.ok_or_else(|| invalid("invalid index: the blocks are too large"))?;
    let mut header = [0; HEADER as usize];
    image.read(&mut header, first - HEADER)?;
    if header != stream_header(flags) {
        return Err(invalid("invalid stream header"));
    }
    Ok(Stream { blocks: first, index, index_size, check: flags[1] })
}

/// A block in an index (4.3).
struct Record {
    /// Compressed bytes without padding.
    unpadded: u64,
    /// Decompressed bytes.
    size: u64,
}

impl Record {
    fn padded(&self) -> Result<u64> {
        let padded = self.unpadded.checked_next_multiple_of(4);
        padded.ok_or_else(|| invalid("invalid index: the blocks are too large"))
    }
}

/// Reads an index (4), which is all of `stream`, and calls `each` for its records.
fn read_index(stream: reader::Below<'_>, mut each: impl FnMut(Record) -> Result<()>) -> Result<()> {
    let mut index = Sums { stream: BufReader::new(stream), crc: CRC32.digest(), count: 0 };
    if index.byte()? != 0 {
        return Err(invalid("invalid index: no indicator"));
    }
    for _ in 0..index.number()? {
        let (unpadded, size) = (index.number()?, index.number()?);
        // 4.3.1.
        if unpadded < 5 {
            return Err(invalid("invalid index: a block is too short"));
        }
        each(Record { unpadded, size })?;
    }
    while !index.count.is_multiple_of(4) {
        if index.byte()? != 0 {
            return Err(invalid("invalid index: padding is not zero"));
        }
    }
    let crc = index.crc.clone().finalize();
    let stored = [index.byte()?, index.byte()?, index.byte()?, index.byte()?];
    if crc.to_le_bytes() != stored {
        return Err(invalid("invalid index: its check differs"));
    }
    if index.stream.bytes().next().is_some() {
        return Err(invalid("invalid index: its size differs from the footer's"));
    }
    Ok(())
}

/// An index that is being read, and its check so far.
struct Sums<'a> {
    stream: BufReader<reader::Below<'a>>,
    crc: crc::Digest<'static, u32, Table<16>>,
    /// Bytes so far.
    count: u64,
}

impl Sums<'_> {
    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        match self.stream.read_exact(&mut byte) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(invalid("invalid index: it is longer than the footer says"));
            }
            Err(error) => return Err(reader::decoder_error(NAME, error)),
        }
        self.crc.update(&byte);
        self.count += 1;
        Ok(byte[0])
    }

    /// 1.2: seven bits in each byte, the lowest ones first, at most nine bytes.
    fn number(&mut self) -> Result<u64> {
        let mut number = 0;
        for at in 0..9 {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << (at * 7);
            if byte & 0x80 == 0 {
                // No number has zeroes in front.
                return if byte == 0 && at > 0 {
                    Err(invalid("invalid index"))
                } else {
                    Ok(number)
                };
            }
        }
        Err(invalid("invalid index: a number is too large"))
    }
}

/// 2.1.1.
fn stream_header(flags: [u8; 2]) -> [u8; HEADER as usize] {
    let mut header = [0; HEADER as usize];
    header[..6].copy_from_slice(&MAGIC);
    header[6..8].copy_from_slice(&flags);
    header[8..].copy_from_slice(&CRC32.checksum(&flags).to_le_bytes());
    header
}

/// What makes a stream without check (2) of one block: the header before it, the index and the
/// footer behind it.
fn stream_around(unpadded: u64, size: u64) -> ([u8; HEADER as usize], Vec<u8>) {
    (stream_header(NO_CHECK), index_and_footer(&[(unpadded, size)]))
}

/// Of a stream whose blocks have no check.
const NO_CHECK: [u8; 2] = [0, 0];

/// The end of a stream of blocks without check, which have so many compressed and decompressed
/// bytes.
fn index_and_footer(blocks: &[(u64, u64)]) -> Vec<u8> {
    let mut tail = vec![0];
    let numbers = blocks.iter().flat_map(|(unpadded, size)| [*unpadded, *size]);
    for mut number in std::iter::once(blocks.len() as u64).chain(numbers) {
        while number >= 0x80 {
            tail.push(number as u8 | 0x80);
            number >>= 7;
        }
        tail.push(number as u8);
    }
    tail.resize(tail.len().next_multiple_of(4), 0);
    tail.extend(CRC32.checksum(&tail).to_le_bytes());
    let backward = (tail.len() / 4 - 1) as u32;
    let mut fields = backward.to_le_bytes().to_vec();
    fields.extend(NO_CHECK);
    tail.extend(CRC32.checksum(&fields).to_le_bytes());
    tail.extend(fields);
    tail.extend(FOOTER_MAGIC);
    tail
}

#[cfg(test)]
pub(crate) mod tests {
    /// The check value of CRC-64/XZ, and what a bit at a time makes of other lengths.
    #[test]
    fn crc_64_is_that_of_the_format() {
        assert_eq!(super::crc64(b"123456789"), 0x995d_c9bb_df19_39fa);
        for length in [0, 1, 15, 16, 127, 128, 129, 1000] {
            let data: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
            let mut sum = u64::MAX;
            for byte in &data {
                sum ^= u64::from(*byte);
                for _ in 0..8 {
                    sum = (sum >> 1) ^ ((sum & 1) * 0xc96c_5795_d787_0f42);
                }
            }
            assert_eq!(super::crc64(&data), !sum, "{length}");
        }
    }

    /// A stream of blocks without check, and the index that it is to have.
    pub(crate) fn stream(blocks: &[u8], index: &[(u64, u64)]) -> Vec<u8> {
        let header = super::stream_header(super::NO_CHECK);
        [&header[..], blocks, &super::index_and_footer(index)].concat()
    }
}
