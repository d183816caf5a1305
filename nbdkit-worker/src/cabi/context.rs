//! For whom this thread is in a callback, and how the callback has explained its failure. The
//! functions that code in C calls take no such argument ("thread-local magic", nbdkit-plugin(3)).

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::sync::Arc;

use nbdkit_api::{Client, Errno, Error, log};

/// What a callback may ask about its client.
pub(super) struct Served {
    /// `None` in contexts that serve several.
    pub(super) client: Option<Arc<Client>>,
    /// The export that was opened; `None` before that.
    pub(super) export: Option<CString>,
    /// The client has negotiated TLS.
    pub(super) tls: bool,
}

impl Served {
    /// For a client that has opened nothing yet.
    pub(super) fn before_open(client: &Arc<Client>) -> Arc<Served> {
        Arc::new(Served { client: Some(Arc::clone(client)), export: None, tls: client.is_tls() })
    }
}

thread_local! {
    static SERVED: RefCell<Option<Arc<Served>>> = const { RefCell::new(None) };
    static ERRNO: Cell<i32> = const { Cell::new(0) };
    static TEXT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A callback begins on this thread, for `served`; the message of an earlier one is dropped.
#[must_use]
pub(super) fn enter(served: Option<&Arc<Served>>) -> Entered {
    ERRNO.set(0);
    TEXT.take();
    Entered(SERVED.replace(served.cloned()))
}

/// The callback that was left for this one, on drop.
pub(super) struct Entered(Option<Arc<Served>>);

impl Drop for Entered {
    fn drop(&mut self) {
        SERVED.set(self.0.take());
    }
}

/// For whom this thread is in a callback.
pub(super) fn served() -> Option<Arc<Served>> {
    SERVED.with_borrow(Clone::clone)
}

/// The client that this thread serves.
///
/// # Errors
/// There is none: configuration, or a thread of the plugin's own. Logged.
pub(super) fn client(function: &str) -> Result<Arc<Client>, Error> {
    served()
        .and_then(|served| served.client.clone())
        .ok_or_else(|| Error::msg(format!("{function}: no connection in this thread")))
}

/// `nbdkit_set_error`.
pub(super) fn set_errno(errno: i32) {
    ERRNO.set(errno);
}

/// `nbdkit_error`: logs, and keeps the message for the reply to the client.
pub(super) fn error(text: &str) {
    log::error(text);
    TEXT.set(Some(text.to_owned()));
}

/// The failure of a layer below the filter whose callback this is, which may pass it on: logs it
/// unless that has been done, and keeps it as if it were the filter's. Leaves its errno, and
/// returns it.
pub(super) fn failed_below(mut error: Error) -> Errno {
    if error.take_for_log() {
        log::error(error.message());
    }
    let errno = error.errno();
    ERRNO.set(errno as i32);
    TEXT.set((!error.message().is_empty()).then(|| error.message().to_owned()));
    errno.set();
    errno
}

/// The error of a callback that has just failed. `errno` is what it left in errno, if that can be
/// relied on. Its text has been logged; without one it is silent, as in nbdkit.
pub(super) fn failure(errno: Option<i32>) -> Error {
    let errno = match (ERRNO.get(), errno) {
        (0, None | Some(0)) => Errno::EIO,
        (0, Some(left)) => Errno::from_raw(left),
        (set, _) => Errno::from_raw(set),
    };
    let Some(text) = TEXT.take() else { return Error::silent(errno) };
    let mut error = Error::new(errno, text);
    error.take_for_log();
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_comes_before_errno_and_eio_is_the_last_resort() {
        let entered = enter(None);
        assert_eq!(failure(None).errno(), Errno::EIO);
        assert_eq!(failure(Some(0)).errno(), Errno::EIO);
        assert_eq!(failure(Some(libc::ENOSPC)).errno(), Errno::ENOSPC);
        set_errno(libc::EROFS);
        assert_eq!(failure(Some(libc::ENOSPC)).errno(), Errno::EROFS);
        drop(entered);
        let _entered = enter(None);
        assert_eq!(failure(None).errno(), Errno::EIO);
    }

    #[test]
    fn a_callback_within_a_callback_gives_the_thread_back() {
        let served = |tls| Some(Arc::new(Served { client: None, export: None, tls }));
        let outer = served(false);
        let _outer = enter(outer.as_ref());
        {
            let inner = served(true);
            let _inner = enter(inner.as_ref());
            assert!(super::served().unwrap().tls);
        }
        assert!(!super::served().unwrap().tls);
    }
}
