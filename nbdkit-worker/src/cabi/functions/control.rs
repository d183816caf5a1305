//! The connection that a callback runs for, and the course of the server.

use std::ffi::{c_char, c_int, c_uint};
use std::time::Duration;

use nbdkit_api::{Errno, Error, client};

use super::{context, fail, minus_one};

/// The name of the export that was opened, valid until the connection closes.
#[unsafe(no_mangle)]
extern "C" fn nbdkit_export_name() -> *const c_char {
    let served = context::served();
    let Some(served) = served else {
        fail(&Error::msg("nbdkit_export_name: no connection in this thread"));
        return std::ptr::null();
    };
    // The connection, which outlives the callback that we are in, holds it too. Before an export is
    // picked there is no name yet.
    served.export.as_ref().map_or(c"".as_ptr(), |export| export.as_ptr())
}

/// Whether the client has negotiated TLS.
#[unsafe(no_mangle)]
extern "C" fn nbdkit_is_tls() -> c_int {
    match context::served() {
        Some(served) => served.tls.into(),
        None => minus_one(&Error::msg("nbdkit_is_tls: no connection in this thread")),
    }
}

/// Sleeps, unless the client goes or the server stops.
#[unsafe(no_mangle)]
extern "C" fn nbdkit_nanosleep(seconds: c_uint, nanoseconds: c_uint) -> c_int {
    if seconds > c_int::MAX.cast_unsigned() {
        let why = "nbdkit_nanosleep: sleep is too long";
        return minus_one(&Error::new(Errno::EINVAL, why));
    }
    let duration = Duration::from_secs(seconds.into()) + Duration::from_nanos(nanoseconds.into());
    let served = context::served();
    let client = served.as_ref().and_then(|served| served.client.as_deref());
    match client::sleep(client, duration) {
        Ok(()) => 0,
        Err(error) => minus_one(&error),
    }
}

/// Drops the client.
#[unsafe(no_mangle)]
extern "C" fn nbdkit_disconnect(force: c_int) {
    match context::client("nbdkit_disconnect") {
        Ok(client) => client.disconnect(force != 0),
        Err(error) => fail(&error),
    }
}

/// Asks the server to stop.
#[unsafe(no_mangle)]
extern "C" fn nbdkit_shutdown() {
    client::shutdown();
}
