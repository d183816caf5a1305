//! What a connection is opened for.

use std::sync::Arc;

use crate::client::Client;

/// What a connection is opened for.
#[derive(Debug, Clone, Copy)]
pub struct Open<'a> {
    /// The client, `None` for a context that serves several.
    pub client: Option<&'a Arc<Client>>,
    /// The connection will not write.
    pub readonly: bool,
    /// The export's name, at most 4096 bytes, from the client: hostile.
    pub export: &'a str,
    /// The client has negotiated TLS.
    pub tls: bool,
}

impl<'a> Open<'a> {
    /// The same with another `readonly`.
    #[must_use]
    pub fn readonly(self, readonly: bool) -> Open<'a> {
        Open { readonly, ..self }
    }

    /// The same with another export name.
    #[must_use]
    pub fn export(self, export: &'a str) -> Open<'a> {
        Open { export, ..self }
    }
}
