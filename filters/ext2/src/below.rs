//! The layer below the filter, as it is open.

#![expect(unsafe_code, reason = "calls the server's functions, which are C")]

use std::ffi::{CString, c_char, c_int, c_void};

use nbdkit_abi::filter::{BackendPointer, NextOps, NextPointer};
use nbdkit_api::{Errno, Error, Result};

unsafe extern "C" {
    fn nbdkit_next_context_open(
        backend: BackendPointer,
        readonly: c_int,
        export: *const c_char,
        shared: c_int,
    ) -> NextPointer;
    fn nbdkit_next_context_close(next: NextPointer);
}

/// A handle of the layer below: the server's structure, which is open for as long as this is used.
#[derive(Clone, Copy)]
pub(crate) struct Below(NextPointer);

// SAFETY: functions of the layer below may be called by any thread, by the interface.
unsafe impl Send for Below {}
// SAFETY: the pointer is never changed, and several threads may call the functions behind it.
unsafe impl Sync for Below {}

/// An answer of a function of the server's, which has logged why if it is -1.
fn answered(answer: c_int) -> Result<c_int> {
    if answer == -1 { Err(Error::silent(Errno::last())) } else { Ok(answer) }
}

/// The outcome of a request, which says in `err` why it failed. The server has logged it.
fn done(result: c_int, err: c_int) -> Result<()> {
    if result == 0 { Ok(()) } else { Err(Error::silent(Errno::from_raw(err))) }
}

/// Calls a function of the layer below with further arguments.
macro_rules! call {
    ($self:ident, $function:ident $(, $argument:expr)*) => {{
        // SAFETY: it begins with these functions, by the interface, and is open as whoever made
        // `self` has seen to.
        let ops = unsafe { &*$self.0.cast::<NextOps>() };
        let Some(function) = ops.$function else {
            return Err(Error::new(Errno::EIO, "the server lacks a function"));
        };
        // SAFETY: the server's table goes with its context, the first argument; the callers below
        // pass buffers of at least `count` bytes.
        unsafe { function($self.0 $(, $argument)*) }
    }};
}

impl Below {
    /// # Safety
    /// `next` is what a callback was given, and stays open as long as this or a copy is used.
    pub(crate) unsafe fn of(next: NextPointer) -> Result<Below> {
        match next.is_null() {
            true => Err(Error::new(Errno::EIO, "there is no layer below")),
            false => Ok(Below(next)),
        }
    }

    /// Opens the default export of the layer below for all clients together. To be closed.
    ///
    /// # Errors
    /// Those of the layer.
    ///
    /// # Safety
    /// `backend` is the server's for this filter.
    pub(crate) unsafe fn open(backend: BackendPointer) -> Result<Below> {
        let export = CString::default();
        // SAFETY: the backend, as the caller promises, and a string.
        let next = unsafe { nbdkit_next_context_open(backend, 0, export.as_ptr(), 1) };
        if next.is_null() {
            return Err(Error::silent(Errno::last()));
        }
        let below = Below(next);
        let prepared = below.prepare();
        if prepared.is_err() {
            // SAFETY: it was opened just now, and nobody else has it.
            unsafe { below.close() };
        }
        prepared.map(|()| below)
    }

    fn prepare(self) -> Result<()> {
        answered(call!(self, prepare)).map(drop)
    }

    fn finalize(self) -> Result<()> {
        answered(call!(self, finalize)).map(drop)
    }

    /// Finalizes and closes it; a failure has been logged.
    ///
    /// # Safety
    /// It came from [`open`](Self::open), and neither it nor a copy is used again.
    pub(crate) unsafe fn close(self) {
        let _ = self.finalize();
        // SAFETY: opened by `open`, and not used again, as the caller promises.
        unsafe { nbdkit_next_context_close(self.0) };
    }

    pub(crate) fn size(self) -> Result<u64> {
        let size = call!(self, get_size);
        u64::try_from(size).map_err(|_| Error::silent(Errno::last()))
    }

    pub(crate) fn can_write(self) -> Result<bool> {
        answered(call!(self, can_write)).map(|answer| answer != 0)
    }

    pub(crate) fn is_rotational(self) -> Result<bool> {
        answered(call!(self, is_rotational)).map(|answer| answer != 0)
    }

    /// The description of the export, a text of the server's that lives as long as the layer; null
    /// for none.
    ///
    /// # Errors
    /// The server lacks the function.
    pub(crate) fn description(self) -> Result<*const c_char> {
        Ok(call!(self, export_description))
    }

    /// Minimum, preferred and maximum size of requests.
    pub(crate) fn block_size(self) -> Result<[u32; 3]> {
        let [mut minimum, mut preferred, mut maximum] = [0; 3];
        let answer =
            call!(self, block_size, &raw mut minimum, &raw mut preferred, &raw mut maximum);
        answered(answer).map(|_| [minimum, preferred, maximum])
    }

    /// Fills `buf`, which has at most 4 GiB, from `offset`.
    pub(crate) fn read(self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut err = Errno::EIO as c_int;
        let count = length(buf.len())?;
        let buf = buf.as_mut_ptr().cast::<c_void>();
        done(call!(self, pread, buf, count, offset, 0, &raw mut err), err)
    }

    /// Writes `buf`, which has at most 4 GiB, at `offset`.
    pub(crate) fn write(self, buf: &[u8], offset: u64) -> Result<()> {
        let mut err = Errno::EIO as c_int;
        let count = length(buf.len())?;
        let buf = buf.as_ptr().cast::<c_void>();
        done(call!(self, pwrite, buf, count, offset, 0, &raw mut err), err)
    }

    /// Flushes, if the layer below can.
    pub(crate) fn flush(self) -> Result<()> {
        if answered(call!(self, can_flush))? == 0 {
            return Ok(());
        }
        let mut err = Errno::EIO as c_int;
        done(call!(self, flush, 0, &raw mut err), err)
    }
}

fn length(bytes: usize) -> Result<u32> {
    u32::try_from(bytes).map_err(|_| Error::new(Errno::EINVAL, "a request is too long"))
}
