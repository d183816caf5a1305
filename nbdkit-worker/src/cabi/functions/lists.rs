//! Lists of extents and exports, which C sees as pointers to what it cannot look into: [`Extents`]
//! and [`CExports`].

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use nbdkit_api::{Errno, Error, ExtentKind, Extents, Result, exports};

use super::{context, fail, minus_one, text};

/// `struct nbdkit_extent`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct CExtent {
    offset: u64,
    length: u64,
    kind: u32,
}

/// A list of exports with its strings as C has them.
#[derive(Debug, Default)]
pub(in super::super) struct CExports {
    list: Vec<(CString, Option<CString>)>,
    use_default: bool,
}

impl CExports {
    fn add(&mut self, name: Option<&CStr>, description: Option<&CStr>) -> Result<()> {
        let refuse =
            |why: &str| Err(Error::new(Errno::EINVAL, format!("nbdkit_add_export: {why}")));
        let Some(name) = name else { return refuse("export without a name") };
        if self.list.len() >= exports::MAX_EXPORTS {
            return refuse("too many exports");
        }
        for string in [Some(name), description].into_iter().flatten() {
            if string.to_bytes().len() > exports::MAX_STRING {
                return refuse("export name or description too long");
            }
            if string.to_str().is_err() {
                return refuse("export name or description is not UTF-8");
            }
        }
        self.list.push((name.to_owned(), description.map(CStr::to_owned)));
        Ok(())
    }

    /// Adds what the layer below a filter has.
    ///
    /// # Errors
    /// Both together are too many, or a string has a null byte.
    pub(in super::super) fn add_all(&mut self, exports: &nbdkit_api::Exports) -> Result<()> {
        for export in exports {
            let string = |text: &str| {
                CString::new(text)
                    .map_err(|_| Error::new(Errno::EINVAL, "an export's name has a null byte"))
            };
            let description = export.description.as_deref().map(string).transpose()?;
            self.add(Some(&string(&export.name)?), description.as_deref())?;
        }
        Ok(())
    }

    /// Moves everything to the server's own list.
    ///
    /// # Errors
    /// Both together are too many.
    pub(in super::super) fn append_to(self, exports: &mut nbdkit_api::Exports) -> Result<()> {
        for (name, description) in self.list {
            let string = |string: CString| string.to_string_lossy().into_owned();
            exports.add(string(name), description.map(string))?;
        }
        if self.use_default {
            exports.use_default();
        }
        Ok(())
    }
}

/// The list of extents behind a pointer.
///
/// # Safety
/// `extents` is null, or one that we gave out and that is still there, and nothing else uses it
/// now.
pub(in super::super) unsafe fn extents<'a>(extents: *mut c_void) -> Option<&'a mut Extents> {
    // SAFETY: what we gave out is an Extents; the rest is the caller's promise.
    unsafe { extents.cast::<Extents>().as_mut() }
}

/// Adds an extent; failures set the errno for the client too.
///
/// # Safety
/// `list` is a list of extents, and nothing else uses it now.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_add_extent(
    list: *mut c_void,
    offset: u64,
    length: u64,
    kind: u32,
) -> c_int {
    // SAFETY: `list` is a list of extents, and nothing else uses it now; the module upholds that.
    let Some(list) = (unsafe { extents(list) }) else {
        return minus_one(&Error::new(Errno::EINVAL, "nbdkit_add_extent: no list"));
    };
    match list.add(offset, length, ExtentKind::from_bits_truncate(kind)) {
        Ok(()) => 0,
        Err(error) => {
            context::set_errno(error.errno() as c_int);
            minus_one(&error)
        }
    }
}

/// An empty list, for [`nbdkit_extents_free`].
#[unsafe(no_mangle)]
extern "C" fn nbdkit_extents_new(start: u64, end: u64) -> *mut c_void {
    let limit = i64::MAX.cast_unsigned();
    if start > limit || end > limit || start >= end {
        let why = format!("nbdkit_extents_new: start={start} and end={end} are no range of a disk");
        context::set_errno(Errno::ERANGE as c_int);
        fail(&Error::new(Errno::ERANGE, why));
        return std::ptr::null_mut();
    }
    Box::into_raw(Box::new(Extents::new(start, end))).cast()
}

/// # Safety
/// `list` is null or from [`nbdkit_extents_new`], and not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_extents_free(list: *mut c_void) {
    if !list.is_null() {
        // SAFETY: it came from a box, and is given back once.
        drop(unsafe { Box::from_raw(list.cast::<Extents>()) });
    }
}

/// # Safety
/// `list` is a list of extents, and nothing changes it now.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_extents_count(list: *const c_void) -> usize {
    // SAFETY: `list` is a list of extents, and nothing changes it now; the module upholds that.
    unsafe { list.cast::<Extents>().as_ref() }.map_or(0, Extents::len)
}

/// The extent number `index`; an empty one if there are not as many.
///
/// # Safety
/// `list` is a list of extents, and nothing changes it now.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_get_extent(list: *const c_void, index: usize) -> CExtent {
    // SAFETY: `list` is a list of extents, and nothing changes it now; the module upholds that.
    let list = unsafe { list.cast::<Extents>().as_ref() };
    let extent = list.and_then(|list| list.as_slice().get(index).copied());
    extent.map_or_else(CExtent::default, |extent| CExtent {
        offset: extent.offset,
        length: extent.length,
        kind: extent.kind.bits(),
    })
}

/// `struct nbdkit_export`: strings of the list's.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct CExport {
    name: *const c_char,
    description: *const c_char,
}

/// The list of exports behind a pointer.
///
/// # Safety
/// `list` is null, or one that we gave out and that is still there, and nothing else uses it now.
unsafe fn list_of<'a>(list: *mut c_void) -> Result<&'a mut CExports> {
    // SAFETY: what we gave out is a CExports; the rest is the caller's promise.
    unsafe { list.cast::<CExports>().as_mut() }
        .ok_or_else(|| Error::new(Errno::EINVAL, "there is no list of exports"))
}

/// Adds an export.
///
/// # Safety
/// `list` is a list of exports that nothing else uses now; the strings are null or end with a null
/// byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_add_export(
    list: *mut c_void,
    name: *const c_char,
    description: *const c_char,
) -> c_int {
    // SAFETY: `list` is a list of exports that nothing else uses now; the strings are null or end
    // with a null byte; the module upholds that.
    let (name, description) = unsafe { (text(name), text(description)) };
    // SAFETY: `list` is a list of exports that nothing else uses now; the strings are null or end
    // with a null byte; the module upholds that.
    match unsafe { list_of(list) }.and_then(|list| list.add(name, description)) {
        Ok(()) => 0,
        Err(error) => minus_one(&error),
    }
}

/// Asks for the default export in the list.
///
/// # Safety
/// `list` is a list of exports that nothing else uses now.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_use_default_export(list: *mut c_void) -> c_int {
    // SAFETY: `list` is a list of exports that nothing else uses now; the module upholds that.
    match unsafe { list_of(list) } {
        Ok(list) => {
            list.use_default = true;
            0
        }
        Err(error) => minus_one(&error),
    }
}

/// An empty list, for [`nbdkit_exports_free`].
#[unsafe(no_mangle)]
extern "C" fn nbdkit_exports_new() -> *mut c_void {
    Box::into_raw(Box::<CExports>::default()).cast()
}

/// # Safety
/// `list` is null or from [`nbdkit_exports_new`], and not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_exports_free(list: *mut c_void) {
    if !list.is_null() {
        // SAFETY: it came from a box, and is given back once.
        drop(unsafe { Box::from_raw(list.cast::<CExports>()) });
    }
}

/// # Safety
/// `list` is a list of exports, and nothing changes it now.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_exports_count(list: *const c_void) -> usize {
    // SAFETY: `list` is a list of exports, and nothing changes it now; the module upholds that.
    unsafe { list.cast::<CExports>().as_ref() }.map_or(0, |list| list.list.len())
}

/// The export number `index`, whose strings live until the list changes; nulls if there are not as
/// many.
///
/// # Safety
/// `list` is a list of exports, and nothing changes it now.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_get_export(list: *const c_void, index: usize) -> CExport {
    let null = std::ptr::null();
    // SAFETY: `list` is a list of exports, and nothing changes it now; the module upholds that.
    let list = unsafe { list.cast::<CExports>().as_ref() };
    match list.and_then(|list| list.list.get(index)) {
        Some((name, description)) => CExport {
            name: name.as_ptr(),
            description: description.as_ref().map_or(null, |text| text.as_ptr()),
        },
        None => CExport { name: null, description: null },
    }
}
