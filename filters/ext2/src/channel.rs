//! How libext2fs reaches its disk: an I/O manager (`ext2fs/ext2_io.h`) whose channels are layers
//! below this filter.
//!
//! Block numbers come from the file system, which is hostile: each range is checked against the
//! size of the disk before the layer below sees it.

#![expect(unsafe_code, reason = "defines functions that libext2fs calls")]
#![expect(clippy::unnecessary_cast, reason = "C's long has 32 bits on other machines")]

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_ulong, c_ulonglong, c_void};
use std::ptr::{null, null_mut};

use crate::below::Below;
use crate::ffi::{self, Channel, Code, Manager};

/// Most bytes of a request to the layer below.
const PIECE: usize = 32 << 20;

thread_local! {
    /// What [`MANAGER`] opens, while this thread opens a file system: a name cannot say it.
    static OPENING: Cell<Option<Disk>> = const { Cell::new(None) };
}

/// The disk of a file system.
#[derive(Clone, Copy)]
pub(crate) struct Disk {
    pub(crate) below: Below,
    /// Bytes.
    pub(crate) size: u64,
}

/// Runs `open`, in which [`MANAGER`] opens `disk`.
pub(crate) fn opening<T>(disk: Disk, open: impl FnOnce() -> T) -> T {
    OPENING.set(Some(disk));
    let result = open();
    OPENING.set(None);
    result
}

/// The manager.
pub(crate) static MANAGER: Manager = Manager {
    magic: ffi::MAGIC_MANAGER,
    name: c"nbdkit".as_ptr(),
    open,
    close,
    set_blksize,
    read_blk,
    write_blk,
    flush,
    write_byte,
    set_option: None,
    get_stats: None,
    read_blk64,
    write_blk64,
    discard: None,
    cache_readahead: None,
    zeroout: None,
    reserved: [0; 14],
};

/// # Safety
/// `channel` can be written.
unsafe extern "C" fn open(_: *const c_char, flags: c_int, channel: *mut *mut Channel) -> Code {
    let Some(disk) = OPENING.take() else { return ffi::INVALID_ARGUMENT };
    let opened = Box::new(Channel {
        magic: ffi::MAGIC_CHANNEL,
        manager: &raw const MANAGER,
        name: c"nbdkit".as_ptr(),
        block_size: 1024,
        read_error: null(),
        write_error: null(),
        refcount: 1,
        flags: flags & ffi::IO_RW,
        reserved: [0; 14],
        private_data: Box::into_raw(Box::new(disk)).cast(),
        app_data: null_mut(),
        align: 0,
    });
    // SAFETY: the library's own variable, as it promises.
    unsafe { channel.write(Box::into_raw(opened)) };
    0
}

/// # Safety
/// `channel` came from [`open`], and is not used again by the holder of one reference.
unsafe extern "C" fn close(channel: *mut Channel) -> Code {
    // SAFETY: open, as the library promises; only its one thread uses it now.
    unsafe {
        (*channel).refcount -= 1;
        if (*channel).refcount <= 0 {
            drop(Box::from_raw((*channel).private_data.cast::<Disk>()));
            drop(Box::from_raw(channel));
        }
    }
    0
}

/// # Safety
/// `channel` is open.
unsafe extern "C" fn set_blksize(channel: *mut Channel, size: c_int) -> Code {
    if size <= 0 {
        return ffi::INVALID_ARGUMENT;
    }
    // SAFETY: open, as the library promises; only its one thread uses it now.
    unsafe { (*channel).block_size = size };
    0
}

/// A range of the disk.
struct Range {
    below: Below,
    offset: u64,
    bytes: usize,
}

/// Where `count` blocks from `block` on are; a negative count is of bytes.
///
/// # Errors
/// Beyond the end of the disk: `beyond`.
///
/// # Safety
/// `channel` is open.
unsafe fn range(
    channel: *mut Channel,
    block: u64,
    count: c_int,
    beyond: Code,
) -> Result<Range, Code> {
    // SAFETY: open, as the caller promises, and its data is what `open` put there.
    let (block_size, disk) =
        unsafe { ((*channel).block_size, *(*channel).private_data.cast::<Disk>()) };
    let block_size = u64::from(block_size.unsigned_abs());
    let bytes = match u64::try_from(count) {
        Ok(count) => count * block_size,
        Err(_) => count.unsigned_abs().into(),
    };
    let offset = block.checked_mul(block_size).ok_or(beyond)?;
    let end = offset.checked_add(bytes).ok_or(beyond)?;
    let bytes = usize::try_from(bytes).map_err(|_| beyond)?;
    if end > disk.size { Err(beyond) } else { Ok(Range { below: disk.below, offset, bytes }) }
}

fn code(result: Result<(), Code>) -> Code {
    result.err().unwrap_or(0)
}

/// # Safety
/// `channel` is open, and `data` is as long as so many blocks.
unsafe fn read(
    channel: *mut Channel,
    block: u64,
    count: c_int,
    data: *mut c_void,
) -> Result<(), Code> {
    // SAFETY: open, as the caller promises.
    let Range { below, mut offset, bytes } =
        unsafe { range(channel, block, count, ffi::SHORT_READ) }?;
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: as long as the blocks, as the caller promises, and nothing else uses it now.
    let data = unsafe { std::slice::from_raw_parts_mut(data.cast::<u8>(), bytes) };
    for piece in data.chunks_mut(PIECE) {
        below.read(piece, offset).map_err(|error| error.errno() as Code)?;
        offset += piece.len() as u64;
    }
    Ok(())
}

/// # Safety
/// `channel` is open, and `data` is as long as `range`.
unsafe fn write(channel: *mut Channel, range: &Range, data: *const c_void) -> Result<(), Code> {
    let Range { below, mut offset, bytes } = *range;
    // SAFETY: open, as the caller promises.
    if unsafe { (*channel).flags } & ffi::IO_RW == 0 {
        return Err(ffi::RO_FILSYS);
    }
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: as long as the range, as the caller promises, and nothing changes it now.
    let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), bytes) };
    for piece in data.chunks(PIECE) {
        below.write(piece, offset).map_err(|error| error.errno() as Code)?;
        offset += piece.len() as u64;
    }
    Ok(())
}

unsafe extern "C" fn read_blk(
    channel: *mut Channel,
    block: c_ulong,
    count: c_int,
    data: *mut c_void,
) -> Code {
    // SAFETY: the channel is open, and the buffer long enough, as the library promises.
    code(unsafe { read(channel, block as u64, count, data) })
}

unsafe extern "C" fn read_blk64(
    channel: *mut Channel,
    block: c_ulonglong,
    count: c_int,
    data: *mut c_void,
) -> Code {
    // SAFETY: the channel is open, and the buffer long enough, as the library promises.
    code(unsafe { read(channel, block, count, data) })
}

unsafe extern "C" fn write_blk(
    channel: *mut Channel,
    block: c_ulong,
    count: c_int,
    data: *const c_void,
) -> Code {
    // SAFETY: the channel is open, and the buffer long enough, as the library promises.
    unsafe { write_blk64(channel, block as c_ulonglong, count, data) }
}

unsafe extern "C" fn write_blk64(
    channel: *mut Channel,
    block: c_ulonglong,
    count: c_int,
    data: *const c_void,
) -> Code {
    // SAFETY: the channel is open, and the buffer as long as the blocks, as the library promises.
    code(unsafe {
        range(channel, block, count, ffi::SHORT_WRITE)
            .and_then(|range| write(channel, &range, data))
    })
}

unsafe extern "C" fn write_byte(
    channel: *mut Channel,
    offset: c_ulong,
    count: c_int,
    data: *const c_void,
) -> Code {
    // SAFETY: the channel is open, as the library promises. Its data is what `open` put there.
    let disk = unsafe { *(*channel).private_data.cast::<Disk>() };
    let (offset, bytes) = (offset as u64, count.unsigned_abs());
    if offset.checked_add(bytes.into()).is_none_or(|end| end > disk.size) {
        return ffi::SHORT_WRITE;
    }
    let range = Range { below: disk.below, offset, bytes: bytes as usize };
    // SAFETY: the channel is open, and there are so many bytes, as the library promises.
    code(unsafe { write(channel, &range, data) })
}

/// # Safety
/// `channel` is open.
unsafe extern "C" fn flush(channel: *mut Channel) -> Code {
    // SAFETY: open, as the library promises, and its data is what `open` put there.
    let (flags, disk) = unsafe { ((*channel).flags, *(*channel).private_data.cast::<Disk>()) };
    if flags & ffi::IO_RW == 0 {
        return 0;
    }
    code(disk.below.flush().map_err(|error| error.errno() as Code))
}
