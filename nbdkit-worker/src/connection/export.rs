//! An export that a client picked: the stack, open for this client.

#![forbid(unsafe_code)]

use nbd_protocol::constants::TransmissionFlags;
use nbdkit_api::{Cache, Fua, Next, Open, Result, Zero};

use super::Connection;
use super::negotiated::{Features, Negotiated};
use crate::settings::Settings;

/// Proof that TLS is in use on a connection or not required. Without one, no export is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TlsSatisfied(());

impl TlsSatisfied {
    /// `None` if TLS is required and not in use.
    pub(crate) fn check(connection: &Connection<'_>) -> Option<TlsSatisfied> {
        let required = connection.settings.tls.as_ref().is_some_and(|tls| tls.require);
        (!required || connection.client.is_tls()).then_some(TlsSatisfied(()))
    }
}

/// An open export.
#[derive(Debug)]
pub(crate) struct Export {
    /// The stack as opened for this client.
    pub(crate) backend: Next,
}

impl Export {
    /// Opens and prepares the stack and queries everything that is advertised, so that the backend
    /// caches the answers. NBD protocol, "Transmission flags".
    ///
    /// # Errors
    /// A layer refused the client or could not open.
    pub(crate) fn open(
        connection: &Connection<'_>,
        name: &str,
        features: Features,
        _: TlsSatisfied,
    ) -> Result<(Export, Negotiated)> {
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
                    // Cached now, so that no request has to query the stack.
                    backend.can_extents()?;
                    let export = name.to_owned();
                    let negotiated = Negotiated { export, size, flags, features, block_size: None };
                    Ok((Export { backend }, negotiated))
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
    /// A layer's `finalize` failed: the client must be disconnected.
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
    // A client that sees this flag opens several connections; the second would never be served.
    let several = backend.can_multi_conn()? && !settings.one_client;
    flags.set(TransmissionFlags::CAN_MULTI_CONN, several);
    flags.set(TransmissionFlags::SEND_CACHE, backend.can_cache()? != Cache::None);
    flags.set(TransmissionFlags::SEND_DF, features.structured);
    flags.set(TransmissionFlags::BLOCK_STATUS_PAYLOAD, features.extended);
    Ok(flags)
}
