//! One client's handle of a plugin in C as a [`Connection`]. Version 1 of the interface differs in
//! the signatures of the five callbacks that carry data: they have no flags.

#![expect(unsafe_code, reason = "calls code in another language")]

use std::ffi::{CString, c_int, c_void};
use std::sync::{Arc, OnceLock};

use nbdkit_api::{BlockSize, Cache, Connection, Errno, Error, Extents, Flags, Fua, Open, Result};

use super::callbacks::Callbacks;
use super::context::{self, Served};
use super::table;

/// Largest range of a callback, bytes: what fits its 32-bit count and is a multiple of every block
/// size.
pub(super) const MAX_COUNT: u32 = 1 << 31;

/// What `open` returned.
#[derive(Clone, Copy)]
struct Handle(*mut c_void);

// SAFETY: only the plugin looks at what it points to, and only in callbacks, which run on several
// threads as far as the thread model that the plugin declares allows.
unsafe impl Send for Handle {}
// SAFETY: nothing here dereferences the pointer. What the plugin does with it on several threads is
// bounded by the thread model that it declares, which the layer above upholds.
unsafe impl Sync for Handle {}

/// A client's handle of a C plugin.
pub(super) struct CConnection {
    callbacks: Arc<Callbacks>,
    handle: Handle,
    served: Arc<Served>,
    /// Asked for by the server and by the answer to another question.
    can_zero: OnceLock<bool>,
}

/// Runs a callback of the table with the handle and further arguments, if it is there.
macro_rules! call {
    ($self:ident, $callback:ident $(, $argument:expr)*) => {
        $self.callbacks.table.$callback.map(|callback| {
            // SAFETY: the handle is what open returned and is not yet closed; buffers and lists are
            // as long as the call says and are the callback's alone until it returns.
            $self.callbacks.checked(Some(&$self.served), || unsafe {
                callback($self.handle.0 $(, $argument)*)
            })
        })
    };
}

impl CConnection {
    /// Calls `open`.
    ///
    /// # Errors
    /// The plugin's.
    pub(super) fn open(callbacks: &Arc<Callbacks>, open: &Open<'_>) -> Result<CConnection> {
        let export = CString::new(open.export)
            .map_err(|_| Error::new(Errno::EINVAL, "the export name has a null byte"))?;
        let served =
            Arc::new(Served { client: open.client.cloned(), export: Some(export), tls: open.tls });
        let Some(callback) = callbacks.table.open else {
            return Err(Error::silent(Errno::EIO));
        };
        let handle = callbacks
            // SAFETY: takes a number; called as the thread model allows.
            .checked_for(std::ptr::null_mut(), Some(&served), || unsafe {
                callback(open.readonly.into())
            })?;
        Ok(CConnection {
            callbacks: Arc::clone(callbacks),
            handle: Handle(handle),
            served,
            can_zero: OnceLock::new(),
        })
    }

    fn v1(&self) -> bool {
        self.callbacks.table.api_version < 2
    }

    /// A question to be answered by yes or no; if the callback is absent, `otherwise` is.
    fn truth(&self, answer: Option<Result<c_int>>, otherwise: bool) -> Result<bool> {
        answer.map_or(Ok(otherwise), |answer| answer.map(|answer| answer != 0))
    }

    fn has_flush(&self) -> bool {
        let table = &self.callbacks.table;
        if self.v1() { table.flush_v1.is_some() } else { table.flush.is_some() }
    }

    fn has_zero(&self) -> bool {
        let table = &self.callbacks.table;
        if self.v1() { table.zero_v1.is_some() } else { table.zero.is_some() }
    }
}

/// A data callback that there is, since the question whether there is was answered by yes; it may
/// still be absent if the plugin answered yes without having it.
fn done(result: Option<Result<c_int>>, absent: impl FnOnce() -> Error) -> Result<()> {
    result.unwrap_or_else(|| Err(absent())).map(drop)
}

fn no(callback: &str) -> Error {
    let why = format!("the plugin promised {callback} and does not have it");
    Error::new(Errno::EOPNOTSUPP, why)
}

/// Divides a range into pieces that a callback can take.
pub(super) fn pieces(
    count: u64,
    offset: u64,
    mut piece: impl FnMut(u32, u64) -> Result<()>,
) -> Result<()> {
    if let Ok(count) = u32::try_from(count) {
        return piece(count, offset);
    }
    let mut done = 0;
    while done < count {
        let next = (count - done).min(MAX_COUNT.into());
        // At most MAX_COUNT.
        piece(next as u32, offset + done)?;
        done += next;
    }
    Ok(())
}

impl Connection for CConnection {
    fn size(&self) -> Result<u64> {
        let size = call!(self, get_size).unwrap_or_else(|| Err(no("get_size")))?;
        u64::try_from(size).map_err(|_| {
            Error::new(Errno::EINVAL, format!("get_size: the plugin returned invalid value {size}"))
        })
    }

    fn export_description(&self) -> Option<String> {
        let callback = self.callbacks.table.export_description?;
        let _entered = context::enter(Some(&self.served));
        // SAFETY: the handle is what open returned and is not yet closed.
        let text = unsafe { callback(self.handle.0) };
        // SAFETY: null or a string that lives at least as long as the connection. What is not UTF-8
        // is none.
        unsafe { table::text(text) }.filter(|text| !text.contains('\u{fffd}'))
    }

    fn block_size(&self) -> Result<BlockSize> {
        let mut size = BlockSize::default();
        let BlockSize { minimum, preferred, maximum } = &mut size;
        let places: [*mut u32; 3] = [minimum, preferred, maximum];
        call!(self, block_size, places[0], places[1], places[2]).transpose()?;
        Ok(size)
    }

    fn can_write(&self) -> Result<bool> {
        let table = &self.callbacks.table;
        let there = if self.v1() { table.pwrite_v1.is_some() } else { table.pwrite.is_some() };
        self.truth(call!(self, can_write), there)
    }

    fn can_flush(&self) -> Result<bool> {
        self.truth(call!(self, can_flush), self.has_flush())
    }

    fn is_rotational(&self) -> Result<bool> {
        self.truth(call!(self, is_rotational), false)
    }

    fn can_trim(&self) -> Result<bool> {
        let table = &self.callbacks.table;
        let there = if self.v1() { table.trim_v1.is_some() } else { table.trim.is_some() };
        self.truth(call!(self, can_trim), there)
    }

    fn can_zero(&self) -> Result<bool> {
        if let Some(answer) = self.can_zero.get() {
            return Ok(*answer);
        }
        let answer = self.truth(call!(self, can_zero), self.has_zero())?;
        Ok(*self.can_zero.get_or_init(|| answer))
    }

    fn can_fast_zero(&self) -> Result<bool> {
        match call!(self, can_fast_zero) {
            Some(answer) => answer.map(|answer| answer != 0),
            // Without flags there is no asking for it: every request is refused at once, which is
            // fast.
            None => Ok(self.v1() || !self.has_zero() || !self.can_zero()?),
        }
    }

    fn can_extents(&self) -> Result<bool> {
        self.truth(call!(self, can_extents), self.callbacks.table.extents.is_some())
    }

    fn can_fua(&self) -> Result<Fua> {
        let emulated = if self.has_flush() { Fua::Emulate } else { Fua::None };
        match call!(self, can_fua).transpose()? {
            None => Ok(emulated),
            Some(0) => Ok(Fua::None),
            Some(1) => Ok(Fua::Emulate),
            // Without flags the plugin would not learn of it.
            Some(2) if self.v1() => Ok(emulated),
            Some(2) => Ok(Fua::Native),
            Some(other) => Err(invalid("can_fua", other)),
        }
    }

    fn can_multi_conn(&self) -> Result<bool> {
        self.truth(call!(self, can_multi_conn), false)
    }

    fn can_cache(&self) -> Result<Cache> {
        match call!(self, can_cache).transpose()? {
            None if self.callbacks.table.cache.is_some() => Ok(Cache::Native),
            None | Some(0) => Ok(Cache::None),
            Some(1) => Ok(Cache::Emulate),
            Some(2) => Ok(Cache::Native),
            Some(other) => Err(invalid("can_cache", other)),
        }
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let Ok(count) = u32::try_from(buf.len()) else { return Err(Error::silent(Errno::EINVAL)) };
        let place = buf.as_mut_ptr().cast();
        let result = if self.v1() {
            call!(self, pread_v1, place, count, offset)
        } else {
            call!(self, pread, place, count, offset, 0)
        };
        done(result, || no("pread"))
    }

    fn pwrite(&self, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let Ok(count) = u32::try_from(buf.len()) else { return Err(Error::silent(Errno::EINVAL)) };
        let place = buf.as_ptr().cast();
        let result = if self.v1() {
            call!(self, pwrite_v1, place, count, offset)
        } else {
            call!(self, pwrite, place, count, offset, flags.bits())
        };
        done(result, || Error::new(Errno::EROFS, "the plugin has no pwrite"))
    }

    fn flush(&self) -> Result<()> {
        let result = if self.v1() { call!(self, flush_v1) } else { call!(self, flush, 0) };
        done(result, || no("flush"))
    }

    fn trim(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        pieces(count, offset, |count, offset| {
            let result = if self.v1() {
                call!(self, trim_v1, count, offset)
            } else {
                call!(self, trim, count, offset, flags.bits())
            };
            done(result, || no("trim"))
        })
    }

    fn zero(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        if self.v1() && flags.contains(Flags::FAST_ZERO) {
            return Err(Error::silent(Errno::EOPNOTSUPP));
        }
        pieces(count, offset, |count, offset| {
            let result = if self.v1() {
                let may_trim = flags.contains(Flags::MAY_TRIM);
                call!(self, zero_v1, count, offset, may_trim.into())
            } else {
                call!(self, zero, count, offset, flags.bits())
            };
            // Absent: the server writes zeroes.
            done(result, || Error::silent(Errno::EOPNOTSUPP))
        })
    }

    fn extents(&self, count: u64, offset: u64, flags: Flags, extents: &mut Extents) -> Result<()> {
        // A list may end early.
        let count = u32::try_from(count).unwrap_or(MAX_COUNT);
        let list = std::ptr::from_mut(extents).cast();
        done(call!(self, extents, count, offset, flags.bits(), list), || no("extents"))
    }

    fn cache(&self, count: u64, offset: u64) -> Result<()> {
        pieces(count, offset, |count, offset| {
            // Absent, though promised: every request succeeds.
            call!(self, cache, count, offset, 0).unwrap_or(Ok(0)).map(drop)
        })
    }
}

fn invalid(question: &str, answer: c_int) -> Error {
    Error::new(Errno::EINVAL, format!("{question}: the plugin returned invalid value {answer}"))
}

impl Drop for CConnection {
    fn drop(&mut self) {
        if let Some(close) = self.callbacks.table.close {
            let _entered = context::enter(Some(&self.served));
            // SAFETY: the handle is what open returned, and is not used after this.
            unsafe { close(self.handle.0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_beyond_32_bits_come_in_pieces() {
        let mut seen = Vec::new();
        pieces((1 << 32) + 5, 7, |count, offset| {
            seen.push((u64::from(count), offset));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [(1 << 31, 7), (1 << 31, (1 << 31) + 7), (5, (1 << 32) + 7)]);
    }
}
