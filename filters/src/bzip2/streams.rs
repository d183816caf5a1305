//! Decompressing bzip2, from the beginning of a file or from a block in the middle.
//!
//! A stream is `BZh`, a digit, blocks, and an end; blocks and end begin at any bit with a magic
//! number of 48 bits and a sum of 32. A block does not say how long it is: it ends where the next
//! magic number is, and nothing but decompressing tells that from bits of the block that happen to
//! look like one. So a block is decompressed as the only one of a stream that is made for it.

use std::io::{self, BufRead, Read};

use bzip2::bufread::BzDecoder;

use crate::compressed::points::Start;
use crate::compressed::sink::Sink;

/// What a stream begins with; a digit follows, the size of its blocks.
pub(super) const MAGIC: [u8; 3] = *b"BZh";
/// The magic numbers, 48 bits, of a block and of a stream's end.
const BLOCK: u64 = 0x3141_5926_5359;
const END: u64 = 0x1772_4538_5090;
const MAGIC_BITS: usize = 48;
/// Bits that blocks and ends begin with: a magic number and a sum.
const HEAD_BITS: usize = MAGIC_BITS + 32;
/// Most bytes of a block on the disk: 900,000, which are runs of 259 written as five.
pub(super) const MAX_BLOCK: u64 = 48 << 20;
/// Most bytes of a compressed block. One that a compressor makes has 900,001 symbols of up to 20
/// bits and 20 KB of tables.
const MAX_COMPRESSED: usize = 4 << 20;
/// How often a block is decompressed. Bits look like a magic number in one of 2^47 places.
const MAX_ATTEMPTS: usize = 16;

/// Decompresses a stream, and checks it. Each block may be a point.
///
/// # Errors
/// It is damaged; those of `image` and `sink`.
pub(super) fn stream(image: &mut dyn BufRead, sink: &mut dyn Sink) -> io::Result<()> {
    let mut header = [0; MAGIC.len() + 1];
    image.read_exact(&mut header)?;
    let [magic @ .., level] = header;
    if magic != MAGIC || !(b'1'..=b'9').contains(&level) {
        return Err(damaged("a stream has a header that is not known"));
    }
    let mut blocks = Blocks::new(image, level, 0);
    match blocks.copy(sink)? {
        Some((found, expected)) if found != expected => {
            Err(damaged("a stream has another sum than it should have"))
        }
        _ => Ok(()),
    }
}

/// Decompresses from a point on until `sink` is full. Sums of streams whose beginning is not there
/// are not checked.
///
/// # Errors
/// The image is not what it was when the point was made; those of `image` and `sink`.
pub(super) fn from_point(
    image: &mut dyn BufRead,
    start: Start,
    sink: &mut dyn Sink,
) -> io::Result<()> {
    if let Start::Middle { bits, .. } = start {
        Blocks::new(image, b'9', usize::from(bits & 7)).copy(sink)?;
    }
    while !sink.is_full() {
        stream(image, sink)?;
    }
    Ok(())
}

fn damaged(why: &str) -> io::Error {
    io::Error::other(why.to_owned())
}

/// What is left of a stream.
struct Blocks<'a> {
    image: &'a mut dyn BufRead,
    level: u8,
    /// What was read, from the byte on that has the first bit of a block or of the end.
    data: Vec<u8>,
    /// That bit in its byte, the highest being 0.
    bit: usize,
}

impl<'a> Blocks<'a> {
    fn new(image: &'a mut dyn BufRead, level: u8, bit: usize) -> Blocks<'a> {
        Blocks { image, level, data: Vec::new(), bit }
    }

    /// Decompresses all, or until `sink` is full. At the end, the sum that the blocks have and the
    /// one that they should have. No byte behind the stream is read.
    fn copy(&mut self, sink: &mut dyn Sink) -> io::Result<Option<(u32, u32)>> {
        let mut sum = 0_u32;
        while !sink.is_full() {
            let (magic, block_sum) = self.head()?;
            match magic {
                END => return Ok(Some((sum, block_sum))),
                BLOCK => {}
                _ => return Err(damaged("a stream is damaged")),
            }
            if sink.is_due() {
                let start = Start::Middle { bits: self.bit as u8, value: 0 };
                sink.point(self.data.len() as u64, start, &[])?;
            }
            sink.write(&self.block(block_sum)?)?;
            sum = sum.rotate_left(1) ^ block_sum;
        }
        Ok(None)
    }

    /// The magic number and the sum that come next, which stay.
    fn head(&mut self) -> io::Result<(u64, u32)> {
        let count = (self.bit + HEAD_BITS).div_ceil(8);
        let missing = count.saturating_sub(self.data.len());
        let read = (&mut self.image).take(missing as u64).read_to_end(&mut self.data)?;
        if read < missing {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes = &self.data[..count];
        let bits = bytes.iter().fold(0, |bits, byte| bits << 8 | u128::from(*byte));
        let bits = bits >> (8 * count - self.bit - HEAD_BITS);
        Ok(((bits >> 32) as u64 & MASK, bits as u32))
    }

    /// Decompresses the block that comes next.
    fn block(&mut self, sum: u32) -> io::Result<Vec<u8>> {
        let mut scan = Scan { bytes: 0, last: 0, from: self.bit + HEAD_BITS };
        for attempt in 0..MAX_ATTEMPTS {
            let end = match self.find(&mut scan) {
                // The end was searched for because the block is damaged.
                Err(error) if attempt > 0 && error.kind() == io::ErrorKind::UnexpectedEof => break,
                end => end?,
            };
            match decode(&one_block(self.level, &self.data, self.bit, end, sum)) {
                Ok(block) => {
                    self.data.drain(..end / 8);
                    self.bit = end % 8;
                    return Ok(block);
                }
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory => return Err(error),
                Err(_) => {}
            }
        }
        Err(damaged("a block is damaged"))
    }

    /// The bit in `data` that the next magic number begins at; `data` ends with its last.
    fn find(&mut self, scan: &mut Scan) -> io::Result<usize> {
        while let Some(byte) = self.data.get(scan.bytes) {
            if let Some(bit) = scan.step(*byte) {
                return Ok(bit);
            }
        }
        while self.data.len() < MAX_COMPRESSED {
            let input = self.image.fill_buf()?;
            if input.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let input = &input[..input.len().min(MAX_COMPRESSED - self.data.len())];
            let found =
                input.iter().enumerate().find_map(|(at, byte)| Some((at, scan.step(*byte)?)));
            let count = found.map_or(input.len(), |(at, _)| at + 1);
            self.data.extend(&input[..count]);
            self.image.consume(count);
            if let Some((_, bit)) = found {
                return Ok(bit);
            }
        }
        Err(damaged("a block has no end"))
    }
}

/// 48 bits.
const MASK: u64 = (1 << MAGIC_BITS) - 1;

/// For the last byte but one, with which shifts the last seven may hold a magic number.
static SHIFTS: [u8; 256] = {
    let mut shifts = [0; 256];
    let mut shift = 0;
    while shift < 8 {
        shifts[(BLOCK << shift >> 8 & 0xff) as usize] |= 1 << shift;
        shifts[(END << shift >> 8 & 0xff) as usize] |= 1 << shift;
        shift += 1;
    }
    shifts
};

/// Looks for magic numbers.
struct Scan {
    /// How many have been looked at, and the last eight of them.
    bytes: usize,
    last: u64,
    /// The first bit that counts.
    from: usize,
}

impl Scan {
    /// Looks at one more byte; the bit at which a magic number begins that ends in it.
    fn step(&mut self, byte: u8) -> Option<usize> {
        self.last = self.last << 8 | u64::from(byte);
        self.bytes += 1;
        let shifts = SHIFTS[(self.last >> 8 & 0xff) as usize];
        if shifts == 0 {
            return None;
        }
        let is_magic = |shift: &usize| {
            shifts & 1 << shift != 0 && matches!(self.last >> shift & MASK, BLOCK | END)
        };
        let shift = (0..8).rev().find(is_magic)?;
        (8 * self.bytes).checked_sub(shift + MAGIC_BITS).filter(|bit| *bit >= self.from)
    }
}

/// A stream of which the bits `from .. end` of `data` are the only block.
fn one_block(level: u8, data: &[u8], from: usize, end: usize, sum: u32) -> Vec<u8> {
    let mut stream = Vec::with_capacity(data.len() + 16);
    stream.extend(MAGIC);
    stream.push(level);
    let (skip, count) = (from % 8, end - from);
    let bytes = &data[from / 8..end.div_ceil(8)];
    let next = bytes.iter().skip(1).chain([&0]);
    let shifted = bytes
        .iter()
        .zip(next)
        .map(|(byte, next)| ((u16::from(*byte) << 8 | u16::from(*next)) << skip >> 8) as u8);
    stream.extend(shifted.take(count.div_ceil(8)));
    // The end follows, at some bit of the last byte.
    let used = count % 8;
    let last = if used == 0 { 0 } else { stream.pop().unwrap_or(0) >> (8 - used) };
    let tail = u128::from(last) << HEAD_BITS | u128::from(END) << 32 | u128::from(sum);
    let tail = tail << (128 - used - HEAD_BITS);
    stream.extend(&tail.to_be_bytes()[..(used + HEAD_BITS).div_ceil(8)]);
    stream
}

/// What a stream decompresses to; the decoder checks its sums.
fn decode(stream: &[u8]) -> io::Result<Vec<u8>> {
    let mut block = Vec::new();
    BzDecoder::new(stream).take(MAX_BLOCK).read_to_end(&mut block)?;
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(data: &[u8], from: usize) -> Option<usize> {
        let mut scan = Scan { bytes: 0, last: 0, from };
        data.iter().find_map(|byte| scan.step(*byte))
    }

    #[test]
    fn magic_numbers_are_found_at_every_bit() {
        for magic in [BLOCK, END] {
            for behind in 32..40 {
                let data = (u128::from(magic) << behind).to_be_bytes();
                let bit = 128 - 48 - behind;
                assert_eq!(find(&data, 0), Some(bit), "{magic:x}");
                assert_eq!(find(&data, bit), Some(bit), "{magic:x}");
                assert_eq!(find(&data, bit + 1), None, "{magic:x}");
            }
        }
    }

    /// A stream of one block, made of the block at any bit, is the stream that the block is from.
    #[test]
    fn a_block_at_any_bit_becomes_a_stream() {
        let Some(stream) = crate::testing::made_by("bzip2", &["-9c"], b"hello, hello") else {
            return;
        };
        let bits: Vec<bool> = stream[4..]
            .iter()
            .flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1 == 1))
            .collect();
        for before in 0..8 {
            let shifted: Vec<bool> =
                std::iter::repeat_n(true, before).chain(bits.iter().copied()).collect();
            let byte = |bits: &[bool]| {
                (0..8).fold(0, |byte, at| byte << 1 | u8::from(bits.get(at) == Some(&true)))
            };
            let data: Vec<u8> = shifted.chunks(8).map(byte).collect();
            let sum = u32::from_be_bytes(stream[10..14].try_into().unwrap());
            let end = find(&data, before + HEAD_BITS).unwrap();
            assert!(one_block(b'9', &data, before, end, sum) == stream, "{before}");
        }
    }

    /// Bits in a block that look like a magic number do not end it. Behind its sum, a block says
    /// with a bit for each value which bytes it has.
    #[test]
    fn a_block_is_joined_with_what_follows_a_false_magic_number() {
        let magic = BLOCK.to_be_bytes();
        let has = |byte: u8| magic[2..][usize::from(byte / 8)] << (byte % 8) & 0x80 != 0;
        let bytes: Vec<u8> = (0..48).filter(|byte| has(*byte)).collect();
        let data: Vec<u8> = (0..50_000).map(|at| bytes[at * at % 251 % bytes.len()]).collect();
        assert!(bytes.iter().all(|byte| data.contains(byte)));
        let Some(image) = crate::testing::made_by("bzip2", &["-9c"], &data) else { return };
        // Magic number and sum, a bit and 24, and 16 bits.
        assert_eq!(find(&image[4..], HEAD_BITS), Some(HEAD_BITS + 41));
        for most in ["0", "1G"] {
            let parameters = [("bzip2-max-expand", most)];
            let found = crate::testing::decoded("bzip2", image.clone(), &parameters);
            assert!(found.unwrap() == data);
        }
    }

    /// A block is decompressed a few times at most, and has so many bytes at most.
    #[test]
    fn false_magic_numbers_and_blocks_without_end_have_a_limit() {
        let magics = [&BLOCK.to_be_bytes()[2..]; 1000].concat();
        let mut image = &magics[..];
        Blocks::new(&mut image, b'9', 0).block(0).unwrap_err();
        assert!((6 * 980..6 * 990).contains(&image.len()), "{}", image.len());
        let noise = vec![0x55; MAX_COMPRESSED + 1000];
        let mut image = &noise[..];
        let error = Blocks::new(&mut image, b'9', 0).block(0).unwrap_err();
        assert_eq!(error.to_string(), "a block has no end");
        assert_eq!(image.len(), 1000);
    }
}
