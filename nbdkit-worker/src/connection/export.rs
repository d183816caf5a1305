//! An export that a client picked: the open stack and what was promised about it.

#![forbid(unsafe_code)]

use nbd_protocol::constants::TransmissionFlags;
use nbdkit_api::{Cache, Fua, Next, Open, Result, Zero};

use super::Connection;
use crate::settings::Settings;

/// What the client has negotiated about the form of replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Features {
    /// Structured replies, of old or extended form.
    pub(crate) structured: bool,
    /// Extended headers, which include structured replies.
    pub(crate) extended: bool,
    /// `base:allocation` may be asked for.
    pub(crate) base_allocation: bool,
}

/// An open export.
#[derive(Debug)]
pub(crate) struct Export {
    /// The stack as opened for this client.
    pub(crate) backend: Next,
    /// Bytes.
    pub(crate) size: u64,
    /// What was advertised.
    pub(crate) flags: TransmissionFlags,
    /// The form of replies.
    pub(crate) features: Features,
}

impl Export {
    /// Opens and prepares the stack and asks it all that is advertised, so that later answers come from
    /// the cache. NBD protocol, "Transmission flags".
    ///
    /// # Errors
    /// A layer refused.
    pub(crate) fn open(
        connection: &Connection<'_>,
        name: &str,
        features: Features,
    ) -> Result<Export> {
        let client = &connection.client;
        let settings = connection.settings;
        settings.serialized(|| {
            let open = Open {
                client: Some(client),
                readonly: settings.readonly,
                export: name,
                tls: client.is_tls(),
            };
            let backend = connection.layer.open(&open)?;
            let opened = backend
                .prepare()
                .and_then(|()| Ok((backend.size()?, flags(&backend, features, settings)?)));
            match opened {
                Ok((size, flags)) => {
                    // Asked now, so that requests never have to.
                    backend.can_extents()?;
                    Ok(Export { backend, size, flags, features })
                }
                Err(error) => {
                    let _ = backend.finalize();
                    Err(error)
                }
            }
        })
    }

    /// Finalizes and closes the stack.
    ///
    /// # Errors
    /// A layer's `finalize` failed: the client must be cut off.
    pub(crate) fn close(self, connection: &Connection<'_>) -> Result<()> {
        connection.settings.serialized(|| {
            let finalized = self.backend.finalize();
            drop(self.backend);
            finalized
        })
    }
}

fn flags(backend: &Next, features: Features, settings: &Settings) -> Result<TransmissionFlags> {
    let mut flags = TransmissionFlags::HAS_FLAGS;
    if backend.can_write()? {
        flags.set(TransmissionFlags::SEND_WRITE_ZEROES, backend.can_zero()? != Zero::None);
        flags.set(TransmissionFlags::SEND_FAST_ZERO, backend.can_fast_zero()?);
        flags.set(TransmissionFlags::SEND_TRIM, backend.can_trim()?);
        flags.set(TransmissionFlags::SEND_FUA, backend.can_fua()? != Fua::None);
    } else {
        flags |= TransmissionFlags::READ_ONLY;
    }
    flags.set(TransmissionFlags::SEND_FLUSH, backend.can_flush()?);
    flags.set(TransmissionFlags::ROTATIONAL, backend.is_rotational()?);
    // A client to which this is advertised opens several connections, and would wait for the second for ever.
    let several = backend.can_multi_conn()? && !settings.one_client;
    flags.set(TransmissionFlags::CAN_MULTI_CONN, several);
    flags.set(TransmissionFlags::SEND_CACHE, backend.can_cache()? != Cache::None);
    flags.set(TransmissionFlags::SEND_DF, features.structured);
    flags.set(TransmissionFlags::BLOCK_STATUS_PAYLOAD, features.extended);
    Ok(flags)
}
