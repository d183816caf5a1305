//! The file that has an index of points from one start of the server to the next.
//!
//! The template opens it, since a worker may open nothing; the worker that has made the index
//! writes it. What is read of it is trusted no more than an image: it is checked, and copied to
//! where the index of an image without such a file is. All numbers are little-endian.
//!
//! | byte | what |
//! | --- | --- |
//! | 0 | [`MAGIC`] |
//! | 8 | 32 bits: [`VERSION`] |
//! | 12 | 32 bits: 1, or 0 while it is made |
//! | 16 | bytes of the compressed image |
//! | 24 | bytes of the disk |
//! | 32 | blocks |
//! | 40 | windows |
//! | 48 | 32 bits each: CRC-32 of the image's last and of its first 64 KiB |
//! | 56 | CRC-64 of the body |
//! | 64 | CRC-64 of the 64 bytes before |
//! | 4096 | the body: for each block a [`Record`], and its window if that is not all zeroes |

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use flate2::Crc;
use nbdkit_api::shared::{SharedFile, SharedWords};
use nbdkit_api::{Errno, Error, Result, ResultExt, client, debug, error};

use super::blocks::{Builder, Image, MAX_BLOCKS};
use super::corrupt;
use super::index::Block;
use super::points::{MAX_SPAN, Start, WINDOW};

/// "NBD gzip index".
const MAGIC: [u8; 8] = *b"NBDgzidx";
const VERSION: u32 = 1;
/// Where the body begins, bytes.
const BODY: u64 = 4096;
/// Bytes at either end of an image that it is recognised by.
const END: u64 = 64 << 10;
/// Bytes that are written at a time.
const CHUNK: usize = 1 << 20;

/// The file, open.
#[derive(Debug)]
pub(crate) struct IndexFile {
    filter: &'static str,
    file: File,
    path: PathBuf,
    /// Whether an index that is made goes there.
    writable: bool,
    /// [`KeptIndex::print`] of the image that clients have the index of. Any value may stand there.
    print: SharedWords,
}

impl IndexFile {
    /// Opens the file at `path`, or makes it. If it may not be written, or another server has it,
    /// it is only read.
    ///
    /// # Errors
    /// It cannot be opened, or it is a file of another kind, which is not overwritten.
    pub(crate) fn open(filter: &'static str, path: &Path) -> Result<IndexFile> {
        // Without O_NONBLOCK a named pipe is waited for.
        let open = |write: bool| {
            let mut options = OpenOptions::new();
            options.read(true).write(write).create(write).truncate(false).mode(0o644);
            options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
        };
        let (file, may_write) = match open(true) {
            Ok(file) => (file, true),
            Err(error) => match open(false) {
                Ok(file) => (file, false),
                Err(_) => return Err(error).or_error(|| format!("open: {}", path.display())),
            },
        };
        let metadata = file.metadata().or_error(|| format!("fstat: {}", path.display()))?;
        let may_overwrite =
            may_overwrite(&file).or_error(|| format!("read: {}", path.display()))?;
        if !metadata.is_file() || !may_overwrite {
            return Err(Error::msg(format!(
                "{filter}: {}: the file is not an index, and is not overwritten",
                path.display()
            )));
        }
        let mut writable = may_write;
        if !may_write {
            debug!("{filter}: {}: read-only: an index is not written", path.display());
        } else if let Err(locked) = lock(&file) {
            match locked {
                TryLockError::WouldBlock => writable = false,
                TryLockError::Error(error) => {
                    return Err(error).or_error(|| format!("flock: {}", path.display()));
                }
            }
            debug!("{filter}: {}: another server has it: an index is not written", path.display());
        }
        let print = SharedWords::new(1)?;
        Ok(IndexFile { filter, file, path: path.to_owned(), writable, print })
    }

    /// The file as it concerns an image of `compressed` bytes.
    ///
    /// # Errors
    /// Those of reading the image.
    pub(super) fn of<'a>(&'a self, image: &'a Image<'a>, compressed: u64) -> Result<KeptIndex<'a>> {
        let sum = |offset| -> Result<u64> {
            let mut bytes = vec![0; compressed.min(END) as usize];
            if !bytes.is_empty() {
                image.read(&mut bytes, offset)?;
            }
            let mut sum = Crc::new();
            sum.update(&bytes);
            Ok(sum.sum().into())
        };
        let print = sum(0)? << 32 | sum(compressed.saturating_sub(END))?;
        Ok(KeptIndex { file: self, image, compressed, print })
    }
}

/// Locks the file for this server. Not at the first try, perhaps: a program that a server has just
/// started has a copy of the lock until it is executed.
fn lock(file: &File) -> Result<(), TryLockError> {
    const TRIES: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(5);
    for _ in 0..TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
    file.try_lock()
}

/// A file for an image, of any header and body whose sums are right, for fuzzing and tests.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod example {
    use super::*;

    /// Bytes that begin a case: of the disk, blocks, windows.
    pub(crate) const BYTES: usize = 24;

    /// The file that says of `image` what `case` does, whose body follows.
    pub(crate) fn sealed(image: &[u8], case: &[u8]) -> Vec<u8> {
        let (fields, body) = case.split_at(case.len().min(BYTES));
        let [size, blocks, windows] = [0, 8, 16].map(|at| words(fields, at));
        let end = |bytes: &[u8]| {
            let mut sum = Crc::new();
            sum.update(bytes);
            u64::from(sum.sum())
        };
        let count = image.len().min(END as usize);
        let print = end(&image[..count]) << 32 | end(&image[image.len() - count..]);
        let compressed = image.len() as u64;
        let header = Header { compressed, size, blocks, windows, print, body: sum(body) };
        let mut bytes = header.encode(true);
        bytes.resize(BODY as usize, 0);
        bytes.extend(body);
        bytes
    }

    /// `file` as it is before its last header is written.
    #[cfg(test)]
    pub(crate) fn unfinished(file: &[u8]) -> Vec<u8> {
        let header = Header::decode(file[..Header::BYTES].try_into().unwrap()).unwrap();
        let unfinished = Header { windows: 0, body: 0, ..header }.encode(false);
        [&unfinished, &file[Header::BYTES..]].concat()
    }

    /// The case that `file` is.
    pub(crate) fn case(file: &[u8]) -> Vec<u8> {
        [&file[24..24 + BYTES], &file[BODY as usize..]].concat()
    }
}

/// Whether nothing is lost with the file: it is empty, or an index.
fn may_overwrite(file: &File) -> io::Result<bool> {
    let mut magic = [0; MAGIC.len()];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) => Ok(magic == MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(file.metadata()?.len() == 0)
        }
        Err(error) if error.raw_os_error() == Some(libc::EISDIR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// An index file and the image that a client has opened.
pub(super) struct KeptIndex<'a> {
    file: &'a IndexFile,
    image: &'a Image<'a>,
    compressed: u64,
    /// What the image is recognised by.
    print: u64,
}

impl KeptIndex<'_> {
    /// Whether the file has the index, which is then in `index` and `windows`. If not, they are
    /// empty, and the log says why.
    ///
    /// # Errors
    /// ESHUTDOWN: the client has gone.
    pub(super) fn load(&self, index: &mut Builder<'_>, windows: &SharedFile) -> Result<bool> {
        self.file.print[0].store(self.print, Ordering::Release);
        let (filter, path) = (self.file.filter, self.file.path.display());
        let error = match self.read(index, windows) {
            Ok(true) => {
                debug!("{filter}: {path}: the index is used");
                return Ok(true);
            }
            Ok(false) => None,
            Err(error) if error.errno() == Errno::ESHUTDOWN => return Err(error),
            Err(error) => Some(error),
        };
        index.clear();
        windows.set_len(0)?;
        if let Some(error) = error {
            error!("{filter}: {path}: {}: the index is made anew", error.message());
        }
        Ok(false)
    }

    /// `false`: the file is empty.
    fn read(&self, index: &mut Builder<'_>, windows: &SharedFile) -> Result<bool> {
        let file = &self.file.file;
        let length = file.metadata().or_error(|| "fstat")?.len();
        if length == 0 {
            return Ok(false);
        }
        let refused = |why: &str| Err(Error::new(Errno::EIO, why));
        let mut bytes = [0; Header::BYTES];
        file.read_exact_at(&mut bytes, 0).or_error(|| "read")?;
        let header = match Header::decode(&bytes) {
            Ok(header) => header,
            Err(why) => return refused(why),
        };
        if (header.compressed, header.print) != (self.compressed, self.print) {
            return refused("it is the index of another image");
        }
        if header.length() != Some(length) {
            return refused("it has another length than it should have");
        }
        let mut body = Summed { digest: crc64fast::Digest::new(), file, at: BODY };
        let mut stream = BufReader::with_capacity(CHUNK, &mut body);
        let (mut end, mut windows_left) = (0, header.windows);
        let mut window = vec![0; WINDOW];
        for number in 0..header.blocks {
            client::check_present(self.image.client.map(|client| &**client))?;
            let mut record = [0; Record::BYTES];
            stream.read_exact(&mut record).or_error(|| "read")?;
            let Some(record) = Record::decode(&record).filter(|it| it.offset >= end) else {
                return refused("a block is not possible");
            };
            index.add(record.size.into(), record.offset, record.length, record.detail)?;
            end = record.offset + record.length;
            if record.has_window {
                let Some(left) = windows_left.checked_sub(1) else {
                    return refused("it has more windows than it should have");
                };
                windows_left = left;
                stream.read_exact(&mut window).or_error(|| "read")?;
                windows.write_at(&window, number * WINDOW as u64)?;
            }
        }
        drop(stream);
        if body.digest.sum64() != header.body
            || body.at != length
            || index.summary().size != header.size
        {
            return refused("its sum is wrong");
        }
        Ok(true)
    }

    /// Writes an index that was made. A failure is logged; the clients of this server use the index
    /// in memory.
    pub(super) fn save(&self, index: &mut Builder<'_>, windows: &SharedFile) {
        if !self.file.writable {
            return;
        }
        let Err(error) = self.write(index, windows) else { return };
        let (filter, path) = (self.file.filter, self.file.path.display());
        error!("{filter}: {path}: {}: the index is not kept", error.message());
    }

    /// A process that is killed in here leaves a file that is not taken for an index: the header
    /// that makes it one is written when all else is on the disk.
    fn write(&self, index: &mut Builder<'_>, windows: &SharedFile) -> Result<()> {
        let file = &self.file.file;
        if !may_overwrite(file).or_error(|| "read")? {
            return Err(Error::msg("the file is not an index any more"));
        }
        let put = |bytes: &[u8], at| file.write_all_at(bytes, at).or_error(|| "write");
        let sync = || file.sync_data().or_error(|| "fdatasync");
        let summary = index.summary();
        let mut header = Header {
            compressed: self.compressed,
            size: summary.size,
            blocks: summary.blocks,
            windows: 0,
            print: self.print,
            body: 0,
        };
        put(&header.encode(false), 0)?;
        file.set_len(BODY).or_error(|| "ftruncate")?;
        sync()?;
        let (mut digest, mut pending, mut at) = (crc64fast::Digest::new(), Vec::new(), BODY);
        let (mut number, mut window) = (0, vec![0; WINDOW]);
        let end = windows.size()?;
        let written = index.each(|block| {
            let offset = number * WINDOW as u64;
            window.fill(0);
            if offset < end {
                windows.read_at(&mut window, offset)?;
            }
            number += 1;
            let has_window = window.iter().any(|byte| *byte != 0);
            header.windows += u64::from(has_window);
            pending.extend(Record::of(block, has_window)?.encode());
            if has_window {
                pending.extend(&window);
            }
            if pending.len() >= CHUNK || number == summary.blocks {
                digest.write(&pending);
                put(&pending, at)?;
                at += pending.len() as u64;
                pending.clear();
            }
            Ok(())
        });
        if let Err(error) = written.and_then(|()| sync()) {
            // The space is free again.
            return file.set_len(0).or_error(|| "ftruncate").and(Err(error));
        }
        header.body = digest.sum64();
        put(&header.encode(true), 0)?;
        sync()
    }

    /// Whether the index that clients have is that of this image.
    ///
    /// # Errors
    /// EINVAL: it is not.
    pub(super) fn check(&self) -> Result<()> {
        if self.file.print[0].load(Ordering::Acquire) == self.print {
            return Ok(());
        }
        Err(Error::new(
            Errno::EINVAL,
            format!(
                "{}: the image is not the one that clients have the index of: one server serves \
                 one image",
                self.file.filter
            ),
        ))
    }
}

/// The beginning of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    compressed: u64,
    size: u64,
    blocks: u64,
    windows: u64,
    print: u64,
    body: u64,
}

impl Header {
    const BYTES: usize = 72;

    fn encode(&self, is_whole: bool) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(u32::from(is_whole).to_le_bytes());
        let words = [self.compressed, self.size, self.blocks, self.windows, self.print, self.body];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        let sum = sum(&bytes);
        bytes.extend(sum.to_le_bytes());
        bytes
    }

    /// # Errors
    /// Why it is none.
    fn decode(bytes: &[u8; Header::BYTES]) -> Result<Header, &'static str> {
        let word = |at: usize| words(bytes, at);
        if bytes[..MAGIC.len()] != MAGIC || word(64) != sum(&bytes[..64]) {
            return Err("its header is damaged");
        }
        if word(8) as u32 != VERSION {
            return Err("it has a version that is not known");
        }
        if word(8) >> 32 != 1 {
            return Err("it was not finished");
        }
        let [compressed, size, blocks, windows, print, body] = [16, 24, 32, 40, 48, 56].map(word);
        Ok(Header { compressed, size, blocks, windows, print, body })
    }

    /// Bytes of the file; `None` if there is no such index.
    fn length(&self) -> Option<u64> {
        let is_possible = self.blocks <= MAX_BLOCKS && self.windows <= self.blocks;
        is_possible
            .then(|| BODY + self.blocks * Record::BYTES as u64 + self.windows * WINDOW as u64)
    }
}

/// CRC-64 as xz has it.
fn sum(bytes: &[u8]) -> u64 {
    let mut digest = crc64fast::Digest::new();
    digest.write(bytes);
    digest.sum64()
}

/// The eight bytes at `at`; zero beyond the end.
fn words(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    u64::from_le_bytes(word.unwrap_or_default())
}

/// A block, 32 bytes: offset and length in the image; 32 bits each of bytes on the disk, whether a
/// window follows, the CRC-32 of what is made, and where the decoder starts: 0 for a member, else
/// 2^16, plus 2^8 times the bits of the byte before that are not used yet, plus their number.
struct Record {
    offset: u64,
    length: u64,
    size: u32,
    has_window: bool,
    detail: u64,
}

impl Record {
    const BYTES: usize = 32;

    /// # Errors
    /// EIO: the shared index is damaged.
    fn of(block: &Block, has_window: bool) -> Result<Record> {
        let size = u32::try_from(block.size).map_err(|_| corrupt("index", "it is damaged"))?;
        let Block { offset, length, detail, .. } = *block;
        Ok(Record { offset, length, size, has_window, detail })
    }

    fn encode(&self) -> [u8; Record::BYTES] {
        let mut bytes = [0; Record::BYTES];
        let size = u64::from(self.has_window) << 32 | u64::from(self.size);
        let words = [self.offset, self.length, size, self.detail];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// `None` if there is no such block.
    fn decode(bytes: &[u8; Record::BYTES]) -> Option<Record> {
        let [offset, length, size, detail] = [0, 8, 16, 24].map(|at| words(bytes, at));
        let block = Block { start: 0, size: 1, offset, length, detail };
        let (start, sum) = Start::of(&block);
        let flag = size >> 32;
        let size = size as u32;
        let is_possible = start.encode(sum) == detail
            && offset.checked_add(length).is_some()
            && (1..=MAX_SPAN).contains(&size.into())
            && flag <= 1;
        is_possible.then_some(Record { offset, length, size, has_window: flag == 1, detail })
    }
}

/// The bytes of a file from `at` on, and their sum.
struct Summed<'a> {
    digest: crc64fast::Digest,
    file: &'a File,
    at: u64,
}

impl Read for Summed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buf, self.at)?;
        self.digest.write(&buf[..count]);
        self.at += count as u64;
        Ok(count)
    }
}
