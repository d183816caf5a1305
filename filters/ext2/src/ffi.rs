//! What is used of libext2fs: `ext2fs/ext2fs.h`, `ext2fs/ext2_io.h` and `et/com_err.h` of e2fsprogs
//! 1.43 and later, whose library has had the same interface since (`libext2fs.so.2`).

#![expect(unsafe_code, reason = "declares libext2fs")]

use std::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_ulonglong, c_void};
use std::marker::{PhantomData, PhantomPinned};

/// `errcode_t`: 0, an errno, or one of the library's own.
pub(crate) type Code = c_long;
/// `ext2_ino_t`.
pub(crate) type Inode = u32;

/// A structure of which nothing is known here.
#[repr(C)]
pub(crate) struct Opaque {
    data: [u8; 0],
    marker: PhantomData<(*mut u8, PhantomPinned)>,
}

/// `ext2_file_t`.
pub(crate) type FilePointer = *mut Opaque;

/// The first members of `struct struct_ext2_filsys`.
#[repr(C)]
pub(crate) struct Filsys {
    magic: Code,
    io: *mut Channel,
    /// `EXT2_FLAG_RW` and so on.
    pub(crate) flags: c_int,
}

/// `struct ext2_inode`, 128 bytes, of which the library fills all.
#[repr(C, align(8))]
pub(crate) struct InodeData {
    pub(crate) mode: u16,
    before: [u16; 15],
    pub(crate) flags: u32,
    rest: [u8; 92],
}

impl InodeData {
    pub(crate) const ZERO: InodeData =
        InodeData { mode: 0, before: [0; 15], flags: 0, rest: [0; 92] };
}

/// `struct struct_io_channel`.
#[repr(C)]
pub(crate) struct Channel {
    pub(crate) magic: Code,
    pub(crate) manager: *const Manager,
    pub(crate) name: *const c_char,
    pub(crate) block_size: c_int,
    pub(crate) read_error: *const c_void,
    pub(crate) write_error: *const c_void,
    pub(crate) refcount: c_int,
    pub(crate) flags: c_int,
    pub(crate) reserved: [c_long; 14],
    pub(crate) private_data: *mut c_void,
    pub(crate) app_data: *mut c_void,
    pub(crate) align: c_int,
}

/// `struct struct_io_manager`. Functions that are left out the library does without.
#[repr(C)]
pub(crate) struct Manager {
    pub(crate) magic: Code,
    pub(crate) name: *const c_char,
    pub(crate) open: unsafe extern "C" fn(*const c_char, c_int, *mut *mut Channel) -> Code,
    pub(crate) close: unsafe extern "C" fn(*mut Channel) -> Code,
    pub(crate) set_blksize: unsafe extern "C" fn(*mut Channel, c_int) -> Code,
    pub(crate) read_blk: unsafe extern "C" fn(*mut Channel, c_ulong, c_int, *mut c_void) -> Code,
    pub(crate) write_blk: unsafe extern "C" fn(*mut Channel, c_ulong, c_int, *const c_void) -> Code,
    pub(crate) flush: unsafe extern "C" fn(*mut Channel) -> Code,
    pub(crate) write_byte:
        unsafe extern "C" fn(*mut Channel, c_ulong, c_int, *const c_void) -> Code,
    pub(crate) set_option: Option<unsafe extern "C" fn(*mut Channel)>,
    pub(crate) get_stats: Option<unsafe extern "C" fn(*mut Channel)>,
    pub(crate) read_blk64:
        unsafe extern "C" fn(*mut Channel, c_ulonglong, c_int, *mut c_void) -> Code,
    pub(crate) write_blk64:
        unsafe extern "C" fn(*mut Channel, c_ulonglong, c_int, *const c_void) -> Code,
    pub(crate) discard: Option<unsafe extern "C" fn(*mut Channel)>,
    pub(crate) cache_readahead: Option<unsafe extern "C" fn(*mut Channel)>,
    pub(crate) zeroout: Option<unsafe extern "C" fn(*mut Channel)>,
    pub(crate) reserved: [c_long; 14],
}

// SAFETY: the only one is a constant, whose name is too.
unsafe impl Sync for Manager {}

#[cfg(target_pointer_width = "64")]
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<InodeData>() == 128);
    assert!(offset_of!(InodeData, flags) == 32);
    assert!(offset_of!(Channel, reserved) == 56);
    assert!(offset_of!(Channel, private_data) == 168);
    assert!(size_of::<Channel>() == 192);
    assert!(offset_of!(Manager, write_byte) == 64);
    assert!(offset_of!(Manager, zeroout) == 120);
    assert!(size_of::<Manager>() == 240);
};

/// `EXT2_FLAG_RW`.
pub(crate) const RW: c_int = 0x01;
/// `EXT2_FLAG_CHANGED`, `EXT2_FLAG_DIRTY`, `EXT2_FLAG_IB_DIRTY` and `EXT2_FLAG_BB_DIRTY`: there is
/// something in memory that is not on the disk.
pub(crate) const UNWRITTEN: c_int = 0x02 | 0x04 | 0x10 | 0x20;
/// `EXT2_FLAG_64BITS`: bitmaps that take memory as far as they hold something.
pub(crate) const BITS_64: c_int = 0x20000;
/// `IO_FLAG_RW`.
pub(crate) const IO_RW: c_int = 1;
/// `EXT2_FILE_WRITE`.
pub(crate) const FILE_WRITE: c_int = 1;
/// `EXT2_SEEK_SET`.
pub(crate) const SEEK_SET: c_int = 0;
/// `EXT2_ROOT_INO`.
pub(crate) const ROOT: Inode = 2;

/// `EXT2_ET_BASE`; the codes behind it are `ext2fs/ext2_err.h`'s.
pub(crate) const BASE: Code = 2_133_571_328;
pub(crate) const MAGIC_CHANNEL: Code = BASE + 5;
pub(crate) const MAGIC_MANAGER: Code = BASE + 7;
pub(crate) const RO_FILSYS: Code = BASE + 21;
pub(crate) const SHORT_READ: Code = BASE + 36;
pub(crate) const SHORT_WRITE: Code = BASE + 37;
pub(crate) const NO_MEMORY: Code = BASE + 70;
pub(crate) const INVALID_ARGUMENT: Code = BASE + 71;
pub(crate) const BLOCK_ALLOC_FAIL: Code = BASE + 72;
pub(crate) const FILE_NOT_FOUND: Code = BASE + 76;
pub(crate) const FILE_RO: Code = BASE + 77;
pub(crate) const FILE_TOO_BIG: Code = BASE + 82;

unsafe extern "C" {
    pub(crate) safe fn initialize_ext2_error_table();
    /// The text of a code, which lives at least until the thread's next call.
    pub(crate) safe fn error_message(code: Code) -> *const c_char;
    pub(crate) fn ext2fs_open(
        name: *const c_char,
        flags: c_int,
        superblock: c_int,
        block_size: c_uint,
        manager: *const Manager,
        fs: *mut *mut Filsys,
    ) -> Code;
    pub(crate) fn ext2fs_flush(fs: *mut Filsys) -> Code;
    pub(crate) fn ext2fs_close_free(fs: *mut *mut Filsys) -> Code;
    pub(crate) fn ext2fs_namei(
        fs: *mut Filsys,
        root: Inode,
        directory: Inode,
        name: *const c_char,
        inode: *mut Inode,
    ) -> Code;
    pub(crate) fn ext2fs_read_inode(fs: *mut Filsys, inode: Inode, data: *mut InodeData) -> Code;
    pub(crate) fn ext2fs_file_open(
        fs: *mut Filsys,
        inode: Inode,
        flags: c_int,
        file: *mut FilePointer,
    ) -> Code;
    pub(crate) fn ext2fs_file_close(file: FilePointer) -> Code;
    pub(crate) fn ext2fs_file_flush(file: FilePointer) -> Code;
    pub(crate) fn ext2fs_file_get_lsize(file: FilePointer, size: *mut u64) -> Code;
    pub(crate) fn ext2fs_file_llseek(
        file: FilePointer,
        offset: u64,
        whence: c_int,
        at: *mut u64,
    ) -> Code;
    pub(crate) fn ext2fs_file_read(
        file: FilePointer,
        buf: *mut c_void,
        wanted: c_uint,
        got: *mut c_uint,
    ) -> Code;
    pub(crate) fn ext2fs_file_write(
        file: FilePointer,
        buf: *const c_void,
        count: c_uint,
        written: *mut c_uint,
    ) -> Code;
}
