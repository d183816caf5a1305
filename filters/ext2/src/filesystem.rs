//! A file system on the layer below, and the files that are open in it, by libext2fs.
//!
//! The file system is hostile. The library checks what it reads; its memory is bounded here, by the
//! size of the group descriptors.

#![expect(unsafe_code, reason = "calls libext2fs")]

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::ptr::null_mut;

use nbdkit_api::{Errno, Error, Result, error};

use crate::below::Below;
use crate::channel::{self, Disk, MANAGER};
use crate::ffi::{self, Code, FilePointer, Filsys, Inode, InodeData};
use crate::superblock::Superblock;

/// An open file system. Not for several threads at once.
pub(crate) struct FileSystem {
    fs: *mut Filsys,
    below: Below,
    writable: bool,
    /// One for each inode: the library keeps an inode and a block with each open file, and two of
    /// the same inode would overwrite each other's.
    files: HashMap<Inode, File>,
}

/// A file that is open.
struct File {
    file: FilePointer,
    size: u64,
    is_writable: bool,
    /// How often it was opened.
    users: usize,
}

// SAFETY: the library has no state of threads; whoever has the file system has all of it.
unsafe impl Send for FileSystem {}

/// The error of a step of the library's, about a file or the file system.
fn failed(what: &str, code: Code) -> Error {
    // SAFETY: not null, and ends with a null byte; nothing else is called before it is copied.
    let text = unsafe { CStr::from_ptr(ffi::error_message(code)) };
    Error::new(errno_of(code), format!("{what}: {}", text.to_string_lossy()))
}

/// The errno for a code: it may be one, of the layer below.
fn errno_of(code: Code) -> Errno {
    match code {
        1..=4095 => Errno::from_raw(code as i32),
        ffi::NO_MEMORY => Errno::ENOMEM,
        ffi::BLOCK_ALLOC_FAIL => Errno::ENOSPC,
        ffi::RO_FILSYS | ffi::FILE_RO => Errno::EROFS,
        ffi::FILE_TOO_BIG => Errno::EFBIG,
        ffi::FILE_NOT_FOUND => Errno::ENOENT,
        _ => Errno::EIO,
    }
}

fn check(what: impl FnOnce() -> String, code: Code) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(failed(&what(), code)) }
}

impl FileSystem {
    /// Opens the file system that is all of `below`, which stays open for as long as this is.
    /// `writable`: for writing too, if the layer below can be written to.
    ///
    /// # Errors
    /// There is none, or it is damaged; those of the layer below.
    pub(crate) fn open(below: Below, writable: bool) -> Result<FileSystem> {
        let disk = Disk { below, size: below.size()? };
        let mut writable = writable && below.can_write()?;
        if let Some(superblock) = Superblock::read(&disk)? {
            superblock.check_size(disk.size)?;
            if writable && superblock.needs_recovery() {
                error!(
                    "the journal of the file system has to be replayed: what is read may be old, \
                     and nothing is written; run e2fsck"
                );
                writable = false;
            }
        }
        let flags = if writable { ffi::RW } else { 0 } | ffi::BITS_64;
        let mut fs = null_mut();
        let code = channel::opening(disk, || {
            // SAFETY: a name, the manager, which lives on, and a variable of ours.
            unsafe {
                ffi::ext2fs_open(c"nbdkit".as_ptr(), flags, 0, 0, &raw const MANAGER, &raw mut fs)
            }
        });
        check(|| "open".to_owned(), code)?;
        Ok(FileSystem { fs, below, writable, files: HashMap::new() })
    }

    /// The layer that it is on.
    pub(crate) fn below(&self) -> Below {
        self.below
    }

    /// Whether a file can be written to.
    ///
    /// # Errors
    /// It is not open.
    pub(crate) fn is_writable(&self, inode: Inode) -> Result<bool> {
        Ok(self.file(inode)?.is_writable)
    }

    /// Opens the file at `path`, from the root. To be closed by its inode.
    ///
    /// # Errors
    /// There is none, it is no regular file, or the file system is damaged.
    pub(crate) fn open_file(&mut self, path: &str) -> Result<Inode> {
        let name = CString::new(path)
            .map_err(|_| Error::new(Errno::EINVAL, "the name of the file has a null byte"))?;
        let mut inode = 0;
        let mut data = InodeData::ZERO;
        // SAFETY: the file system is open, the name is a string, and the variable is ours.
        let code = unsafe {
            ffi::ext2fs_namei(self.fs, ffi::ROOT, ffi::ROOT, name.as_ptr(), &raw mut inode)
        };
        check(|| format!("{}: namei", path.escape_debug()), code)?;
        // SAFETY: the file system is open, and the library fills the 128 bytes of an inode.
        let code = unsafe { ffi::ext2fs_read_inode(self.fs, inode, &raw mut data) };
        check(|| format!("{}: inode", path.escape_debug()), code)?;
        if u32::from(data.mode) & S_IFMT != S_IFREG {
            let path = path.escape_debug();
            let why = format!("{path}: must be a regular file in the disk image");
            return Err(Error::new(Errno::EINVAL, why));
        }
        if let Some(file) = self.files.get_mut(&inode) {
            file.users += 1;
            return Ok(inode);
        }
        let mut is_writable = self.writable;
        if is_writable && data.flags & INLINE_DATA != 0 {
            // The library of e2fsprogs 1.47 crashes.
            let path = path.escape_debug();
            error!("{path}: the file is kept in its inode (inline_data), and cannot be written to");
            is_writable = false;
        }
        let flags = if is_writable { ffi::FILE_WRITE } else { 0 };
        let mut file = null_mut();
        // SAFETY: the file system is open, and the variable is ours.
        let code = unsafe { ffi::ext2fs_file_open(self.fs, inode, flags, &raw mut file) };
        check(|| format!("{}: open", path.escape_debug()), code)?;
        let mut size = 0;
        // SAFETY: open, and the variable is ours.
        let code = unsafe { ffi::ext2fs_file_get_lsize(file, &raw mut size) };
        self.files.insert(inode, File { file, size, is_writable, users: 1 });
        let is_sane = check(|| format!("{}: lsize", path.escape_debug()), code).and_then(|()| {
            let why = || format!("{}: the size of the file is damaged", path.escape_debug());
            i64::try_from(size).map(drop).map_err(|_| Error::new(Errno::EIO, why()))
        });
        if is_sane.is_err() {
            let _ = self.close_file(inode);
        }
        is_sane.map(|()| inode)
    }

    /// Ends one use of a file.
    ///
    /// # Errors
    /// What was written last cannot be.
    pub(crate) fn close_file(&mut self, inode: Inode) -> Result<()> {
        let Some(file) = self.files.get_mut(&inode) else { return Ok(()) };
        file.users -= 1;
        if file.users > 0 {
            return Ok(());
        }
        let Some(file) = self.files.remove(&inode) else { return Ok(()) };
        // SAFETY: open until now, and not used again.
        let code = unsafe { ffi::ext2fs_file_close(file.file) };
        check(|| "close".to_owned(), code)
    }

    fn file(&self, inode: Inode) -> Result<&File> {
        let none = || Error::new(Errno::EIO, "the file is not open");
        self.files.get(&inode).ok_or_else(none)
    }

    /// Bytes of a file.
    ///
    /// # Errors
    /// It is not open.
    pub(crate) fn size(&self, inode: Inode) -> Result<u64> {
        Ok(self.file(inode)?.size)
    }

    /// The open file, at `offset`.
    fn seek(&self, path: &str, inode: Inode, offset: u64) -> Result<FilePointer> {
        let file = self.file(inode)?.file;
        let mut at = 0;
        // SAFETY: open, and the variable is ours.
        let code = unsafe { ffi::ext2fs_file_llseek(file, offset, ffi::SEEK_SET, &raw mut at) };
        check(|| format!("{path}: llseek"), code)?;
        Ok(file)
    }

    /// Fills `buf` from `offset` of a file. `path` is for messages.
    ///
    /// # Errors
    /// The file system is damaged; those of the layer below.
    pub(crate) fn read(
        &mut self,
        path: &str,
        inode: Inode,
        mut buf: &mut [u8],
        mut offset: u64,
    ) -> Result<()> {
        while !buf.is_empty() {
            let file = self.seek(path, inode, offset)?;
            let (count, mut got) = (PIECE.min(buf.len()), 0);
            // SAFETY: open, a buffer of at least so many bytes, and a variable of ours.
            let code = unsafe {
                ffi::ext2fs_file_read(file, buf.as_mut_ptr().cast(), count as u32, &raw mut got)
            };
            check(|| format!("{path}: read"), code)?;
            let got = (got as usize).min(count);
            if got == 0 {
                // What a file that is in its inode has beyond that, as Linux reads it.
                buf.fill(0);
                return Ok(());
            }
            buf = &mut buf[got..];
            offset += got as u64;
        }
        Ok(())
    }

    /// Writes `buf` at `offset` of a file, within its size. `path` is for messages.
    ///
    /// # Errors
    /// ENOSPC; the file system is damaged; those of the layer below.
    pub(crate) fn write(
        &mut self,
        path: &str,
        inode: Inode,
        mut buf: &[u8],
        mut offset: u64,
    ) -> Result<()> {
        while !buf.is_empty() {
            let file = self.seek(path, inode, offset)?;
            let (count, mut written) = (PIECE.min(buf.len()), 0);
            // SAFETY: open, a buffer of at least so many bytes, and a variable of ours.
            let code = unsafe {
                ffi::ext2fs_file_write(file, buf.as_ptr().cast(), count as u32, &raw mut written)
            };
            check(|| format!("{path}: write"), code)?;
            let written = (written as usize).min(count);
            if written == 0 {
                return Err(Error::new(Errno::EIO, format!("{path}: write: nothing is written")));
            }
            buf = &buf[written..];
            offset += written as u64;
        }
        // The library keeps the last block with the file.
        // SAFETY: open.
        let code = unsafe { ffi::ext2fs_file_flush(self.file(inode)?.file) };
        check(|| format!("{path}: write"), code)
    }

    /// Writes what is in memory, of all files and of the file system, and flushes the layer below.
    ///
    /// # Errors
    /// Those of the layer below.
    pub(crate) fn flush(&mut self, path: &str) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        for file in self.files.values() {
            // SAFETY: open.
            check(|| format!("{path}: flush"), unsafe { ffi::ext2fs_file_flush(file.file) })?;
        }
        // SAFETY: open; the library's structure begins with these members.
        if unsafe { (*self.fs).flags } & ffi::UNWRITTEN == 0 {
            return self.below.flush();
        }
        // It flushes the layer below too.
        // SAFETY: open.
        check(|| format!("{path}: flush"), unsafe { ffi::ext2fs_flush(self.fs) })
    }
}

impl Drop for FileSystem {
    /// Writes what is in memory and closes the file system.
    fn drop(&mut self) {
        for (_, file) in self.files.drain() {
            // SAFETY: open until now, and not used again.
            let code = unsafe { ffi::ext2fs_file_close(file.file) };
            report_close(code);
        }
        // SAFETY: open until now, and not used again. The library frees it also after a failure.
        let code = unsafe { ffi::ext2fs_close_free(&raw mut self.fs) };
        report_close(code);
    }
}

fn report_close(code: Code) {
    if let Err(error) = check(|| "close".to_owned(), code) {
        error!("{error}");
    }
}

/// Most bytes of one call of the library's, whose numbers have 32 bits.
const PIECE: usize = 1 << 30;
/// `LINUX_S_IFMT` and `LINUX_S_IFREG`.
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
/// `EXT4_INLINE_DATA_FL`.
const INLINE_DATA: u32 = 0x1000_0000;

/// Registers the library's texts.
pub(crate) fn register_messages() {
    ffi::initialize_ext2_error_table();
}
