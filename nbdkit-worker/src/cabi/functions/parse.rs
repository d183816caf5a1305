//! Parsing parameters, [`nbdkit_api::parse`] for C. Results are left alone on failure and may be
//! null.

use std::ffi::{c_char, c_double, c_int, c_uint};

use nbdkit_api::parse::{self, Bounded};
use nbdkit_api::{Error, Result, client};

use super::{allocated, minus_one, text};

/// The text of a parameter, or of what it is called in messages.
///
/// # Safety
/// `string` is null or ends with a null byte.
unsafe fn string(string: *const c_char) -> Result<String> {
    // SAFETY: `string` is null or ends with a null byte; the caller upholds that.
    match unsafe { text(string) } {
        Some(text) => Ok(text.to_string_lossy().into_owned()),
        None => Err(Error::msg("there is no string to parse")),
    }
}

/// Stores a result, or reports the failure to have one.
///
/// # Safety
/// `place` is null or may be written.
unsafe fn store<T>(result: Result<T>, place: *mut T) -> c_int {
    match result {
        Ok(value) => {
            if !place.is_null() {
                // SAFETY: not null, so it may be written.
                unsafe { place.write(value) };
            }
            0
        }
        Err(error) => minus_one(&error),
    }
}

/// # Safety
/// The strings are null or end with a null byte.
unsafe fn integer<T: Bounded>(what: *const c_char, value: *const c_char) -> Result<T> {
    // SAFETY: The strings are null or end with a null byte; the caller upholds that.
    let (what, value) = unsafe { (string(what)?, string(value)?) };
    parse::integer(&what, &value)
}

macro_rules! integers {
    ($($function:ident: $type:ty,)*) => {
        $(
            /// # Safety
            /// The strings are null or end with a null byte; `result` is null or may be written.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $function(
                what: *const c_char,
                value: *const c_char,
                result: *mut $type,
            ) -> c_int {
                // SAFETY: The strings are null or end with a null byte; `result` is null or may be
                // written; the module upholds that.
                unsafe { store(integer(what, value), result) }
            }
        )*
    };
}

integers! {
    nbdkit_parse_int: c_int,
    nbdkit_parse_unsigned: c_uint,
    nbdkit_parse_int8_t: i8,
    nbdkit_parse_uint8_t: u8,
    nbdkit_parse_int16_t: i16,
    nbdkit_parse_uint16_t: u16,
    nbdkit_parse_int32_t: i32,
    nbdkit_parse_uint32_t: u32,
    nbdkit_parse_int64_t: i64,
    nbdkit_parse_uint64_t: u64,
}

/// Bytes.
///
/// # Safety
/// `value` is null or ends with a null byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_parse_size(value: *const c_char) -> i64 {
    // SAFETY: `value` is null or ends with a null byte; the module upholds that.
    match unsafe { string(value) }.and_then(|value| parse::size(&value)) {
        // At most i64::MAX.
        Ok(bytes) => bytes.cast_signed(),
        Err(error) => minus_one(&error),
    }
}

/// 0 or 1.
///
/// # Safety
/// `value` is null or ends with a null byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_parse_bool(value: *const c_char) -> c_int {
    // SAFETY: `value` is null or ends with a null byte; the module upholds that.
    match unsafe { string(value) }.and_then(|value| parse::boolean(&value)) {
        Ok(truth) => truth.into(),
        Err(error) => minus_one(&error),
    }
}

/// # Safety
/// The strings are null or end with a null byte; `result` is null or may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_parse_probability(
    what: *const c_char,
    value: *const c_char,
    result: *mut c_double,
) -> c_int {
    // SAFETY: The strings are null or end with a null byte; `result` is null or may be written; the
    // module upholds that.
    let strings = unsafe { string(what).and_then(|what| Ok((what, string(value)?))) };
    // SAFETY: The strings are null or end with a null byte; `result` is null or may be written; the
    // module upholds that.
    unsafe { store(strings.and_then(|(what, value)| parse::probability(&what, &value)), result) }
}

/// # Safety
/// The strings are null or end with a null byte; the results are null or may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_parse_delay(
    what: *const c_char,
    value: *const c_char,
    seconds: *mut c_uint,
    nanoseconds: *mut c_uint,
) -> c_int {
    // SAFETY: The strings are null or end with a null byte; the results are null or may be written;
    // the module upholds that.
    let strings = unsafe { string(what).and_then(|what| Ok((what, string(value)?))) };
    match strings.and_then(|(what, value)| parse::delay(&what, &value)) {
        Ok(delay) => {
            // The parser lets no more seconds through than fit.
            let whole = c_uint::try_from(delay.as_secs()).unwrap_or(c_uint::MAX);
            // SAFETY: The strings are null or end with a null byte; the results are null or may be
            // written; the module upholds that.
            unsafe {
                store(Ok(whole), seconds);
                store(Ok(delay.subsec_nanos()), nanoseconds)
            }
        }
        Err(error) => minus_one(&error),
    }
}

/// A password, for the caller to free.
///
/// # Safety
/// `value` is null or ends with a null byte; `password` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_read_password(
    value: *const c_char,
    password: *mut *mut c_char,
) -> c_int {
    // SAFETY: `value` is null or ends with a null byte; `password` may be written; the module
    // upholds that.
    let value = unsafe { text(value) };
    let read = value
        .ok_or_else(|| Error::msg("nbdkit_read_password: no value"))
        .and_then(|value| parse::password_bytes(value.to_bytes()));
    let copy = match &read {
        Ok(bytes) => allocated(bytes),
        Err(_) => std::ptr::null_mut(),
    };
    // SAFETY: `value` is null or ends with a null byte; `password` may be written; the module
    // upholds that. A caller that frees it after a failure finds nothing.
    unsafe { password.write(copy) };
    match read {
        Ok(_) if copy.is_null() => -1,
        Ok(_) => 0,
        Err(error) => minus_one(&error),
    }
}

/// Whether standard input and output are not the client's.
#[unsafe(no_mangle)]
extern "C" fn nbdkit_stdio_safe() -> c_int {
    client::stdio_safe().into()
}
