//! The table of nbdkit-filter(3), and the declaration of nbdkit-confine.h.

#![expect(unsafe_code, reason = "defines functions that C calls")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nbdkit_abi::declaration::{self as abi, Declaration, Flags, Functions};
use nbdkit_abi::filter::{
    BackendPointer, CURRENT, ContextPointer, Current, Head, Middle, NextComplete, NextConfigOf,
    NextDefault, NextList, NextOpen, NextPointer, OfConnection,
};
use nbdkit_abi::plugin::{ExportsPointer, Text};
use nbdkit_api::{Cache, Errno, Error, Flags as FlagsOfRequest, Fua, Result, ThreadModel, Zero};
use nbdkit_export::{c_string, guard};

use crate::below::Below;
use crate::filesystem;
use crate::mounted::OpenFile;

unsafe extern "C" {
    fn nbdkit_context_get_backend(context: ContextPointer) -> BackendPointer;
}

/// `ext2file`: `None` for the name of the export.
static FILE: OnceLock<Option<String>> = OnceLock::new();

const HELP: &CStr = c"ext2file=<FILENAME>  (required) Absolute name of file to serve inside the
                     disk image, or 'exportname' for client choice.";

/// The entry point. nbdkit-filter(3)
#[unsafe(no_mangle)]
pub(crate) extern "C" fn filter_init() -> *const c_void {
    nbdkit_export::serve_under_host();
    filesystem::register_messages();
    // Used by the server for as long as the library is loaded.
    std::ptr::from_ref::<Current>(Box::leak(Box::new(table()))).cast()
}

/// What the filter needs. nbdkit-confine.h
#[unsafe(no_mangle)]
pub(crate) static nbdkitd_declaration: Declaration = Declaration {
    version: abi::VERSION,
    struct_size: size_of::<Declaration>() as u32,
    flags: 0,
    isolation: abi::ISOLATION_CONNECTION,
    reserved: 0,
    needs: Some(needs),
    warm_up: None,
};

fn table() -> Current {
    Current {
        head: Head {
            api_version: CURRENT,
            version: c_string(env!("NBDKIT_INTERFACE").as_bytes()).into_raw(),
            name: c"ext2".as_ptr(),
            longname: c"nbdkit ext2 filter".as_ptr(),
            description: null(),
            load: None,
            unload: None,
            config: Some(config),
            config_complete: Some(config_complete),
            config_help: HELP.as_ptr(),
            thread_model: Some(thread_model),
        },
        middle: Middle {
            dump_plugin: None,
            get_ready: None,
            after_fork: None,
            cleanup: None,
            preconnect: None,
            list_exports: Some(list_exports),
            default_export: Some(default_export),
            open: Some(open),
            close: Some(close),
        },
        connection: OfConnection {
            prepare: Some(prepare),
            finalize: Some(finalize),
            get_size: Some(get_size),
            export_description: Some(export_description),
            block_size: Some(block_size),
            can_write: Some(can_write),
            can_flush: Some(yes),
            is_rotational: Some(is_rotational),
            can_trim: Some(no),
            can_zero: Some(can_zero),
            can_fast_zero: Some(no),
            can_extents: Some(no),
            can_fua: Some(can_fua),
            can_multi_conn: Some(no),
            can_cache: Some(can_cache),
            pread: Some(pread),
            pwrite: Some(pwrite),
            flush: Some(flush),
            trim: None,
            zero: None,
            extents: None,
            cache: None,
        },
    }
}

/// # Safety
/// `functions` is the server's structure, as long as its first member says.
unsafe extern "C" fn needs(functions: *const Functions, readonly: c_int) -> c_int {
    guard(-1, || {
        if readonly != 0 {
            return Ok(0);
        }
        // SAFETY: the first member is there, as the server promises.
        let size = unsafe { functions.cast::<u64>().read() };
        if size < size_of::<Functions>() as u64 {
            return Err(Error::msg("the server is older than this filter"));
        }
        // SAFETY: the server's function with its own argument, within the callback.
        Ok(unsafe { ((*functions).flags)(functions, Flags::ONE_PROCESS.bits()) })
    })
}

/// # Safety
/// The strings end with a null byte, and `next` takes `nxdata`.
unsafe extern "C" fn config(
    next: NextConfigOf,
    nxdata: BackendPointer,
    key: *const c_char,
    value: *const c_char,
) -> c_int {
    guard(-1, || {
        // SAFETY: strings, as the server promises.
        let (name, file) = unsafe { (CStr::from_ptr(key), CStr::from_ptr(value)) };
        if name != c"ext2file" {
            // SAFETY: the server's function with what it was given.
            return Ok(unsafe { next(nxdata, key, value) });
        }
        let file = file.to_str().map_err(|_| Error::msg("the file parameter is not UTF-8"))?;
        if FILE.get().is_some() {
            return Err(Error::msg("ext2file parameter specified more than once"));
        }
        if file != "exportname" && !file.starts_with('/') {
            return Err(Error::msg("the file parameter must refer to an absolute path"));
        }
        let _ = FILE.set(Some(file.to_owned()).filter(|file| file != "exportname"));
        Ok(0)
    })
}

/// # Safety
/// `next` takes `nxdata`.
unsafe extern "C" fn config_complete(next: NextComplete, nxdata: BackendPointer) -> c_int {
    guard(-1, || {
        if FILE.get().is_none() {
            return Err(Error::msg(
                "you must supply ext2file=<FILE> parameter after the plugin name on the command \
                 line",
            ));
        }
        // SAFETY: the server's function with what it was given.
        Ok(unsafe { next(nxdata) })
    })
}

/// nbdkit 1.44: requests of all clients come one after the other.
unsafe extern "C" fn thread_model(_: c_int) -> c_int {
    ThreadModel::SerializeAllRequests as c_int
}

/// The file of `ext2file`; `None` for the name of the export.
fn file() -> Option<&'static str> {
    FILE.get()?.as_deref()
}

/// # Safety
/// `next` takes the others.
unsafe extern "C" fn list_exports(
    next: NextList,
    nxdata: BackendPointer,
    readonly: c_int,
    _tls: c_int,
    exports: ExportsPointer,
) -> c_int {
    // The files that there are: a client has to know which it wants.
    if file().is_none() {
        return 0;
    }
    // SAFETY: the server's function with what it was given.
    unsafe { next(nxdata, readonly, exports) }
}

/// # Safety
/// `next` takes the others.
unsafe extern "C" fn default_export(
    next: NextDefault,
    nxdata: BackendPointer,
    readonly: c_int,
    _tls: c_int,
) -> Text {
    if file().is_none() {
        return c"".as_ptr();
    }
    // SAFETY: the server's function with what it was given.
    unsafe { next(nxdata, readonly) }
}

/// A client's handle.
struct Handle {
    /// The layer below, where the file system is shared.
    backend: BackendPointer,
    is_shared: bool,
    /// Absolute, or relative to the root.
    path: String,
    file: Mutex<Option<OpenFile>>,
    description: OnceLock<CString>,
}

impl Handle {
    /// # Safety
    /// `handle` came from [`open`], and has not been closed while the reference lives.
    unsafe fn of<'a>(handle: *mut c_void) -> &'a Handle {
        // SAFETY: made by `open` from a box, and not yet closed, as the caller promises.
        unsafe { &*handle.cast::<Handle>() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<OpenFile>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, body: impl FnOnce(&OpenFile) -> Result<T>) -> Result<T> {
        let file = self.lock();
        let unprepared = || Error::new(Errno::EIO, "used before prepare");
        body(file.as_ref().ok_or_else(unprepared)?)
    }
}

/// # Safety
/// `next` takes the context; `export` ends with a null byte.
unsafe extern "C" fn open(
    next: NextOpen,
    context: ContextPointer,
    readonly: c_int,
    export: *const c_char,
    _tls: c_int,
) -> *mut c_void {
    guard(null_mut(), || {
        // SAFETY: a string, as the server promises.
        let name = unsafe { CStr::from_ptr(export) }.to_string_lossy();
        let (path, below) = match file() {
            Some(file) => (file.to_owned(), export),
            None if name.is_empty() => {
                return Err(Error::new(Errno::EINVAL, "default export (\"\") not permitted"));
            }
            None => (name.into_owned(), c"".as_ptr()),
        };
        let is_shared = readonly == 0;
        // SAFETY: the server's function with what it was given, and a string. Nothing is written.
        if !is_shared && unsafe { next(context, 1, below) } == -1 {
            return Err(Error::silent(Errno::last()));
        }
        // SAFETY: the context that this callback was given.
        let backend = unsafe { nbdkit_context_get_backend(context) };
        let (file, description) = (Mutex::new(None), OnceLock::new());
        let handle = Handle { backend, is_shared, path, file, description };
        Ok(Box::into_raw(Box::new(handle)).cast())
    })
}

/// # Safety
/// `handle` came from [`open`], and is not used again.
unsafe extern "C" fn close(handle: *mut c_void) {
    guard((), || {
        // SAFETY: made by `open` from a box, and given back once, as the server promises.
        let handle = unsafe { Box::from_raw(handle.cast::<Handle>()) };
        // Still there if what was prepared was not finalized.
        let file = handle.lock().take();
        file.map_or(Ok(()), OpenFile::close)
    });
}

// SAFETY of all that follow: the server calls them with the `next` of the connection, which is open
// until `close` returns, with the handle that `open` returned, and with buffers and variables that
// are the callback's until it returns. nbdkit-filter(3), "Callbacks".

unsafe extern "C" fn prepare(next: NextPointer, handle: *mut c_void, _readonly: c_int) -> c_int {
    guard(-1, || {
        // SAFETY: the handle is open, as the server promises.
        let handle = unsafe { Handle::of(handle) };
        let file = if handle.is_shared {
            // SAFETY: the server's backend of this filter.
            unsafe { OpenFile::shared(handle.backend, &handle.path) }?
        } else {
            // SAFETY: open until the handle is closed, and its file with it.
            OpenFile::own(unsafe { Below::of(next) }?, &handle.path)?
        };
        *handle.lock() = Some(file);
        Ok(0)
    })
}

unsafe extern "C" fn finalize(_: NextPointer, handle: *mut c_void) -> c_int {
    guard(-1, || {
        // SAFETY: the handle is open, as the server promises.
        let file = unsafe { Handle::of(handle) }.lock().take();
        file.map_or(Ok(()), OpenFile::close).map(|()| 0)
    })
}

unsafe extern "C" fn get_size(_: NextPointer, handle: *mut c_void) -> i64 {
    guard(-1, || {
        // SAFETY: the handle is open, as the server promises.
        let size = unsafe { Handle::of(handle) }.with(OpenFile::size)?;
        i64::try_from(size).map_err(|_| Error::new(Errno::EFBIG, "the file is too large"))
    })
}

unsafe extern "C" fn export_description(_: NextPointer, handle: *mut c_void) -> Text {
    guard(null(), || {
        // SAFETY: the handle is open, as the server promises.
        let handle = unsafe { Handle::of(handle) };
        let below = handle.with(|file| file.below().description())?;
        if below.is_null() {
            return Ok(null());
        }
        // SAFETY: a text of the server's, which lives as long as the layer below.
        let below = unsafe { CStr::from_ptr(below) }.to_string_lossy();
        let slash = if handle.path.starts_with('/') { "" } else { "/" };
        let path = &handle.path;
        let text = format!("embedded '{slash}{path}' from within ext2 image: {below}");
        Ok(handle.description.get_or_init(|| c_string(text.as_bytes())).as_ptr())
    })
}

unsafe extern "C" fn block_size(
    _: NextPointer,
    handle: *mut c_void,
    minimum: *mut u32,
    preferred: *mut u32,
    maximum: *mut u32,
) -> c_int {
    guard(-1, || {
        // SAFETY: the handle is open, as the server promises.
        let sizes = unsafe { Handle::of(handle) }.with(|file| file.below().block_size())?;
        for (place, value) in [minimum, preferred, maximum].into_iter().zip(sizes) {
            // SAFETY: the server's variables.
            unsafe { place.write(value) };
        }
        Ok(0)
    })
}

unsafe extern "C" fn can_write(_: NextPointer, handle: *mut c_void) -> c_int {
    // SAFETY: the handle is open, as the server promises.
    guard(-1, || unsafe { Handle::of(handle) }.with(OpenFile::is_writable).map(c_int::from))
}

unsafe extern "C" fn is_rotational(_: NextPointer, handle: *mut c_void) -> c_int {
    guard(-1, || {
        // SAFETY: the handle is open, as the server promises.
        unsafe { Handle::of(handle) }.with(|file| file.below().is_rotational()).map(c_int::from)
    })
}

unsafe extern "C" fn yes(_: NextPointer, _: *mut c_void) -> c_int {
    1
}

unsafe extern "C" fn no(_: NextPointer, _: *mut c_void) -> c_int {
    0
}

unsafe extern "C" fn can_zero(_: NextPointer, _: *mut c_void) -> c_int {
    Zero::Emulate as c_int
}

unsafe extern "C" fn can_fua(_: NextPointer, _: *mut c_void) -> c_int {
    Fua::Native as c_int
}

unsafe extern "C" fn can_cache(_: NextPointer, _: *mut c_void) -> c_int {
    Cache::Emulate as c_int
}

/// Runs a request, and tells the server in `err` why it failed.
///
/// # Safety
/// `handle` came from [`open`] and has not been closed; `err` can be written.
unsafe fn request(
    handle: *mut c_void,
    err: *mut c_int,
    body: impl FnOnce(&OpenFile) -> Result<()>,
) -> c_int {
    guard(-1, || {
        // SAFETY: the handle is open, as the caller promises.
        let result = unsafe { Handle::of(handle) }.with(body);
        result.map(|()| 0).inspect_err(|error| {
            // SAFETY: it can be written, as the caller promises.
            unsafe { err.write(error.errno() as c_int) };
        })
    })
}

unsafe extern "C" fn pread(
    _: NextPointer,
    handle: *mut c_void,
    buf: *mut c_void,
    count: u32,
    offset: u64,
    _flags: u32,
    err: *mut c_int,
) -> c_int {
    if count == 0 {
        return 0;
    }
    // SAFETY: the handle is open, the buffer has so many bytes, and the variable is the server's.
    unsafe {
        let buf = std::slice::from_raw_parts_mut(buf.cast::<u8>(), count as usize);
        request(handle, err, |file| file.read(buf, offset))
    }
}

unsafe extern "C" fn pwrite(
    _: NextPointer,
    handle: *mut c_void,
    buf: *const c_void,
    count: u32,
    offset: u64,
    flags: u32,
    err: *mut c_int,
) -> c_int {
    if count == 0 {
        return 0;
    }
    let is_fua = FlagsOfRequest::from_bits_truncate(flags).contains(FlagsOfRequest::FUA);
    // SAFETY: the handle is open, the buffer has so many bytes, and the variable is the server's.
    unsafe {
        let buf = std::slice::from_raw_parts(buf.cast::<u8>(), count as usize);
        request(handle, err, |file| {
            file.write(buf, offset)?;
            if is_fua { file.flush() } else { Ok(()) }
        })
    }
}

unsafe extern "C" fn flush(
    _: NextPointer,
    handle: *mut c_void,
    _flags: u32,
    err: *mut c_int,
) -> c_int {
    // SAFETY: the handle is open, and the variable is the server's.
    unsafe { request(handle, err, OpenFile::flush) }
}
