//! The stack below a filter that is being configured.

use crate::error::Result;
use crate::value::Value;

/// Layers that take parameters.
pub(crate) trait Configure {
    /// See [`NextConfig::config`].
    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()>;

    /// See [`NextConfig::config_complete`].
    fn config_complete(&mut self) -> Result<()>;
}

/// The layers below a filter that is being configured (`nbdkit_next_config`).
pub struct NextConfig<'a>(&'a mut dyn Configure);

impl<'a> NextConfig<'a> {
    pub(crate) fn new(below: &'a mut dyn Configure) -> NextConfig<'a> {
        NextConfig(below)
    }

    /// The same once more, for a filter that hands several parameters on.
    pub fn reborrow(&mut self) -> NextConfig<'_> {
        NextConfig(self.0)
    }

    /// Hands a parameter to the layer below.
    ///
    /// # Errors
    /// Those of the layer that took it; the plugin's if none did.
    pub fn config(self, key: &str, value: Value<'_>) -> Result<()> {
        self.0.config(key, value)
    }

    /// Ends the parameters of the layer below.
    ///
    /// # Errors
    /// Those of the layers below.
    pub fn config_complete(self) -> Result<()> {
        self.0.config_complete()
    }
}
