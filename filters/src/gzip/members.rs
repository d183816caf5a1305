//! Decompressing gzip (RFC 1952), from the beginning of a file or from a point in the middle.

use std::io::{self, BufRead};

use flate2::Crc;
use miniz_oxide::inflate::TINFLStatus as Status;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY,
};
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress};

use crate::compressed::points::{Start, WINDOW};
use crate::compressed::sink::Sink;

/// RFC 1952, 2.3.1: of each member.
pub(super) const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// The method: deflate.
const DEFLATE: u8 = 8;
/// Flags, and those that must not be set.
const HEADER_SUM: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;
/// Bytes of the decoder's buffer, a power of two, of which the last [`WINDOW`] are looked back at.
const RING: usize = 2 * WINDOW;

/// Decompresses a member, and checks it.
///
/// # Errors
/// It is damaged; those of `image` and `sink`.
pub(super) fn member(image: &mut dyn BufRead, sink: &mut dyn Sink) -> io::Result<()> {
    header(image)?;
    let mut body = Body::new(DecompressorOxide::new(), &[]);
    let (mut sum, mut size) = (Crc::new(), 0_u32);
    body.inflate(image, sink, &mut |bytes| {
        sum.update(bytes);
        size = size.wrapping_add(bytes.len() as u32);
    })?;
    if sink.is_full() {
        return Ok(());
    }
    let [sum_found, size_found] = trailer(image)?;
    if (sum_found, size_found) != (sum.sum(), size) {
        return Err(damaged("a member has another sum or size than it should have"));
    }
    Ok(())
}

/// Decompresses from a point on until `sink` is full. Sums of members are not checked.
///
/// # Errors
/// The image is not what it was when the point was made; those of `image` and `sink`.
pub(super) fn from_point(
    image: &mut dyn BufRead,
    start: Start,
    window: &[u8],
    sink: &mut dyn Sink,
) -> io::Result<()> {
    if let Start::Middle { bits, value } = start {
        let state = BlockBoundaryState {
            num_bits: bits & 7,
            bit_buf: value & ((1 << (bits & 7)) - 1),
            ..BlockBoundaryState::default()
        };
        let mut body = Body::new(DecompressorOxide::from_block_boundary_state(&state), window);
        body.inflate(image, sink, &mut |_| {})?;
        if sink.is_full() {
            return Ok(());
        }
        trailer(image)?;
    }
    while !sink.is_full() {
        member(image, sink)?;
    }
    Ok(())
}

fn damaged(why: &str) -> io::Error {
    io::Error::other(why.to_owned())
}

/// Reads a header.
fn header(image: &mut dyn BufRead) -> io::Result<()> {
    let mut fixed = [0; 10];
    image.read_exact(&mut fixed)?;
    let [first, second, method, flags, ..] = fixed;
    if [first, second] != MAGIC || method != DEFLATE || flags & RESERVED != 0 {
        return Err(damaged("a member has a header that is not known"));
    }
    let mut sum = Crc::new();
    sum.update(&fixed);
    if flags & EXTRA != 0 {
        let mut length = [0; 2];
        image.read_exact(&mut length)?;
        let mut extra = vec![0; u16::from_le_bytes(length).into()];
        image.read_exact(&mut extra)?;
        sum.update(&length);
        sum.update(&extra);
    }
    for _ in [NAME, COMMENT].iter().filter(|flag| flags & **flag != 0) {
        // A text, which ends with a null byte.
        let mut byte = [1];
        while byte != [0] {
            image.read_exact(&mut byte)?;
            sum.update(&byte);
        }
    }
    if flags & HEADER_SUM != 0 {
        let mut found = [0; 2];
        image.read_exact(&mut found)?;
        if u16::from_le_bytes(found) != sum.sum() as u16 {
            return Err(damaged("the header of a member has another sum than it should have"));
        }
    }
    Ok(())
}

/// The sum and the size, modulo 2^32, that a member ends with.
fn trailer(image: &mut dyn BufRead) -> io::Result<[u32; 2]> {
    let mut numbers = [[0; 4]; 2];
    numbers.iter_mut().try_for_each(|number| image.read_exact(number))?;
    Ok(numbers.map(u32::from_le_bytes))
}

/// The deflate data of a member (RFC 1951).
struct Body {
    decoder: Box<DecompressorOxide>,
    ring: Vec<u8>,
    /// Where the decoder writes next.
    at: usize,
}

impl Body {
    /// `window` is what came before, the last [`WINDOW`] bytes or fewer.
    fn new(decoder: DecompressorOxide, window: &[u8]) -> Body {
        let mut ring = vec![0; RING];
        let window = &window[window.len().saturating_sub(WINDOW)..];
        ring[RING - window.len()..].copy_from_slice(window);
        Body { decoder: Box::new(decoder), ring, at: 0 }
    }

    /// The last bytes that were made.
    fn window(&self) -> Vec<u8> {
        let mut window = Vec::with_capacity(WINDOW);
        if self.at < WINDOW {
            window.extend(&self.ring[RING - (WINDOW - self.at)..]);
        }
        window.extend(&self.ring[self.at.saturating_sub(WINDOW)..self.at]);
        window
    }

    /// Decompresses up to the end of the data, or until `sink` is full.
    fn inflate(
        &mut self,
        image: &mut dyn BufRead,
        sink: &mut dyn Sink,
        made: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        while !sink.is_full() {
            let input = image.fill_buf()?;
            let is_end = input.is_empty();
            let more = if is_end { 0 } else { TINFL_FLAG_HAS_MORE_INPUT };
            let flags = more | TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
            let (status, used, count) =
                decompress(&mut self.decoder, input, &mut self.ring, self.at, flags);
            image.consume(used);
            let bytes = &self.ring[self.at..][..count];
            made(bytes);
            sink.write(bytes)?;
            self.at = (self.at + count) % RING;
            match status {
                Status::Done => return Ok(()),
                Status::BlockBoundary if sink.is_due() => {
                    if let Some(state) = self.decoder.block_boundary_state() {
                        let start = Start::Middle { bits: state.num_bits, value: state.bit_buf };
                        sink.point(0, start, &self.window())?;
                    }
                }
                Status::BlockBoundary | Status::HasMoreOutput => {}
                Status::NeedsMoreInput if !is_end && used > 0 => {}
                Status::NeedsMoreInput | Status::FailedCannotMakeProgress => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                _ => return Err(damaged("the data of a member is damaged")),
            }
        }
        Ok(())
    }
}
